"""Detectors that compare features with those of the classes. Notation: h features [N, D] that the last layer reads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from withstand.detection.adversarial.mahalanobis import tied, whitening
from withstand.detection.ood.logits import labels_of
from withstand.registry import component


@component("detector", "mds", systems=("ood_human_centric",))
class MDS:
    """Mahalanobis distance to the nearest class: min_c (h - m_c)^T S^-1 (h - m_c), S the covariance within classes.

    Of one layer, without a step of the input; S over N examples, directions of next to no variance left out. For several
    layers see `mahalanobis`.

    Reference: Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
    Attacks", 2018, arXiv 1807.03888.
    """

    taps = ("penultimate",)
    needs_input = False

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """Raises: BadInput without labels."""
        whiten, means = tied(features["penultimate"].double(), y)
        return {"whiten": whiten, "means": means}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        return to_classes(features["penultimate"].double(), fitted).amin(1)


@component("detector", "rmds", systems=("ood_human_centric",))
class RMDS:
    """Relative Mahalanobis distance: that to the nearest class (`mds`) less that to all trusted examples as one.

    (h - m)^T S0^-1 (h - m) with m and S0 the mean and covariance of all.

    Reference: Ren, Fort, Liu, Roy, Padhy, Lakshminarayanan, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD
    Detection", 2021, arXiv 2106.09022.
    """

    taps = ("penultimate",)
    needs_input = False

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """Raises: BadInput without labels."""
        h = features["penultimate"].double()
        whiten, means = tied(h, y)
        mean = h.mean(0)
        return {"whiten": whiten, "means": means, "mean": mean, "whiten_all": whitening(h - mean)}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        h = features["penultimate"].double()
        background = ((h - fitted["mean"].to(h)) @ fitted["whiten_all"].to(h)).square().sum(1)
        return to_classes(h, fitted).amin(1) - background


@component("detector", "she", systems=("ood_human_centric",))
class SHE:
    """Minus the inner product of h with the stored pattern of the predicted class.

    The pattern is the mean h of trusted examples of the class that are classified right; zero for a class without any.

    Reference: Zhang et al., "Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern
    Hopfield Energy", ICLR 2023.
    """

    taps = ("logits", "penultimate")
    needs_input = False

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """Raises: BadInput without labels."""
        h, z = features["penultimate"].double(), features["logits"]
        said = z.argmax(1)
        right = said == labels_of(y, len(z)).to(z.device)
        patterns = h.new_zeros(z.shape[1], h.shape[1]).index_add(0, said[right], h[right])
        counts = torch.bincount(said[right], minlength=z.shape[1]).clamp_min(1)
        return {"patterns": patterns / counts[:, None]}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        h = features["penultimate"].double()
        return -(h * fitted["patterns"].to(h)[features["logits"].argmax(1)]).sum(1)


def to_classes(h: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
    """Squared Mahalanobis distances [N, C]."""
    z = h @ fitted["whiten"].to(h)
    return torch.stack([(z - mean).square().sum(1) for mean in fitted["means"].to(h)], 1)
