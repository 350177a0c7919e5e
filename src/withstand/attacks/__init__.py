"""Attacks: each is a value, called as `attack(model, x, y) -> x_adv`; `attack.run(...)` also tells success and cost.

Every attack registered anywhere is an attribute of this package under its class name: `ws.attacks.PGD`.
"""

from typing import TYPE_CHECKING, Any

from withstand.registry import entries

if TYPE_CHECKING:
    from withstand.attacks.engine import Attack, AttackResult, Problem
    from withstand.attacks.fgsm import FGSM
    from withstand.attacks.pgd import PGD

__all__ = ["Attack", "AttackResult", "FGSM", "PGD", "Problem"]


def __getattr__(name: str) -> Any:
    if name in {"Attack", "AttackField", "AttackResult", "Problem"}:
        from withstand.attacks import engine

        return getattr(engine, name)
    for kind in ("attack", "view", "shaping"):
        for entry in entries(kind):
            if entry.attribute == name:
                return entry.load()
    raise AttributeError(f"withstand.attacks has no {name!r}; it has {', '.join(sorted(__dir__()))}")


def __dir__() -> list[str]:
    kinds = ("attack", "view", "shaping")
    return ["Attack", "AttackResult", "Problem", *(e.attribute for kind in kinds for e in entries(kind))]
