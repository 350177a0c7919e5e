"""Local intrinsic dimensionality of hidden features."""

from collections.abc import Mapping

import torch
from torch import Tensor

from withstand.detection.adversarial.layered import Layered
from withstand.errors import bad
from withstand.registry import component


@component("detector", "lid", systems=("classic_attacks",))
class LID(Layered):
    """Local intrinsic dimensionality of each layer's features: -(1/k sum_i log(r_i / r_k))^-1, summed over layers.

    r_i: distance to the i-th nearest example of a batch of trusted ones, which stays the same for all inputs, so that a
    score does not depend on what else is scored. The paper takes the batch that an example was drawn with; maps are
    averaged over their pixels here, where the paper flattens them. Layers are combined as `Layered` says: equal weights
    (ours), or by `teach` (the paper's logistic regression).

    k: neighbours. batch: trusted examples to look for them in, spread evenly over those given. layers: names of
    submodules; empty: what the last layer reads and the outputs of the last four blocks.

    Reference: Ma et al., "Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality", 2018, arXiv
    1801.02613.
    """

    k: int = 20
    batch: int = 100
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.k < self.batch:
            raise bad("k", self.k, f"a whole number from 2 to batch - 1 = {self.batch - 1}")

    def fit_layer(self, h: Tensor, y: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        if len(h) <= self.k:
            raise bad(
                "data", f"{len(h)} trusted examples", f"more than k = {self.k}", "Give more, or take a smaller k."
            )
        chosen = torch.linspace(0, len(h) - 1, min(self.batch, len(h)), device=h.device).round().long()
        distance = _distances(h, h[chosen])
        distance[chosen, torch.arange(len(chosen), device=h.device)] = torch.inf  # nothing is its own neighbour
        return {"batch": h[chosen]}, _dimension(distance, self.k)

    def score_layer(self, h: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        return _dimension(_distances(h, own["batch"]), self.k)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _dimension(distance: Tensor, k: int) -> Tensor:
    """[N] of distances [N, M]; k equal distances would give infinity, and are taken for a dimension of 10^4."""
    r = distance.topk(k, dim=1, largest=False, sorted=True).values.clamp_min(1e-12)
    return -1 / (r / r[:, -1:]).log().mean(1).clamp_max(-1e-4)
