"""Self-supervision without negatives."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from withstand.models.feature_encoder import FeatureEncoder
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.representation.encoders import EncoderRecipe, say_spread
from withstand.representation.simclr import needs
from withstand.training.recipe import Step


@component("recipe", "simsiam", systems=("csl_robustness",))
class SimSiam(EncoderRecipe):
    """Two views predict each other, with no negatives: the method beside which contrast is seen for what it is.

    min -1/2 [cos(p(z1), stop(z2)) + cos(p(z2), stop(z1))], z the projection, p a predictor, stop a barrier to gradients,
    which keeps it from collapsing.

    dim: length of the projection (three layers with batch norm, the last without scale and shift). bottleneck: width of
    the predictor's hidden layer, None a quarter of dim. views: augmentations, drawn apart for the two views. Batches
    need two examples at least.

    Reference: Chen, He, "Exploring Simple Siamese Representation Learning", 2021, arXiv 2011.10566.
    """

    dim: int = 128
    bottleneck: int | None = None

    def __post_init__(self) -> None:
        needs(dim=self.dim, bottleneck=self.bottleneck)

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system = super().setup(model, data, rows)
        narrow = self.bottleneck or max(1, self.dim // 4)
        system.predictor = nn.Sequential(
            nn.Linear(self.dim, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Linear(narrow, self.dim)
        )
        return system

    def projector(self, encoder: FeatureEncoder) -> nn.Module:
        def layer(a: int) -> list[nn.Module]:
            return [nn.Linear(a, self.dim, bias=False), nn.BatchNorm1d(self.dim)]

        parts = [*layer(encoder.width), nn.ReLU(), *layer(self.dim), nn.ReLU(), *layer(self.dim)]
        last = parts[-1]
        assert isinstance(last, nn.BatchNorm1d)
        parts[-1] = nn.BatchNorm1d(last.num_features, affine=False)
        return nn.Sequential(*parts)

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        first, second = batch.extra["views"].chunk(2)
        z1, z2 = system(first), system(second)  # one after the other: batch norm sees one view at a time
        say_spread(step, z1)
        return -(towards(system.predictor(z1), z2) + towards(system.predictor(z2), z1)) / 2


def towards(p: Tensor, z: Tensor) -> Tensor:
    """The mean cosine of predictions with targets [N, d], which get no gradient."""
    return F.cosine_similarity(p, z.detach(), dim=1).mean()
