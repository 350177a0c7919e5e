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
    "Encoder": "withstand.models.encoder",
    "HiddenKNN": "withstand.models.neighbours",
    "DeepKNN": "withstand.models.neighbours",
    "knn_classifier": "withstand.models.neighbours",
    "knn_of": "withstand.models.neighbours",
    "check_compatible": "withstand.models.compatible",
    "read_weights": "withstand.models.weights",
    "load_weights": "withstand.models.weights",
    "OnnxTarget": "withstand.models.onnx",
    "HttpTarget": "withstand.models.endpoint",
    "HttpRetriever": "withstand.models.retrieval",
    "ImageIndex": "withstand.models.retrieval",
    "RetrievalTarget": "withstand.models.retrieval",
    "BranchNorm": "withstand.models.layers.branch_norm",
    "add_branches": "withstand.models.layers.branch_norm",
    "keep_branch": "withstand.models.layers.branch_norm",
    "branch_parameters": "withstand.models.layers.branch_norm",
    "route": "withstand.models.layers.branch_norm",
    "frozen_statistics": "withstand.models.layers.branch_norm",
    "GradientReversal": "withstand.models.layers.gradient_reversal",
    "reverse_gradient": "withstand.models.layers.gradient_reversal",
    "matched_masks": "withstand.models.layers.matched_masks",
    "WSConv2d": "withstand.models.layers.weight_standardised",
    "clip_adaptively": "withstand.models.layers.weight_standardised",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from withstand.models.compatible import check_compatible as check_compatible
    from withstand.models.counting import count_passes as count_passes
    from withstand.models.encoder import Encoder as Encoder
    from withstand.models.endpoint import HttpTarget as HttpTarget
    from withstand.models.layers import BranchNorm as BranchNorm
    from withstand.models.layers import GradientReversal as GradientReversal
    from withstand.models.layers import WSConv2d as WSConv2d
    from withstand.models.layers import add_branches as add_branches
    from withstand.models.layers import branch_parameters as branch_parameters
    from withstand.models.layers import clip_adaptively as clip_adaptively
    from withstand.models.layers import frozen_statistics as frozen_statistics
    from withstand.models.layers import keep_branch as keep_branch
    from withstand.models.layers import matched_masks as matched_masks
    from withstand.models.layers import reverse_gradient as reverse_gradient
    from withstand.models.layers import route as route
    from withstand.models.load import load_model as load_model
    from withstand.models.neighbours import DeepKNN as DeepKNN
    from withstand.models.neighbours import HiddenKNN as HiddenKNN
    from withstand.models.neighbours import knn_classifier as knn_classifier
    from withstand.models.neighbours import knn_of as knn_of
    from withstand.models.onnx import OnnxTarget as OnnxTarget
    from withstand.models.retrieval import HttpRetriever as HttpRetriever
    from withstand.models.retrieval import ImageIndex as ImageIndex
    from withstand.models.retrieval import RetrievalTarget as RetrievalTarget
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
