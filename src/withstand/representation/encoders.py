"""What the recipes of self-supervised encoders share: two views of each example, a projector that stays behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.feature_encoder import FeatureEncoder, encoder_of
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows, derive
from withstand.representation.measures import effective_rank
from withstand.representation.recipe import EmbeddingRecipe
from withstand.training.augment import AugmentationsField
from withstand.training.augment.simclr import ColourJitter, Grayscale, RandomResizedCrop
from withstand.training.recipe import Step, System

VIEWS: tuple[Any, ...] = (RandomResizedCrop(), ColourJitter(), Grayscale())
"""The augmentations of SimCLR for small images, but that its crops begin at 0.08 of the area, these at 0.2; it adds blur
for large ones."""


class Projected(System):
    """An encoder and what training puts upon it; a pass gives projections [N, d]."""

    projector: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(self.model.features(x))  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe(EmbeddingRecipe):
    """A recipe that ships the features of an encoder, trained without labels.

    The last epoch is what counts, since nothing without labels tells which is best; Recall@1 on the validation examples
    is shown where they have labels. Each process contrasts the examples of its own share of a batch, and with
    `accumulate` those of each part.
    """

    labelled: ClassVar[bool] = False
    selects_on: ClassVar[tuple[str, str] | None] = None
    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam(1e-3)",
        "schedule": "cosine",
        "batch": 256,
        "epochs": 100,
    }

    views: AugmentationsField = VIEWS

    def deploy(self, model: Any, space: Space) -> nn.Module:
        return encoder_of(model)

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        encoder = encoder_of(model)
        return Projected(encoder, projector=self.projector(encoder))

    def projector(self, encoder: FeatureEncoder) -> nn.Module:
        """What maps features [N, width] to where the loss is taken."""
        raise NotImplementedError

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        """Two views of each example, [2n, ...] in `extra`; labels do not come along."""
        return replace(batch, y=None, extra={**batch.extra, "views": self.pair(batch, step)})

    def pair(self, batch: Batch, step: Step) -> Tensor:
        """First views, then second views, [2n, ...], drawn apart for each example."""
        return torch.cat([view(self.views, batch, step, k) for k in range(2)])

    def validate(
        self,
        model: nn.Module,
        data: Dataset,
        attack: Any,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world: int = 1,
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> dict[str, float]:
        if data.batch([0]).y is None:
            return {}
        return super().validate(model, data, attack, device, seed, rank, world, total)

    def remark(self, history: Sequence[Mapping[str, Any]]) -> str:
        if len(history) % 10:  # all begin close together
            return ""
        last, mend = history[-1], "the training has collapsed. Lower the learning rate, or q_max."
        if last.get("uniformity", -1.0) > -0.05:
            return f"all projections lie at nearly one point: {mend}"
        if last.get("effective_rank", 2.0) < 1.5:
            return f"all projections lie along nearly one line: {mend}"
        return ""


def view(augmentations: Sequence[Any], batch: Batch, step: Step, k: int) -> Tensor:
    """View number k of each example, [N, ...]."""
    own = replace(step, rows=Rows(derive(step.rows.seed, "view", k), step.rows.ids))
    bare = replace(batch, y=None, extra={})
    with torch.autocast(batch.x.device.type, enabled=False):  # half precision would round where a crop lies
        for augmentation in augmentations:
            bare = augmentation(bare, own, 0)
    return bare.x


def say_spread(step: Step, z: Tensor) -> None:
    """Log how projections [N, d] are spread: `uniformity`, in [-8, 0], towards 0 they collapse to a point; and
    `effective_rank`, how many directions they use."""
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z.detach().float(), dim=1)
        near = (-2 * (2 - 2 * unit @ unit.T)).exp()
        n = len(z)
        step.say("uniformity", ((near.sum() - near.diagonal().sum()) / (n * n - n)).log())
        if bool(unit.isfinite().all()) and bool(unit.any()):
            step.say("effective_rank", effective_rank(unit))


def labels_of(data: Dataset, purpose: str) -> None:
    """Refuse examples without labels."""
    if not data.classes or data.batch([0]).y is None:
        raise bad("data", f"{data.name}, without labels", f"labelled examples, which {purpose} uses")
