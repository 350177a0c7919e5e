"""Nearest neighbours among trusted examples."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.registry import component

_PAIRS = 1 << 24  # distances held at once


@component("detector", "knn", systems=("ood_human_centric",))
class KNN:
    """Distance to the k-th nearest trusted example, between features h / |h|.

    Exact: every pair is compared. k: which neighbour counts. Fitted on the features of trusted examples; none of them
    may be scored afterwards, since each is its own nearest neighbour.

    Reference: Sun, Ming, Zhu, Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022, arXiv 2204.06507.
    """

    k: int = 50

    taps = ("penultimate",)
    needs_input = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise bad("k", self.k, "a whole number >= 1")

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """The bank of unit features [M, D]. Raises BadInput for fewer than k examples."""
        h = features["penultimate"].flatten(1)
        if len(h) < self.k:
            raise bad(
                "k", self.k, f"at most {len(h)}, the number of trusted examples", "Give more of them or a smaller k."
            )
        return {"bank": F.normalize(h, dim=1)}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        bank, h = fitted["bank"], F.normalize(features["penultimate"].flatten(1), dim=1)
        block = max(1, _PAIRS // len(bank))
        squared = [
            (2 - 2 * part @ bank.to(part).T).topk(self.k, dim=1, largest=False).values[:, -1] for part in h.split(block)
        ]
        return torch.cat(squared).clamp_min(0).sqrt().double()
