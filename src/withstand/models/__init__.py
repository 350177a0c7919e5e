"""Models: loading them from anywhere, and making them targets: images in [0, 1] in, logits out."""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "load_model": "withstand.models.load",
    "as_target": "withstand.models.target",
    "TorchTarget": "withstand.models.target",
    "Normalised": "withstand.models.target",
    "Logits": "withstand.models.target",
    "logits_of": "withstand.models.target",
    "frozen": "withstand.models.state",
    "count_passes": "withstand.models.counting",
    "check_compatible": "withstand.models.compatible",
    "read_weights": "withstand.models.weights",
    "load_weights": "withstand.models.weights",
    "OnnxTarget": "withstand.models.onnx",
    "HttpTarget": "withstand.models.endpoint",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from withstand.models.compatible import check_compatible as check_compatible
    from withstand.models.counting import count_passes as count_passes
    from withstand.models.endpoint import HttpTarget as HttpTarget
    from withstand.models.load import load_model as load_model
    from withstand.models.onnx import OnnxTarget as OnnxTarget
    from withstand.models.state import frozen as frozen
    from withstand.models.target import Logits as Logits
    from withstand.models.target import Normalised as Normalised
    from withstand.models.target import TorchTarget as TorchTarget
    from withstand.models.target import as_target as as_target
    from withstand.models.target import logits_of as logits_of
    from withstand.models.weights import load_weights as load_weights
    from withstand.models.weights import read_weights as read_weights


def __getattr__(name: str) -> Any:
    """Loaded on first use, so that the table of the zoo can be read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'withstand.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
