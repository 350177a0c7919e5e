"""Plain training, the baseline of all recipes."""

from typing import Any

from torch import Tensor

from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.recipe import Recipe, Step


@component("recipe", "standard")
class Standard(Recipe):
    """Plain training: the cross-entropy of clean examples."""

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        return step.cross_entropy(system(batch.x), batch.y)  # type: ignore[arg-type]
