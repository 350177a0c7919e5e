"""The audit: checks, presets, the run folder, the scorecard."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Check": "withstand.audit.check",
    "Table": "withstand.audit.check",
    "audit": "withstand.audit.run",
    "CheckResult": "withstand.audit.scorecard",
    "Comparison": "withstand.audit.scorecard",
    "Scorecard": "withstand.audit.scorecard",
    "Store": "withstand.audit.store",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from withstand.audit.check import Check as Check
    from withstand.audit.check import Table as Table
    from withstand.audit.run import audit as audit
    from withstand.audit.scorecard import CheckResult as CheckResult
    from withstand.audit.scorecard import Comparison as Comparison
    from withstand.audit.scorecard import Scorecard as Scorecard
    from withstand.audit.store import Store as Store


def __getattr__(name: str) -> Any:
    """Loaded on first use, so that a check can be used without the engine that runs it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'withstand.audit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


class _Callable(ModuleType):
    """`withstand.audit` names a function and a package: once the package is imported, the name does for both."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Scorecard":
        return self.__getattr__("audit")(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
