"""What attacks ask of their own settings; refused on construction."""

from typing import Any

from withstand.errors import bad
from withstand.threats import Threat


def needs_threat(attack: Any, *kinds: type[Threat]) -> None:
    """Refuse a threat that the method is not made for."""
    if not isinstance(attack.threat, kinds):
        names = " or ".join(f"{k.component_name}()" for k in kinds)  # type: ignore[attr-defined]
        raise bad("threat", repr(attack.threat), f"{names}, with eps or without", "Other threats: take pgd.")


def needs_whole(attack: Any, *names: str) -> None:
    """Refuse counts below 1."""
    for name in names:
        if getattr(attack, name) < 1:
            raise bad(name, getattr(attack, name), "a whole number >= 1")


def needs_positive(attack: Any, *names: str) -> None:
    """Refuse sizes that are not above zero."""
    for name in names:
        if not getattr(attack, name) > 0:
            raise bad(name, getattr(attack, name), "a number > 0")


def needs_target(attack: Any) -> None:
    """Refuse an objective that pulls towards no class."""
    if not hasattr(attack.objective, "target"):
        allowed = "a targeted objective, e.g. targeted_margin(target=3), or targeted_margin() for the runner-up"
        raise bad("objective", repr(attack.objective), allowed)
