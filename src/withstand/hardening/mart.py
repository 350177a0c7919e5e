"""MART: misclassified examples count more."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import at_least_zero, say_accuracy
from withstand.objectives import at
from withstand.protocols import Batch
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import Recipe, Step


@component("recipe", "mart")
class MART(Recipe):
    """Adversarial training that weighs examples by how little the clean prediction trusts the label.

    min E[BCE(p', y) + beta * KL(p, p') * (1 - p_y)], p = softmax f(x), p' = softmax f(x'), x' = attack on CE(f(.), y),
    BCE(p', y) = CE(f(x'), y) - log(1 - max_{k != y} p'_k).

    attack: the inner maximisation; by default 10 steps of 2/255 in the ball of 8/255, from Gaussian noise of 0.001. beta:
    weight of the divergence (5 in the official script, lambda in the paper). The weight 1 - p_y is learned through as well.
    The official code's small constants are kept: log(1.0001 - p' + 1e-12), log(p' + 1e-12), 1.0000001 - p_y.
    Smoothed labels enter the CE alone. The official settings have weight decay 3.5e-3 and learning rate 0.01 for ResNet-18.
    Its accuracy under PGD is known to stand several points above that under AutoAttack: judge it by the latter.

    Reference: Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020
    (no arXiv version).
    """

    attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 4, random_start=0.001)
    beta: float = 5.0

    def __post_init__(self) -> None:
        at_least_zero(beta=self.beta)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        if batch.y is None or batch.y.dim() != 1:
            got = "none" if batch.y is None else f"soft labels {tuple(batch.y.shape)}"
            raise bad("labels", got, "class indices [N]", "MART needs a label to trust: train without mixup.")
        adversarial = step.attack(self.attack, system.model, batch.x, batch.y)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        y: Any = batch.y
        clean, adversarial = system(batch.x), system(batch.extra["adversarial"])
        say_accuracy(step, y, clean=clean, adversarial=adversarial)
        boosted = step.cross_entropy(adversarial, y) + wrong_class(adversarial, y).mean()
        robust = weighted_divergence(clean, adversarial, y).mean()
        step.say("loss_adversarial", boosted)
        step.say("loss_kl", robust)
        return boosted + self.beta * robust


def wrong_class(logits: Tensor, y: Tensor) -> Tensor:
    """-log(1.0001 - max_{k != y} p_k + 1e-12), [N]: what the best wrong class adds to the cross-entropy."""
    wrong = logits.float().softmax(1).scatter(1, y[:, None], 0).amax(1)
    return -torch.log(1.0001 - wrong + 1e-12)


def weighted_divergence(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """KL(p, p') (1.0000001 - p_y), [N]."""
    log_p, q = clean.float().log_softmax(1), adversarial.float().softmax(1)
    p = log_p.exp()
    return (p * (log_p - torch.log(q + 1e-12))).sum(1) * (1.0000001 - at(p, y))
