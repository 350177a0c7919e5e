"""Mahalanobis distance of hidden features to the nearest class."""

from collections.abc import Mapping

import torch
from torch import Tensor

from withstand.detection.adversarial.layered import Layered
from withstand.errors import bad
from withstand.registry import component

_FLAT = 1e-6
"""Directions with less than this share of the largest variance say nothing and are left out."""


@component("detector", "mahalanobis", systems=("classic_attacks",))
class Mahalanobis(Layered):
    """Mahalanobis distance to the nearest class with one covariance for all, summed over layers.

    s_l(x) = min_c (h - m_c)^T S^+ (h - m_c), with m_c the mean of class c, S = 1/M sum_i (h_i - m_{y_i})(h_i - m_{y_i})^T
    (tied), and maps averaged over their pixels. Layers are combined as `Layered` says: equal weights (ours), or by `teach`
    (the paper's logistic regression). The paper's optional step of the input against the score is left out: it would move
    the input of every other detector of the bank.

    layers: names of submodules; empty: what the last layer reads and the outputs of the last four blocks.

    Reference: Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
    Attacks", 2018, arXiv 1807.03888.
    """

    layers: tuple[str, ...] = ()

    def fit_layer(self, h: Tensor, y: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        if y is None or y.dim() != 1 or len(y) != len(h):
            got = None if y is None else tuple(y.shape)
            raise bad("labels", got, f"the class of each of the {len(h)} trusted examples")
        classes, at = y.to(h.device).unique(return_inverse=True)
        means = torch.stack([h[at == c].mean(0) for c in range(len(classes))])
        centred = h - means[at]
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(h))
        used = variance > _FLAT * variance[-1].clamp_min(1e-300)
        if not bool(used.any()):
            raise bad("data", "features that do not vary within classes", "several different examples of a class")
        whiten = axes[:, used] / variance[used].sqrt()
        own = {"whiten": whiten, "means": means @ whiten}
        return own, self.score_layer(h, own)

    def score_layer(self, h: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        z = h @ own["whiten"]
        return torch.stack([(z - mean).square().sum(1) for mean in own["means"]], 1).amin(1)
