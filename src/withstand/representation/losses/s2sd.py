"""Simultaneous similarity-based self-distillation: wider heads teach the embedding, and go when the training ends."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.random import derive
from withstand.registry import component
from withstand.representation.losses.pairs import MetricLoss, MetricLossField
from withstand.representation.losses.pml import PML


@component("metric_loss", "s2sd", systems=("mdprop",))
class S2SD(MetricLoss):
    """Another metric loss, taught by wider heads: their similarities within the batch are what the embedding's shall be.

    L = (mean_j L_base(g_j) + L_base(f)) / 2 + w mean_j KL_j + w_f KL_feat, g_j = the unit vectors of a head of two layers
    (width -> t_j -> t_j) on the features of the backbone. With S_a the n x n cosines of a, KL_j = (T^2 / n) sum of
    softmax(S_gj / T) (log softmax(S_gj / T) - log softmax(S_f / T)), the head's side detached; KL_feat likewise with the
    features themselves, from update `delay` on.

    base: the loss of all heads, each with proxies of its own where it has any. dims: t_j. weight, feature_weight: w, w_f.
    temperature: T. The weights are those for pretrained networks; from scratch they drown the loss, and 1 is better.
    pooling: "mean" takes the features that the backbone pools; "mean_and_max" adds the maximum over their map, as
    the published runs do. It changes what the heads and KL_feat read; the embedding stays one of the mean.

    Reference: Roth, Milbich, Ommer, Cohen, Ghassemi, "Simultaneous Similarity-based Self-Distillation for Deep Metric
    Learning", 2021, arXiv 2009.08348.
    """

    base: MetricLossField = PML("multi_similarity")
    dims: tuple[int, ...] = (512, 1024, 1536, 2048)
    weight: float = 50.0
    feature_weight: float = 50.0
    temperature: float = 1.0
    delay: int = 1000
    pooling: Literal["mean", "mean_and_max"] = "mean"

    needs_features = True

    def __post_init__(self) -> None:
        if not self.dims or min(self.dims) < 1:
            raise bad("dims", self.dims, "one or more widths >= 1")
        if min(self.weight, self.feature_weight) < 0 or not self.temperature > 0 or self.delay < 0:
            got = (self.weight, self.feature_weight, self.temperature, self.delay)
            raise bad("weight, feature_weight, temperature, delay", got, "numbers >= 0, the temperature above 0")
        if isinstance(self.base, S2SD):
            raise bad("base", repr(self.base), "a loss without heads of its own")

    @property
    def adds_maximum(self) -> bool:  # type: ignore[override]
        return self.pooling == "mean_and_max"

    @property
    def pairs(self) -> bool:  # type: ignore[override]
        return self.base.pairs

    def build(self, classes: int = 0, dim: int = 0, width: int = 0, seed: int = 0) -> "SelfDistilled":
        return SelfDistilled(self, classes, dim, width, seed)


class SelfDistilled(nn.Module):
    """The loss of `S2SD`; `updates` counts the batches it has seen in train mode."""

    updates: Tensor

    def __init__(self, settings: S2SD, classes: int, dim: int, width: int, seed: int) -> None:
        super().__init__()
        self.settings = settings
        with torch.random.fork_rng([]):
            torch.manual_seed(derive(seed, "s2sd heads") & 0x7FFFFFFF)
            heads = [nn.Sequential(nn.Linear(width, t), nn.ReLU(), nn.Linear(t, t)) for t in settings.dims]
        self.heads = nn.ModuleList(heads)
        self.base = settings.base.build(classes, dim, width, seed)
        self.taught = nn.ModuleList(
            settings.base.build(classes, t, width, derive(seed, "head", j)) for j, t in enumerate(settings.dims)
        )
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor, features: Tensor | None = None) -> Tensor:
        if features is None:
            raise bad("features", None, "the features [N, width] that the embeddings were made of")
        own = embeddings @ embeddings.T
        losses, divergences = [], []
        for head, loss in zip(self.heads, self.taught):
            wide = F.normalize(head(features))
            losses.append(loss(wide, labels))
            divergences.append(self._divergence(own, wide))
        s = self.settings
        total = (torch.stack(losses).mean() + self.base(embeddings, labels)) / 2
        total = total + s.weight * torch.stack(divergences).mean()
        if int(self.updates) >= s.delay:
            total = total + s.feature_weight * self._divergence(own, F.normalize(features))
        if self.training:
            self.updates += 1
        return total

    def _divergence(self, own: Tensor, teacher: Tensor) -> Tensor:
        t, teacher = self.settings.temperature, teacher.detach()
        target = (teacher @ teacher.T / t).log_softmax(1)
        return t * t * F.kl_div((own / t).log_softmax(1), target, reduction="sum", log_target=True) / len(own)
