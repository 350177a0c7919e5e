"""Adversarial training, the common baseline of the field."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.hardening.terms import say_accuracy
from withstand.protocols import Batch
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import Recipe, Step


@component("recipe", "pgd_at")
class PGDAT(Recipe):
    """Adversarial training: the cross-entropy of adversarial examples alone.

    min E[CE(f(x'), y)], x' = attack on CE(f(.), y) around x.

    attack: the inner maximisation; by default 10 steps of 2/255 in the ball of 8/255, from a uniform start, on the model in
    eval mode (Madry's own attack runs in train mode: pgd(mode="train")).

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, arXiv 1706.06083.
    """

    attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 4)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        return replace(batch, x=step.attack(self.attack, system.model, batch.x, batch.y))

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        adversarial = system(batch.x)
        say_accuracy(step, batch.y, adversarial=adversarial)
        return step.cross_entropy(adversarial, batch.y)  # type: ignore[arg-type]
