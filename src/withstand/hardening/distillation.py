"""Defensive distillation, which hides gradients and so shows what a trustworthy audit has to see through."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.hardening.terms import say_accuracy
from withstand.models.state import evaluating
from withstand.protocols import Batch, Dataset, Update
from withstand.random import Rows
from withstand.registry import component
from withstand.training.recipe import MakeOptimizer, Optimizers, Recipe, Step, System


@component("recipe", "distillation", systems=("classic_attacks",))
class Distillation(Recipe):
    """Defensive distillation: a student of soft labels at a temperature that is then dropped (masks gradients).

    First half of the steps: teacher, CE(t(x) / T, y). Second half: student, CE(s(x) / T, softmax(t(x) / T)), the teacher in
    eval mode and still. Deployed at T = 1, so that its logits are about T times too large: the softmax saturates, the
    gradient of the cross-entropy vanishes in floating point, and attacks that climb it stop. No robustness is gained:
    attacks on margins of logits break it.

    temperature: T >= 1. Both networks start from the given weights. An odd number of steps gives the teacher one more. The
    teacher's learning rate stays as it was given; the schedule is the student's, which meets its second half only, and
    sees nothing before: take schedule="constant" unless that is wanted. Gradients are 1 / T of those of plain training, so
    SGD wants a rate that is larger by about T. With one epoch, both halves lie in it; validation in the first half judges
    the weights that the student starts from.

    Reference: Papernot, McDaniel, Wu, Jha, Swami, "Distillation as a Defense to Adversarial Perturbations against Deep
    Neural Networks", 2016, arXiv 1511.04508; broken by Carlini, Wagner, "Towards Evaluating the Robustness of Neural
    Networks", 2017, arXiv 1608.04644.
    """

    temperature: float = 20.0

    def __post_init__(self) -> None:
        if not 1 <= self.temperature < float("inf"):
            raise bad("temperature", self.temperature, "a finite number >= 1")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        return System(copy.deepcopy(model), teacher=copy.deepcopy(model))

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        return {"main": main(system.model.parameters()), "teacher": main(system.teacher.parameters())}

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        if step.progress < 0.5:
            yield Update(partial(self._teach, system, batch, step), opt="teacher")
        else:
            yield Update(partial(self._distil, system, batch, step))

    def _teach(self, system: Any, batch: Batch, step: Step) -> Tensor:
        logits = system.teacher(batch.x)
        say_accuracy(step, batch.y, teacher=logits)
        return step.cross_entropy(logits / self.temperature, batch.y)  # type: ignore[arg-type]

    def _distil(self, system: Any, batch: Batch, step: Step) -> Tensor:
        with torch.no_grad(), evaluating(system.teacher):
            soft = (system.teacher(batch.x) / self.temperature).softmax(1)
        logits = system(batch.x)
        say_accuracy(step, batch.y, clean=logits)
        return F.cross_entropy(logits / self.temperature, soft)
