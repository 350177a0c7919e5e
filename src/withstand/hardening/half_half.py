"""Half clean, half adversarial: the oldest mix."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.hardening.terms import say_accuracy
from withstand.protocols import Batch
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import Recipe, Step


@component("recipe", "half_half")
class HalfHalf(Recipe):
    """Adversarial training on clean and adversarial examples in equal parts.

    min E[CE(f(x), y) / 2 + CE(f(x'), y) / 2], x' = attack on CE(f(.), y) around x.

    attack: the inner maximisation; by default 10 steps of 2/255 in the ball of 8/255. norm: "two_pass" sends clean and
    adversarial examples through the network one after the other, so that batch norm normalises each by its own
    statistics and blends both into the running ones; "joint" sends them through together. Without batch norm (and
    dropout) the two are equal.

    Reference: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", 2015, arXiv 1412.6572.
    """

    attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 4)
    norm: Literal["two_pass", "joint"] = "two_pass"

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        adversarial = step.attack(self.attack, system.model, batch.x, batch.y)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        both = batch.x, batch.extra["adversarial"]
        clean, adversarial = system(torch.cat(both)).chunk(2) if self.norm == "joint" else map(system, both)
        say_accuracy(step, batch.y, clean=clean, adversarial=adversarial)
        y: Any = batch.y
        natural, robust = step.cross_entropy(clean, y), step.cross_entropy(adversarial, y)
        step.say("loss_clean", natural)
        step.say("loss_adversarial", robust)
        return (natural + robust) / 2
