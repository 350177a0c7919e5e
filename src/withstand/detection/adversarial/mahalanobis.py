"""Mahalanobis distance of hidden features to the nearest class."""

from collections.abc import Mapping

import torch
from torch import Tensor

from withstand.detection.adversarial.layered import Layered
from withstand.detection.ood.logits import labels_of
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
        whiten, classes = tied(h, y)
        own = {"whiten": whiten, "means": classes}
        return own, self.score_layer(h, own)

    def score_layer(self, h: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        z = h @ own["whiten"]
        return torch.stack([(z - mean).square().sum(1) for mean in own["means"]], 1).amin(1)


def tied(h: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """What whitens the features h [N, D] within classes, [D, R], and the whitened class means [C, R].

    Directions of next to no variance within classes are left out, so that R <= D. Raises: BadInput without labels y [N], and
    for features that do not vary within classes.
    """
    classes, at = labels_of(y, len(h)).to(h.device).unique(return_inverse=True)
    means = torch.stack([h[at == c].mean(0) for c in range(len(classes))])
    whiten = whitening(h - means[at])
    return whiten, means @ whiten


def whitening(centred: Tensor) -> Tensor:
    """What turns centred features [N, D] into uncorrelated ones of variance 1 (over N), [D, R]; see `tied`."""
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    used = variance > _FLAT * variance[-1].clamp_min(1e-300)
    if not bool(used.any()):
        raise bad("data", "features that do not vary within classes", "several different examples of a class")
    return axes[:, used] / variance[used].sqrt()
