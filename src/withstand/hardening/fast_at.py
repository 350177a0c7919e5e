"""Fast adversarial training: one step from a random start."""

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from withstand.attacks import PGD
from withstand.errors import bad
from withstand.hardening.terms import say_accuracy
from withstand.protocols import Batch
from withstand.registry import component
from withstand.threats import Linf, ThreatField
from withstand.training.recipe import Recipe, Step


@component("recipe", "fast_at")
class FastAT(Recipe):
    """Adversarial training with a single gradient step from a random start (FGSM-RS).

    min E[CE(f(x + d), y)], d = P(u + alpha * eps * steepest(grad_x CE(f(x + u), y))), u uniform in the ball.

    threat: the ball. alpha: length of the step as a share of eps; 1.25 is the published 10/255 at eps 8/255. start: begin
    at u, or with False at the clean point, which with alpha=1 is training with FGSM. attack_mode: of the model during the
    step; the published "train" here leaves the running statistics of batch norm as they are.

    Meant for 15 to 30 epochs with schedule one_cycle up to a learning rate of 0.2. It can collapse: within two epochs the
    accuracy under PGD falls to 0 while that under the single step rises. Validation under an attack of several steps
    shows it, and keeps the best epoch from before.

    Reference: Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", 2020, arXiv 2001.03994.
    """

    threat: ThreatField = Linf(8 / 255)
    alpha: float = 1.25
    start: bool = True
    attack_mode: Literal["eval", "train"] = "train"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise bad("alpha", self.alpha, "a share of eps > 0")
        self.attack  # noqa: B018 (refuses threats that it cannot search)

    @property
    def attack(self) -> PGD:
        """The single step."""
        return PGD(self.threat, steps=1, step=self.alpha, random_start=self.start, mode=self.attack_mode)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        return replace(batch, x=step.attack(self.attack, system.model, batch.x, batch.y))

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        adversarial = system(batch.x)
        say_accuracy(step, batch.y, adversarial=adversarial)
        return step.cross_entropy(adversarial, batch.y)  # type: ignore[arg-type]
