"""TRADES: the clean loss, and how far an adversary can move the prediction."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.hardening.terms import at_least_zero, divergence, on_term, say_accuracy
from withstand.objectives import KL
from withstand.protocols import Batch
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import Recipe, Step


@component("recipe", "trades")
class TRADES(Recipe):
    """Clean loss plus the divergence between clean and adversarial predictions.

    min E[CE(f(x), y) + beta * KL(p, p')], p = softmax f(x), p' = softmax f(x'), x' = attack on KL(p, softmax f(.)).

    attack: the inner maximisation, always on the divergence; by default 10 steps of 2/255 in the ball of 8/255 (the official
    code has 0.031, which is 7.9/255), from Gaussian noise of 0.001, against the clean prediction of the model in eval mode.
    beta: weight of the divergence, 1 to 10; 0 is plain training as far as the loss goes.

    Gradients flow through p and p'. The network sees clean and adversarial examples in two passes. Differs from the official
    code in cost alone where there is no dropout or batch norm: that passes the clean batch through the network a second
    time, and once more in every step of the attack.

    Reference: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019, arXiv 1901.08573.
    """

    attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 4, random_start=0.001, objective=KL())
    beta: float = 6.0

    def __post_init__(self) -> None:
        on_term(self.attack, KL())
        at_least_zero(beta=self.beta)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        adversarial = step.attack(on_term(self.attack, KL()), system.model, batch.x, batch.y)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        clean, adversarial = system(batch.x), system(batch.extra["adversarial"])
        say_accuracy(step, batch.y, clean=clean, adversarial=adversarial)
        natural = step.cross_entropy(clean, batch.y)  # type: ignore[arg-type]
        robust = divergence(clean, adversarial).mean()
        step.say("loss_clean", natural)
        step.say("loss_kl", robust)
        return natural + self.beta * robust
