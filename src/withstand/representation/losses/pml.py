"""The losses of pytorch-metric-learning."""

import inspect
import math
from dataclasses import field
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad, missing_extra, unknown
from withstand.random import derive
from withstand.registry import component
from withstand.representation.losses.pairs import MetricLoss, check_embeddings

SHORT: dict[str, tuple[str, dict[str, Any], tuple[str, dict[str, Any]] | None]] = {
    "multi_similarity": (
        "MultiSimilarityLoss",
        {"alpha": 2, "beta": 40, "base": 0.5},
        ("MultiSimilarityMiner", {"epsilon": 0.1}),
    ),
    "proxy_anchor": ("ProxyAnchorLoss", {"margin": 0.1, "alpha": 32}, None),
    "triplet": (
        "TripletMarginLoss",
        {"margin": 0.2},
        ("TripletMarginMiner", {"margin": 0.2, "type_of_triplets": "semihard"}),
    ),
    "contrastive": ("ContrastiveLoss", {}, None),
    "arcface": ("ArcFaceLoss", {"margin": math.degrees(0.5), "scale": 16}, None),
}
"""Losses by the field's names: the class, its settings, the miner and its settings."""
_KEPT_ONLY = {"multi_similarity"}  # the mean is over anchors with mined pairs, as in the paper; the library's, over all


@component("metric_loss", "pml", systems=("mdprop", "cbml"), extra="metric")
class PML(MetricLoss):
    """A loss of pytorch-metric-learning, by a short name with the paper's settings or by the name of its class.

    name: "multi_similarity" (a=2, b=40, lambda=0.5, mined with margin 0.1, mean over the anchors that are left),
    "proxy_anchor" (a=32, margin 0.1), "triplet" (margin 0.2, semi-hard), "contrastive", "arcface" (scale 16, margin 0.5),
    or a class such as "CircleLoss", without a miner. settings: arguments of the class that differ. Where the class learns
    proxies, it gets the number of classes and the width of the embedding, and proxies that the seed decides.

    Of a batch in which no more than one positive and one negative pair are mined the library makes 0.

    Reference: Musgrave, Belongie, Lim, "PyTorch Metric Learning", 2020, arXiv 2008.09164.
    """

    name: str = "multi_similarity"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in SHORT and not self.name[:1].isupper():
            raise unknown("name", self.name, SHORT)

    @property
    def pairs(self) -> bool:  # type: ignore[override]
        return "num_classes" not in inspect.signature(self._class()).parameters

    def build(self, classes: int = 0, dim: int = 0, width: int = 0, seed: int = 0) -> "Borrowed":
        _, settings, mining = SHORT.get(self.name, ("", {}, None))
        made = {**settings, **self.settings}
        if not self.pairs:
            made |= {"num_classes": classes, "embedding_size": dim}
        if self.name in _KEPT_ONLY:
            made.setdefault("reducer", _library().reducers.AvgNonZeroReducer())
        with torch.random.fork_rng([]):
            torch.manual_seed(derive(seed, "proxies") & 0x7FFFFFFF)
            try:
                loss = self._class()(**made)
            except TypeError as error:
                raise bad("settings", self.settings, f"arguments of {self._class().__name__}", str(error)) from None
        return Borrowed(loss, getattr(_library().miners, mining[0])(**mining[1]) if mining else None)

    def _class(self) -> Any:
        losses = _library().losses
        name = SHORT[self.name][0] if self.name in SHORT else self.name
        if not hasattr(losses, name):
            raise unknown("loss of pytorch-metric-learning", name, [n for n in dir(losses) if n.endswith("Loss")])
        return getattr(losses, name)


class Borrowed(nn.Module):
    """A loss of the library and its miner."""

    def __init__(self, loss: nn.Module, miner: Any) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor, features: Tensor | None = None) -> Tensor:
        check_embeddings(embeddings, labels)
        if self.miner is None:
            return self.loss(embeddings, labels)
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


def _library() -> Any:
    try:
        import pytorch_metric_learning
        from pytorch_metric_learning import losses, miners, reducers  # noqa: F401
    except ImportError:
        raise missing_extra("pytorch-metric-learning", "metric", "This loss") from None
    return pytorch_metric_learning
