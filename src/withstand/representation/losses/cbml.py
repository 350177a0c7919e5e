"""The contrastive Bayesian loss with its constraint on the variance of the negative similarities."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.registry import component
from withstand.representation.losses.pairs import MetricLoss, check_embeddings, nothing

_SAME = 1e-5  # of a positive pair above 1 - this, the two count as one image


@component("metric_loss", "cbml_loss", systems=("cbml",))
class CBMLLoss(MetricLoss):
    """Contrastive Bayesian loss: log-ratios of mined pairs and a price on the variance of the negatives.

    Of anchor i, with s its cosines, mined positives P and negatives N, A = sum_P exp(-(s - a_p) / b_p) and
    B = sum_N exp((s - a_n) / b_n):

        form="log":       l_i = log(1 + A) + log(1 + B)
        form="sqrt":      l_i = sqrt(1 + A) + sqrt(1 + B)
        form="constant":  l_i = 2 + w_p A + w_n B

    loss = (1/n) sum_i (l_i + var_weight V_i) over the anchors with pairs to mine; n is the size of the batch. V_i =
    sum (s - mu_i)^2 over all negatives, mu_i = g mean(positives) + (1 - g) mean(negatives), g = `mean_mix`.

    pos, neg: (a_p, b_p) and (a_n, b_n). margin: a positive is mined if s - margin < the largest negative, a negative if
    s + margin > the smallest positive; with adaptive_neg=False the topk_neg largest negatives are. weights: (w_p, w_n).
    reduction_var: V as the published "sum", which grows with the batch, or as a "mean", a hundred times weaker at the
    published size. duplicates: an exact duplicate of the anchor is no positive of it ("drop"; the published code drops
    the anchor itself by the same rule) or one like all others ("keep").

    The paper trains pretrained networks with frozen batch norm. From scratch, var_weight=1 contracts the embedding too
    much; try 0.01.

    Reference: Kan, He, Cen, Li, Mladenovic, He, "Contrastive Bayesian Analysis for Deep Metric Learning", 2022, arXiv
    2210.04402.
    """

    form: Literal["log", "sqrt", "constant"] = "log"
    pos: tuple[float, float] = (0.5, 0.5)
    neg: tuple[float, float] = (1.0, 0.01)
    margin: float = 0.1
    mean_mix: float = 0.2
    var_weight: float = 1.0
    reduction_var: Literal["sum", "mean"] = "sum"
    adaptive_neg: bool = True
    topk_neg: int = 100
    weights: tuple[float, float] = (0.25, 0.25)
    duplicates: Literal["drop", "keep"] = "drop"
    normalize: bool = False

    def __post_init__(self) -> None:
        for name in ("pos", "neg"):
            if not 0 < getattr(self, name)[1] < math.inf:
                raise bad(name, getattr(self, name), "(centre, scale) with a scale > 0")
        for name in ("margin", "var_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise bad(name, getattr(self, name), "a number >= 0")
        if not 0 <= self.mean_mix <= 1:
            raise bad("mean_mix", self.mean_mix, "a share in [0, 1]")
        if self.topk_neg < 1:
            raise bad("topk_neg", self.topk_neg, "a whole number >= 1")
        if min(self.weights) < 0:
            raise bad("weights", self.weights, "two numbers >= 0")

    def build(self, classes: int = 0, dim: int = 0, width: int = 0, seed: int = 0) -> "ContrastiveBayesian":
        return ContrastiveBayesian(self)


class ContrastiveBayesian(nn.Module):
    """The loss of `CBMLLoss`; `stats` has, of the last batch, the share of anchors kept and their means of A, B and V."""

    def __init__(self, settings: CBMLLoss) -> None:
        super().__init__()
        self.settings = settings
        self.stats: dict[str, Tensor] = {}

    def forward(self, embeddings: Tensor, labels: Tensor, features: Tensor | None = None) -> Tensor:
        check_embeddings(embeddings, labels, unit=not self.settings.normalize)
        if self.settings.normalize:
            embeddings = nn.functional.normalize(embeddings)
        s = embeddings @ embeddings.T
        positive, negative, kept = self._sets(s, labels)
        n, s = len(s), s[kept]
        self.stats = {"kept": kept.double().mean()}
        if not len(s):
            return nothing(embeddings)
        positive, negative = positive[kept], negative[kept]
        variance = self._variance(s, positive, negative)
        mined_p, mined_n = self._mined(s, positive, negative)
        a = self._log_sum(-s, mined_p, -self.settings.pos[0], self.settings.pos[1])
        b = self._log_sum(s, mined_n, self.settings.neg[0], self.settings.neg[1])
        value = self._value(a, self.settings.weights[0]) + self._value(b, self.settings.weights[1])
        self.stats |= {"a": a.detach().exp().mean(), "b": b.detach().exp().mean(), "variance": variance.detach().mean()}
        return (value + self.settings.var_weight * variance).sum() / n

    def _sets(self, s: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which pairs are positive and negative, bool [N, N], and which anchors have pairs to mine, bool [N]."""
        s = s.detach()
        same = labels[:, None] == labels
        positive = same.clone().fill_diagonal_(False)
        if self.settings.duplicates == "drop":
            positive &= s < 1 - _SAME
        negative = ~same
        kept = positive.any(1) & negative.any(1)
        hardest_p = s.masked_fill(~positive, torch.inf).amin(1)  # mined, or none is
        hardest_n = s.masked_fill(~negative, -torch.inf).amax(1)
        kept &= (hardest_p - self.settings.margin < hardest_n) & (hardest_n + self.settings.margin > hardest_p)
        return positive, negative, kept

    def _variance(self, s: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        p, n = positive.to(s.dtype), negative.to(s.dtype)
        g, count = self.settings.mean_mix, n.sum(1)
        mu = g * (s * p).sum(1) / p.sum(1) + (1 - g) * (s * n).sum(1) / count
        total = ((s - mu[:, None]).square() * n).sum(1)
        return total if self.settings.reduction_var == "sum" else total / count

    def _mined(self, s: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        s = s.detach()
        below = s.masked_fill(~negative, -torch.inf)
        mined_p = positive & (s - self.settings.margin < below.amax(1, keepdim=True))
        if self.settings.adaptive_neg:
            least = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
            return mined_p, negative & (s + self.settings.margin > least)
        largest = below.topk(min(self.settings.topk_neg, s.shape[1]), dim=1).indices
        return mined_p, negative & torch.zeros_like(negative).scatter(1, largest, True)

    def _log_sum(self, s: Tensor, mined: Tensor, centre: float, scale: float) -> Tensor:
        """log sum exp((s - centre) / scale) over the mined pairs; each row has one."""
        return ((s - centre) / scale).masked_fill(~mined, -torch.inf).logsumexp(1)

    def _value(self, log_sum: Tensor, weight: float) -> Tensor:
        if self.settings.form == "constant":
            return 1 + weight * log_sum.exp()
        log = torch.logaddexp(log_sum, torch.zeros_like(log_sum))  # of 1 + the sum
        return log if self.settings.form == "log" else (log / 2).exp()
