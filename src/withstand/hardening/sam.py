"""Sharpness-aware minimisation, around any recipe with one update."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from withstand.hardening.around import Around, Shifts, SingleField, moved
from withstand.hardening.terms import at_least_zero
from withstand.models.state import buffers_kept
from withstand.protocols import Batch, Update
from withstand.registry import component
from withstand.training.recipe import Step


@component("recipe", "sam")
class SAM(Around):
    """A recipe whose gradient is taken a step uphill (sharpness-aware minimisation).

    w <- optimiser(w, grad L(w + e)), e = rho * g / |g|, g = grad L(w), L the recipe's loss of the batch, |g| the Euclidean
    norm over all parameters that learn.

    recipe: one that makes one update of each batch; adversarial examples are crafted once, at w. rho: length of e.

    The first pass moves the running statistics of batch norm, the second does not. e is of the gradient averaged over all
    processes; where a batch is cut into parts, each part has its own.

    Reference: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    2021, arXiv 2010.01412.
    """

    recipe: SingleField
    rho: float = 0.05

    def __post_init__(self) -> None:
        at_least_zero(rho=self.rho)

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        until_step = ExitStack()

        def loss() -> Tensor:
            shifts = self.shifts(system, batch, step)
            until_step.enter_context(buffers_kept(system))
            until_step.enter_context(moved(shifts))
            return self.recipe.loss(system, batch, step)

        yield Update(loss, before_step=until_step.close)

    def shifts(self, system: Any, batch: Batch, step: Step) -> Shifts:
        """The parameters that learn, each with its part of e."""
        pairs = self.gradient(system, batch, step)
        with torch.no_grad():
            norm = torch.stack([g.norm() for _, g in pairs]).norm().clamp_min(1e-20)
            return [(p, g * (self.rho / norm)) for p, g in pairs]
