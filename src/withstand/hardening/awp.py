"""Adversarial weight perturbation, around any recipe with one update."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from withstand.errors import bad
from withstand.hardening.around import Around, Shifts, SingleField, move
from withstand.hardening.terms import at_least_zero
from withstand.models.state import buffers_kept
from withstand.protocols import Batch, Update
from withstand.registry import component
from withstand.training.recipe import Step


@component("recipe", "awp")
class AWP(Around):
    """A recipe at weights that were moved to where its loss is larger (adversarial weight perturbation).

    min over w of L(w + v), v = gamma * |w| * g / |g| for each tensor of more than one dimension, g the gradient of L, the
    recipe's loss of the same batch, at w in train mode; norms are Euclidean, of each tensor. Biases and batch norm have one
    dimension and stay. After the optimiser's step v is taken off again.

    recipe: one that makes one update of each batch. gamma: size of v relative to the weights; published are 0.01 around
    pgd_at and 0.005 around trades. warmup: epochs without it, at first; published are 0 and 10.

    The pass that finds g leaves the buffers as they are. v is of the gradient averaged over all processes; where a batch is
    cut into parts, each part has its own. The official code takes the tensors with "weight" in their name; here all count.

    Reference: Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", 2020, arXiv 2004.05884.
    """

    recipe: SingleField
    gamma: float = 0.01
    warmup: int = 0

    def __post_init__(self) -> None:
        at_least_zero(gamma=self.gamma)
        if self.warmup < 0:
            raise bad("warmup", self.warmup, "a whole number of epochs >= 0")

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        if step.epoch < self.warmup:
            yield from self.recipe.updates(system, batch, step)
            return
        shifts: list[tuple[Any, Tensor]] = []
        before: list[Tensor] = []

        def loss() -> Tensor:
            shifts.extend(self.shifts(system, batch, step))
            before.extend(p.detach().clone() for p, _ in shifts)
            move(shifts)
            return self.recipe.loss(system, batch, step)

        yield Update(loss)
        with torch.no_grad():
            for (p, v), w in zip(shifts, before):
                p.copy_(torch.where(p == w + v, w, p - v))  # what did not move comes back bit for bit

    def shifts(self, system: Any, batch: Batch, step: Step) -> Shifts:
        """The parameters that are perturbed, each with its v."""
        with buffers_kept(system):
            pairs = self.gradient(system, batch, step)
        with torch.no_grad():
            return [(p, g * (self.gamma * p.norm() / g.norm().clamp_min(1e-20))) for p, g in pairs if p.dim() > 1]
