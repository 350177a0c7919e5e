"""Density of the last hidden layer's features around the class that the model says."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from withstand.detection.adversarial.classes import class_labels
from withstand.errors import bad
from withstand.registry import component

_PAIRS = 1 << 24  # distances held at once
_GRID = 41


@component("detector", "kernel_density", systems=("classic_attacks",))
class KernelDensity:
    """Kernel density of the features among trusted examples of the predicted class: -log p(h | t).

    p(h | t) = 1/n_t sum_{i: y_i = t} N(h; h_i, b^2 I), with h what the last layer reads, t the predicted class.

    bandwidth: b; the paper's kernel exp(-d^2 / s^2) has s^2 = 2 b^2. None (our default) takes the value, of 41 around the
    typical distance of neighbours, whose leave-one-out likelihood of the trusted examples is largest; the paper tunes one
    value per data set in the same spirit.

    Reference: Feinman, Curtin, Shintre, Gardner, "Detecting Adversarial Samples from Artifacts", 2017, arXiv 1703.00410.
    """

    bandwidth: float | None = None

    taps = ("penultimate", "logits")
    needs_input = False

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise bad("bandwidth", self.bandwidth, "a number > 0, in units of the features, or None to fit it")

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """The trusted features [M, D], their labels and the bandwidth. Raises BadInput without two examples per class."""
        h = features["penultimate"].flatten(1).double()
        y = class_labels(y, features["logits"], least=2)
        found = self.bandwidth if self.bandwidth is not None else _likeliest(h, y)
        return {"bank": h, "labels": y, "bandwidth": torch.tensor(found, dtype=h.dtype, device=h.device)}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        bank, labels, b = fitted["bank"], fitted["labels"], fitted["bandwidth"]
        h, said = features["penultimate"].flatten(1).double(), features["logits"].argmax(1)
        block = max(1, _PAIRS // len(bank))
        parts = []
        for part, t in zip(h.split(block), said.split(block)):
            other = labels != t[:, None]
            exponent = (-squared(part, bank) / (2 * b**2)).masked_fill(other, -torch.inf)
            parts.append(exponent.logsumexp(1) - (~other).sum(1).log())
        return bank.shape[1] / 2 * (2 * math.pi * b**2).log() - torch.cat(parts)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [N, M] of rows, each from its own differences, so that they do not depend on the batch."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def _likeliest(h: Tensor, y: Tensor) -> float:
    """The bandwidth with the largest leave-one-out likelihood; for D features it is of the order of r / sqrt(D), where r is
    the typical distance to the nearest example of the same class."""
    groups = []
    for label in y.unique():
        own = squared(h[y == label], h[y == label])
        groups.append(own.fill_diagonal_(torch.inf))
    nearest = torch.cat([g.amin(1) for g in groups])
    if not bool((nearest > 0).any()):
        raise bad("data", "features that are all alike", "trusted examples with different features")
    size = h.shape[1]
    unit = float((nearest[nearest > 0].median() / size).sqrt())
    best = (-math.inf, unit)
    for step in range(_GRID):
        b = unit * 10 ** (step / ((_GRID - 1) / 2) - 1)
        gain = sum(float((-g / (2 * b * b)).logsumexp(1).sum()) for g in groups)
        best = max(best, (gain - len(h) * size * math.log(b), b))
    return best[1]
