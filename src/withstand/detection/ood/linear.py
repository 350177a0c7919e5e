"""Detectors that change what the last layer reads, or look at how it reads it.

Notation: h features [N, D] that the last layer reads, z = W h + b logits [N, K], p = softmax z. The tap "head" gives W and b
as [K, D + 1]. The energy of logits is -log sum_c exp z_c.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from withstand.errors import bad
from withstand.registry import component


class _Linear:
    taps = ("penultimate", "head")
    needs_input = False

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        return {}


@component("detector", "react", systems=("ood_human_centric",))
class ReAct(_Linear):
    """Energy after features are cut off: -log sum exp(W min(h, c) + b), c a percentile of all trusted features.

    percentile: in (0, 100).

    Reference: Sun, Guo, Li, "ReAct: Out-of-distribution Detection With Rectified Activations", 2021, arXiv 2111.12797.
    """

    percentile: float = 90.0

    def __post_init__(self) -> None:
        _percentile(self.percentile)

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        return {"most": percentile(features["penultimate"].double().flatten(), self.percentile)}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        h = features["penultimate"].double()
        return energy(h.minimum(fitted["most"].to(h)), features["head"])


@component("detector", "dice", systems=("ood_human_centric",))
class DICE(_Linear):
    """Energy of sparse logits: only weights whose mean contribution W * mean(h) lies above a percentile of all are kept.

    percentile: in (0, 100), the share of weights that is left out.

    Reference: Sun, Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", 2022, arXiv 2111.09805.
    """

    percentile: float = 90.0

    def __post_init__(self) -> None:
        _percentile(self.percentile)

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        h, head = features["penultimate"].double(), features["head"].double()
        share = head[:, :-1] * h.mean(0)
        kept = share > percentile(share.flatten(), self.percentile)
        return {"head": torch.cat([head[:, :-1] * kept, head[:, -1:]], 1)}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        return energy(features["penultimate"].double(), fitted["head"])


@component("detector", "ash", systems=("ood_human_centric",))
class ASH(_Linear):
    """Energy after most features of each example are removed; the k largest stay, k = D - round(D percentile / 100).

    variant "b": each of the k becomes (sum of all h) / k; "s": the k are multiplied by exp(sum of all h / their sum);
    "p": they stay as they are.

    Reference: Djurisic, Bozanic, Ashok, Liu, "Extremely Simple Activation Shaping for Out-of-Distribution Detection", 2023,
    arXiv 2209.09858.
    """

    percentile: float = 90.0
    variant: Literal["b", "s", "p"] = "b"

    def __post_init__(self) -> None:
        _percentile(self.percentile)

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        h = features["penultimate"].double()
        k = max(1, h.shape[1] - round(h.shape[1] * self.percentile / 100))
        largest, at = h.topk(k, dim=1)
        total = h.sum(1, keepdim=True)
        if self.variant == "b":
            largest = (total / k).expand_as(largest)
        elif self.variant == "s":
            kept = largest.sum(1, keepdim=True)
            ratio = torch.where(kept == 0, 1.0, total / kept)  # nothing was active
            largest = largest * ratio.exp()
        return energy(torch.zeros_like(h).scatter(1, at, largest), features["head"])


@component("detector", "gradnorm", systems=("ood_human_centric", "bats"))
class GradNorm(_Linear):
    """Minus the L1 norm of the gradient of sum_c -log p_c by W, in closed form: (sum_c |1 - K p_c|) * |h|_1.

    temperature: T, of p = softmax(z / T); the norm is that of the gradient times T.

    Reference: Huang, Geng, Li, "On the Importance of Gradients for Detecting Distributional Shifts in the Wild", 2021,
    arXiv 2110.00218.
    """

    temperature: float = 1.0

    taps = ("logits", "penultimate")

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise bad("temperature", self.temperature, "a number > 0")

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        p = (features["logits"].double() / self.temperature).softmax(1)
        return -(1 - p.shape[1] * p).abs().sum(1) * features["penultimate"].double().abs().sum(1)


@component("detector", "vim", systems=("ood_human_centric",))
class ViM(_Linear):
    """Virtual logit: alpha |N^T (h - u)| - log sum exp z.

    u = -W^+ b; N: the eigenvectors of the trusted E[(h - u)(h - u)^T] beyond the `dim` largest; alpha = mean max_c z_c
    / mean |N^T (h - u)| over trusted examples, so that the residual is on the scale of a logit. dim: None takes 256, or
    half of the directions that trusted features use where that is less.

    Reference: Wang, Li, Feng, Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", 2022, arXiv 2203.10807.
    """

    dim: int | None = None

    taps = ("logits", "penultimate", "head")

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """Raises: BadInput for dim >= D, and trusted features without a residual."""
        h, head = features["penultimate"].double(), features["head"].double()
        origin = -torch.linalg.pinv(head[:, :-1]) @ head[:, -1]
        centred = h - origin
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(h))
        used = int((variance > 1e-9 * variance[-1]).sum())
        dim = max(1, min(256, used // 2)) if self.dim is None else self.dim
        if not 1 <= dim < h.shape[1]:
            raise bad("dim", dim, f"1 to {h.shape[1] - 1}, below the length of the features")
        null = axes[:, : h.shape[1] - dim]
        norms = (centred @ null).norm(dim=1)
        if not float(norms.mean()) > 1e-12:
            mend = "Give a smaller dim or more trusted examples."
            raise bad("dim", dim, "one that leaves the trusted features a residual", mend)
        alpha = features["logits"].double().amax(1).mean() / norms.mean()
        return {"origin": origin, "null": null, "alpha": alpha}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        h = features["penultimate"].double()
        residual = ((h - fitted["origin"].to(h)) @ fitted["null"].to(h)).norm(dim=1)
        return fitted["alpha"].to(h) * residual - features["logits"].double().logsumexp(1)


def energy(h: Tensor, head: Tensor) -> Tensor:
    """-log sum exp(W h + b) [N] of features [N, D]; head: [K, D + 1]."""
    head = head.to(h)
    return -(h @ head[:, :-1].T + head[:, -1]).logsumexp(1)


def percentile(values: Tensor, q: float) -> Tensor:
    """The q-th percentile, linear between order statistics; of any number of values."""
    ordered = values.sort().values
    place = q / 100 * (len(values) - 1)
    low = int(place)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(values) - 1)], place - low)


def _percentile(value: float) -> None:
    if not 0 < value < 100:
        raise bad("percentile", value, "a number between 0 and 100")
