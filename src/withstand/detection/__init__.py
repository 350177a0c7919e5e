"""Detectors of inputs that a model should not be trusted with: unfamiliar ones and attacked ones."""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "fit_detectors": "withstand.detection.fitted",
    "load_detectors": "withstand.detection.fitted",
    "evaluate": "withstand.detection.fitted",
    "FittedDetectors": "withstand.detection.fitted",
    "DEFAULT": "withstand.detection.fitted",
    "acceptable": "withstand.detection.judging",
    "judge": "withstand.detection.judging",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from withstand.detection.fitted import DEFAULT as DEFAULT
    from withstand.detection.fitted import FittedDetectors as FittedDetectors
    from withstand.detection.fitted import evaluate as evaluate
    from withstand.detection.fitted import fit_detectors as fit_detectors
    from withstand.detection.fitted import load_detectors as load_detectors
    from withstand.detection.judging import acceptable as acceptable
    from withstand.detection.judging import judge as judge


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'withstand.detection' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
