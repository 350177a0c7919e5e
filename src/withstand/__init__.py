"""withstand: find out what a model withstands, and make it withstand more.

The public names below are loaded on first use, so that `import withstand` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Linf": "withstand.threats",
    "L2": "withstand.threats",
    "L1": "withstand.threats",
    "L0": "withstand.threats",
    "Masked": "withstand.threats",
    "load_model": "withstand.models",
    "count_passes": "withstand.models",
    "knn_classifier": "withstand.models",
    "load_data": "withstand.data",
    "corrupt": "withstand.corruptions",
    "edit": "withstand.editing",
    "audit": "withstand.audit",
    "transfer": "withstand.audit.transfer",
    "fit_attack": "withstand.attacks.fit",
    "harden": "withstand.hardening.harden",
    "Trainer": "withstand.training",
    "Scorecard": "withstand.audit",
    "parse": "withstand.registry",
    "component": "withstand.registry",
    "Rows": "withstand.random",
}
_MODULES = (
    "attacks",
    "threats",
    "objectives",
    "metrics",
    "corruptions",
    "detection",
    "editing",
    "hardening",
    "representation",
    "training",
    "models",
    "index",
    "data",
    "report",
)

__all__ = [*_HOMES, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from withstand import (
        attacks,
        corruptions,
        data,
        detection,
        editing,
        hardening,
        index,
        metrics,
        models,
        objectives,
        report,
        representation,
        threats,
        training,
    )
    from withstand.attacks.fit import fit_attack
    from withstand.audit import Scorecard, audit
    from withstand.audit.transfer import transfer
    from withstand.corruptions import corrupt
    from withstand.data import load_data
    from withstand.editing import edit
    from withstand.hardening.harden import harden
    from withstand.models import count_passes, knn_classifier, load_model
    from withstand.random import Rows
    from withstand.registry import component, parse
    from withstand.threats import L0, L1, L2, Linf, Masked
    from withstand.training import Trainer


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = importlib.import_module(_HOMES[name])
        value = getattr(home, name)
    elif name in _MODULES:
        value = importlib.import_module(f"withstand.{name}")
    else:
        raise AttributeError(f"module 'withstand' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
