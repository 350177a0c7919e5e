"""Which checks an audit runs."""

from collections.abc import Sequence
from typing import Any

from withstand.audit.check import Check
from withstand.errors import bad, unknown
from withstand.registry import coerce, entries, parse

PRESETS: dict[str, tuple[str, ...]] = {
    "quick": ("clean", "robust(examples=100)"),
    "standard": ("clean", "robust"),
    "full": ("clean", "robust"),
}


def checks_of(preset: str = "standard", checks: Sequence[Any] | None = None) -> dict[str, Check]:
    """The checks of a preset, or those named, by name. Two of one kind are told apart by a number."""
    if checks is None:
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)
        checks = PRESETS[preset]
    if not checks:
        raise bad("checks", "none", f"at least one of {', '.join(e.name for e in entries('check'))}")
    made: dict[str, Check] = {}
    for item in checks:
        check = coerce("check")(item) if not isinstance(item, str) else parse(item, "check")
        name, number = check.component_name, 1
        while name in made:
            number += 1
            name = f"{check.component_name}-{number}"
        made[name] = check
    return made
