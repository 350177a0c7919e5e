"""Feature adaptive adversarial training."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import divergence, say_accuracy
from withstand.models.state import frozen
from withstand.models.taps import last_map, penultimate, see, vectors
from withstand.protocols import Batch, Dataset, Update
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.augment import as_shares
from withstand.training.optimizers import Adam, OptimizerField
from withstand.training.recipe import MakeOptimizer, Optimizers, Recipe, Step, System


@component("recipe", "faat", systems=("faat",))
class FAAT(Recipe):
    """Adversarial training against a discriminator that knows class and domain of features.

    D gives 2K logits: (adversarial, class 1..K), then (natural, class 1..K). With a(y) the label's one-hot row,
    S(t) = clamp(t, s / (K - 1), 1 - s), q_nat = S([0, a(y)]), q_adv = S([a(y), 0]), H(q, D) = -sum_j q_j log softmax(D)_j:
    discriminator   1/2 H(q_nat, D(z)) + 1/2 H(q_adv, D(z')), z and z' held fixed;
    classifier      l1 CE(C(z), y) + l2 CE(C(z'), y) + l3 (domain term) + l4 KL(softmax C(z) || softmax C(z')), D held fixed.

    attack: 10 steps of 2/255 in the ball of 8/255. weights: (l1, l2, l3, l4), each >= 0; the published ones are plain
    adversarial training and a small domain term. move: whose features are to be taken for the other domain's of their own
    class: "natural", H(q_adv, D(z)); "adversarial", H(q_nat, D(z')); or "both", the sum.
    discriminator: "conv" on the last map before the pool (at least 4 x 4 pixels), "mlp" on pooled features.
    smoothing: s in [0, 1/2); the rows of targets do not sum to 1, as published. optimizer: of D, at a constant rate.
    features: a submodule whose output stands for z. Labels may be shares [N, K].

    variant="published": the released code fills the zero half of each target with the one-hot row of class 0, so that the
    two domains of class 0 have the same target. Beside this, the released discriminator fits maps of 8 x 8 only; here
    the last map is pooled to 2 x 2 first, which changes nothing there. The paper's numbers could not be confirmed.

    Two passes, the natural one first; the running statistics of batch norm blend both domains. What D learned does not
    ship. For what it does, compare with l3 = 0.

    Reference: Yin, Xie, Zhu, Liu, Chen, "Push Stricter to Decide Better: A Class-Conditional Feature Adaptive Framework for
    Improving Adversarial Robustness", 2021, arXiv 2112.00323.
    """

    attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 4)
    weights: tuple[float, float, float, float] = (0.0, 1.0, 0.001, 0.0)
    move: Literal["natural", "adversarial", "both"] = "natural"
    discriminator: Literal["conv", "mlp"] = "conv"
    smoothing: float = 0.03
    optimizer: OptimizerField = Adam(1e-4, (0.9, 0.99))
    features: str | None = None
    variant: Literal["correct", "published"] = "correct"

    def __post_init__(self) -> None:
        if not all(0 <= w < math.inf for w in self.weights) or not any(self.weights):
            raise bad("weights", self.weights, "four numbers >= 0, not all of them 0")
        if not 0 <= self.smoothing < 0.5:
            raise bad("smoothing", self.smoothing, "a share in [0, 1/2)")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        model, x = copy.deepcopy(model), data.batch([0]).x
        tap = (last_map if self.discriminator == "conv" else penultimate)(model, x, self.features)
        with torch.no_grad(), frozen(model):
            logits, z = see(model, x, tap)
        classes = logits.shape[1]
        if classes < 2:
            raise bad("model", f"{classes} class", "2 classes or more")
        if self.discriminator == "conv" and min(z.shape[2:]) < 4:
            size = "x".join(map(str, z.shape[2:]))
            raise bad("discriminator", f'"conv" for maps of {size}', "maps of 4x4 or more", 'Use "mlp".')
        made = conv(z.shape[1], classes) if self.discriminator == "conv" else mlp(vectors(z).shape[1], classes)
        system: Any = System(model, discriminator=made)
        system.tap = tap
        return system

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        return {
            "main": main(system.model.parameters()),
            "discriminator": self.optimizer(system.discriminator.parameters()),
        }

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        adversarial = step.attack(self.attack, system.model, batch.x, batch.y)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial})

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        seen: list[tuple[Tensor, Tensor]] = []

        def tell() -> Tensor:
            for x in (batch.x, batch.extra["adversarial"]):
                logits, z = see(system.model, x, system.tap)
                seen.append((logits, vectors(z) if self.discriminator == "mlp" else z))
            told = [system.discriminator(z.detach()) for _, z in seen]
            targets = self.targets(batch.y, seen[0][0].shape[1])
            _say_how_well(step, told, targets)
            return sum(blame(t, q) / 2 for t, q in zip(told, targets))  # type: ignore[return-value]

        yield Update(tell, opt="discriminator")
        yield Update(lambda: self._learn(system, seen, batch.y, step), freeze=(system.discriminator,))

    def _learn(self, system: Any, seen: list[tuple[Tensor, Tensor]], y: Any, step: Step) -> Tensor:
        """The classifier's loss, whose passes were made for the discriminator already."""
        (natural, z), (adversarial, z_adv) = seen
        say_accuracy(step, y, clean=natural, adversarial=adversarial)
        terms: dict[str, Tensor] = {}
        clean, robust, domain, kl = self.weights
        if clean:
            terms["loss_clean"] = clean * step.cross_entropy(natural, y)
        if robust:
            terms["loss_adversarial"] = robust * step.cross_entropy(adversarial, y)
        if domain:
            as_natural, as_adversarial = self.targets(y, natural.shape[1])
            moved = {"natural": [(z, as_adversarial)], "adversarial": [(z_adv, as_natural)]}
            pairs = [p for side, found in moved.items() if self.move in (side, "both") for p in found]
            fooled = [blame(system.discriminator(h), q) for h, q in pairs]
            terms["loss_domain"] = domain * torch.stack(fooled).sum()
        if kl:
            terms["loss_kl"] = kl * divergence(natural, adversarial).mean()
        for name, value in terms.items():
            step.say(name, value)
        first, *more = terms.values()
        return sum(more, first)

    def targets(self, y: Any, classes: int) -> tuple[Tensor, Tensor]:
        """q_nat and q_adv, each [N, 2K]."""
        own = as_shares(y, classes)
        other = torch.zeros_like(own)
        if self.variant == "published":
            other[:, 0] = 1
        low, high = self.smoothing / (classes - 1), 1 - self.smoothing
        natural, adversarial = torch.cat([other, own], 1), torch.cat([own, other], 1)
        return natural.clamp(low, high), adversarial.clamp(low, high)


def blame(told: Tensor, targets: Tensor) -> Tensor:
    """H(q, D), in single precision at least, which the small targets need."""
    precision = torch.promote_types(told.dtype, torch.float32)
    return F.cross_entropy(told.to(precision), targets.to(precision))


def conv(channels: int, classes: int) -> nn.Module:
    """D on maps [N, D, H, W], H and W >= 4; no normalisation. Both halves of the last layer are one convolution here."""
    return nn.Sequential(
        nn.Conv2d(channels, 512, 4, stride=2, padding=1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(512, 256, 4, stride=2, padding=1, bias=False),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(256, 2 * classes, 2, bias=False),
        nn.Flatten(),
    )


def mlp(features: int, classes: int) -> nn.Module:
    """D on pooled features [N, D]."""
    return nn.Sequential(nn.Linear(features, 256), nn.LeakyReLU(0.2), nn.Linear(256, 2 * classes))


@torch.no_grad()
def _say_how_well(step: Step, told: list[Tensor], targets: tuple[Tensor, Tensor]) -> None:
    """How often D finds the class, and the domain where it is told the class."""
    classes = told[0].shape[1] // 2
    own = targets[0][:, classes:].argmax(1, keepdim=True)  # the natural half holds the label
    right, found = [], []
    for adversarial, t in ((False, told[0]), (True, told[1])):
        as_adversarial, as_natural = t.split(classes, 1)
        favours = (as_adversarial.gather(1, own) > as_natural.gather(1, own)).flatten()
        right.append(favours == adversarial)
        found.append(t.softmax(1).view(-1, 2, classes).sum(1).argmax(1) == own.flatten())
    step.say("domain_accuracy_given_class", torch.cat(right).float().mean())
    step.say("discriminator_class_accuracy", torch.cat(found).float().mean())
