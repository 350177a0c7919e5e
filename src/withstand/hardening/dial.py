"""Domain invariant adversarial learning."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import at_least_zero, divergence, on_term, say_accuracy
from withstand.models.layers.gradient_reversal import reverse_gradient
from withstand.models.state import frozen
from withstand.models.taps import penultimate, see, vectors
from withstand.objectives import KL, CrossEntropy
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import Recipe, Step, System


@component("recipe", "dial", systems=("dial",))
class DIAL(Recipe):
    """Adversarial training against a domain head that tries to tell adversarial features from natural ones.

    L = CE(C(z), y) + beta R + domain_weight (CE(D(GRL_r(z)), 0) + CE(D(GRL_r(z')), 1)),
    z, z' the pooled features of x and x', C the classifier's last layer, D the domain head, GRL_r the identity whose
    gradient is multiplied by -r, so that D learns to tell and the features learn not to be told.

    robust: R = CE(C(z'), y) for "ce", KL(softmax C(z) || softmax C(z')) for "kl" (then it is TRADES with a domain head; the
    gradient flows through both sides). attack: on the same term, its objective is set by `robust`; 10 steps of 0.007 in
    the ball of 0.031 from x + 0.001 N(0, 1). beta, domain_weight >= 0: 1 and 1 begin well with "ce"; the official CIFAR-10
    run of "kl" has 8 and 6. reversal: r, a number in [0, 1], or "dann": 2 / (1 + exp(-10 p)) - 1 with p the progress;
    "dann_epoch" takes p = epoch / epochs, counted from 1, which is what the official code comes to.
    head_width: hidden units of D; officially 100, and 32 for ResNet-18. features: a submodule whose output stands for z.

    joint_domain_norm: D sees both domains in one batch. The official head (False) sees them one by one, and its batch norm
    then hides every shift of mean and scale between them from it. The classifier itself always makes two passes, the
    natural one first, so its batch norm normalises the domains apart.

    The domain head does not ship. For what it does, compare with domain_weight=0. The official script picks its
    checkpoint on the test set; here the validation set decides.

    Reference: Levi, Attias, Kontorovich, "Domain Invariant Adversarial Learning", 2022, arXiv 2104.00322. Schedule: Ganin
    et al., "Domain-Adversarial Training of Neural Networks", 2016, arXiv 1505.07818.
    """

    attack: AttackField = PGD(Linf(0.031), steps=10, step=7 / 31, random_start=0.001)
    robust: Literal["ce", "kl"] = "ce"
    beta: float = 1.0
    domain_weight: float = 1.0
    reversal: float | Literal["dann", "dann_epoch"] = "dann"
    head_width: int = 100
    joint_domain_norm: bool = True
    features: str | None = None

    def __post_init__(self) -> None:
        at_least_zero(beta=self.beta, domain_weight=self.domain_weight)
        if isinstance(self.reversal, float) and not 0 <= self.reversal <= 1:
            raise bad("reversal", self.reversal, 'a number in [0, 1], "dann" or "dann_epoch"')
        if self.head_width < 1:
            raise bad("head_width", self.head_width, "a whole number >= 1")
        on_term(self.attack, self._objective)

    @property
    def _objective(self) -> Any:
        return CrossEntropy() if self.robust == "ce" else KL()

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        model, x = copy.deepcopy(model), data.batch([0]).x
        tap = penultimate(model, x, self.features)
        with torch.no_grad(), frozen(model):
            width = vectors(see(model, x, tap)[1]).shape[1]
        head = {"domain": domain_head(width, self.head_width)} if self.domain_weight else {}  # none that never learns
        system: Any = System(model, **head)
        system.tap = tap
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        adversarial = step.attack(on_term(self.attack, self._objective), system.model, batch.x, batch.y)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        natural, z = see(system.model, batch.x, system.tap)
        adversarial, z_adv = see(system.model, batch.extra["adversarial"], system.tap)
        clean, robust = step.cross_entropy(natural, batch.y), self._robust(natural, adversarial, batch.y, step)  # type: ignore[arg-type]
        say_accuracy(step, batch.y, clean=natural, adversarial=adversarial)
        step.say("loss_clean", clean)
        step.say("loss_robust", robust)
        loss = clean + self.beta * robust
        if self.domain_weight == 0:
            return loss
        r = self.strength(step)
        ends = [reverse_gradient(vectors(h), r) for h in (z, z_adv)]
        told = told_apart(system.domain, ends[0], ends[1], self.joint_domain_norm)
        domain = sum(F.cross_entropy(t, torch.full((len(t),), d, device=t.device)) for d, t in enumerate(told))
        assert isinstance(domain, Tensor)
        step.say("loss_domain", domain)
        step.say("domain_accuracy", torch.cat([t.argmax(1) == d for d, t in enumerate(told)]).float().mean())
        step.say("reversal", r)
        return loss + self.domain_weight * domain

    def _robust(self, natural: Tensor, adversarial: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(adversarial, y) if self.robust == "ce" else divergence(natural, adversarial).mean()

    def strength(self, step: Step) -> float:
        """r, the factor of the reversed gradient."""
        if isinstance(self.reversal, float):
            return self.reversal
        p = step.progress if self.reversal == "dann" else (step.epoch + 1) / step.epochs
        return 2 / (1 + math.exp(-10 * p)) - 1


def domain_head(features: int, width: int) -> nn.Sequential:
    """D: logits of (natural, adversarial) from features [N, D]."""
    return nn.Sequential(nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def told_apart(domain: Callable[[Tensor], Tensor], z: Tensor, z_adv: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
    """What the domain head says of natural and adversarial features, in one batch or in two."""
    if joint:
        one, two = domain(torch.cat([z, z_adv])).chunk(2)
        return one, two
    return domain(z), domain(z_adv)
