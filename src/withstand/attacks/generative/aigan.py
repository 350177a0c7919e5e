"""AI-GAN: a conditional generator that learns from an attacker, a discriminator and the attacked classifier."""

import warnings
from collections.abc import Iterator
from dataclasses import replace as with_
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks.engine import AttackField
from withstand.attacks.generative.generator import SMALLEST, Generator
from withstand.attacks.generative.source import Source
from withstand.attacks.pgd import PGD
from withstand.errors import bad
from withstand.objectives import CrossEntropy, TargetedCrossEntropy
from withstand.protocols import Batch, Dataset, Space, Update
from withstand.random import Rows
from withstand.registry import component, replace
from withstand.threats import Linf
from withstand.training.optimizers import Adam, OptimizerField
from withstand.training.recipe import MakeOptimizer, Optimizers, Recipe, Step, System


@component("recipe", "aigan", systems=("aigan",))
class AIGAN(Recipe):
    """A generator that turns any image into one of any wanted class, in one pass (AI-GAN).

    x' = clip(x + p), p = eps * tanh(G(x, t)), t uniform over the K classes for each image; C the frozen classifier, D the
    discriminator, A the attacker. G minimises, with (w1, w2, w3) = weights,

    two_stage   w1 CE(C(x'), t) - w2 log D(x') + w3 mean max(0, |p|_2 - bound),
                D learns to tell "real" from x': A(x, t) before epoch `switch` (counted from 0), x from there on;
    robust_d    w1 CE(C(x'), t) + w2 [-log S(x') + CE(Q(x'), t)] + w3 (as above; 0 unless given),
                D has two heads: S tells x from x', Q tells the class y of A(x, y), A being an untargeted attack on Q itself.

    What is known: two_stage is the first version of the paper, by a reader's notes and an unofficial code; its weights,
    switch and attacker are those of that code for MNIST, since the paper's are not known. robust_d is the revised version
    as it is remembered; neither its form nor its settings could be checked. The conditioning (K planes, one of them 1) and
    the networks are ours. The unofficial code cuts the gradient of -log D(x') before G, and is unconditional; this is not.

    attack: the attacker; its threat, which must be Linf, is the generator's. weights: None takes (1, 1, 1.5) for two_stage
    and (1, 1, 0) for robust_d. switch=0 leaves A out, which is a conditional AdvGAN; with w2 = 0 there is neither A nor D.
    A switch beyond the last epoch leaves x out instead, with a warning. target: one class for all images instead of a random
    one for each; with switch=0 an AdvGAN, of which each class takes one. optimizer: of D; its rate stays as it is, our
    choice, while that of G follows the trainer's schedule. ngf, blocks: of G; D has ngf, 2 ngf and 4 ngf channels.

    What is shipped is G: see the attack `targeted_generated`. Judge it on all targets but the label, on images that C has
    right, beside PGD with the same targets. In the history: the terms, D's accuracy, the share of x' that C takes for t, of
    those whose label is another.

    References: Bai, Zhao, Zhu, Han, Chen, Li, Kot, "AI-GAN: Attack-Inspired Generation of Adversarial Examples", 2020 and
    2021, arXiv 2002.02196; the same, "Towards Efficiently Evaluating the Robustness of Deep Neural Networks in IoT Systems:
    A GAN-based Method", 2021, arXiv 2111.10055. AdvGAN: Xiao et al., 2018, arXiv 1801.02610.
    """

    variant: Literal["two_stage", "robust_d"] = "two_stage"
    attack: AttackField = PGD(Linf(0.3), steps=40, step=1 / 30)
    weights: tuple[float, float, float] | None = None
    bound: float = 0.3
    switch: int = 10
    target: int | None = None
    ngf: int = 64
    blocks: int = 4
    optimizer: OptimizerField = Adam(1e-3)

    verb: ClassVar[str] = "fit-attack"
    learned: ClassVar[bool] = True
    ships: ClassVar[str] = "generator"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "adam(1e-3)",
        "schedule": "steps((120 / 600, 200 / 600))",
        "batch": 128,
        "epochs": 600,
    }

    def __post_init__(self) -> None:
        threat = self.attack.threat
        if not isinstance(threat, Linf) or not isinstance(threat.eps, float) or not 0 < threat.eps <= 1:
            raise bad(
                "attack", repr(self.attack), "an attack under linf with one radius in (0, 1], e.g. pgd(linf(0.3))"
            )
        if not hasattr(self.attack, "objective"):
            raise bad(
                "attack", repr(self.attack), "an attack that takes an objective, e.g. pgd", "It is told what to aim at."
            )
        if min(self.terms) < 0 or self.terms[0] == 0:
            raise bad("weights", self.weights, "three numbers >= 0, the first > 0")
        if self.target is not None and self.target < 0:
            raise bad("target", self.target, "a class >= 0, or None for a random one for each image")
        for name, least in (("ngf", 1), ("blocks", 0), ("switch", 0), ("bound", 0)):
            if getattr(self, name) < least:
                raise bad(name, getattr(self, name), f"a number >= {least}")

    @property
    def terms(self) -> tuple[float, float, float]:
        """The weights in force."""
        return self.weights or ((1.0, 1.0, 1.5) if self.variant == "two_stage" else (1.0, 1.0, 0.0))

    @property
    def eps(self) -> float:
        """The radius of the change."""
        return self.attack.threat.eps

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        x, source = data.batch([0]).x, Source(model)
        if data.space.box != (0.0, 1.0) or x.dim() != 4 or min(x.shape[2:]) < SMALLEST:
            got = f"{list(x.shape[1:])} in {data.space.box}"
            raise bad("data", got, f"images in [0, 1] with sides of {SMALLEST} pixels or more")
        with torch.no_grad():
            classes = source(x).shape[1]
        if len(data.classes) != classes:
            raise bad(
                "data", f"{len(data.classes)} classes", f"the {classes} of the model", "Its labels are targets too."
            )
        if self.target is not None and self.target >= classes:
            raise bad("target", self.target, f"a class below {classes}")
        discriminator = Discriminator(x.shape[1], self.ngf, classes if self.variant == "robust_d" else 0)
        generator = self.deploy(None, Space(tuple(x.shape[1:]), data.space.box, classes))
        for part in (*generator.modules(), *discriminator.modules()):
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(part.weight, 0.0, 0.02)
        return _Conditional(generator, source=source, discriminator=discriminator)

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        return {
            "main": main(system.model.parameters()),
            "discriminator": self.optimizer(system.discriminator.parameters()),
        }

    def deploy(self, model: Any, space: Space) -> nn.Module:
        assert space.shape is not None
        assert space.classes is not None
        return Generator(
            int(space.shape[0] or 0), self.ngf, self.blocks, "residual", self.eps, space.classes, dropout=0.0
        )

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        """The targets, and what D is to take for real (two_stage) or to classify (robust_d)."""
        if step.step == step.rank == 0 and self._never_switches(step.epochs):
            text = f"aigan: switch={self.switch} lies beyond the last of {step.epochs} epochs: the discriminator never sees"
            warnings.warn(f"{text} a clean image. Lower it (by default a sixtieth of the epochs).", stacklevel=2)
        if self.target is None:
            target = step.rows.integers((), 0, system.model.classes, "target")
        else:
            target = torch.full_like(step.rows.ids, self.target)
        extra: dict[str, Any] = {"target": target, "real": batch.x}
        if self.terms[1] and self.variant == "robust_d":
            inner = replace(self.attack, objective=CrossEntropy())
            extra["adversarial"] = step.attack(inner, system.discriminator.classifier, batch.x, batch.y)
        elif self.terms[1] and step.epoch < self.switch:
            inner = replace(self.attack, objective=TargetedCrossEntropy(target))
            extra["real"] = step.attack(inner, system.source.model, batch.x, batch.y)
        return with_(batch, extra={**batch.extra, **extra})

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        made: list[Tensor] = []

        def tell() -> Tensor:
            made.append(system.model(batch.x, batch.extra["target"]))
            return self._tell(system.discriminator, batch, made[0].detach().clamp(0, 1), step)

        if self.terms[1]:
            yield Update(tell, opt="discriminator")

        def learn() -> Tensor:
            moved = made[0] if made else system.model(batch.x, batch.extra["target"])
            return self._learn(system, batch, moved, step)

        yield Update(learn, freeze=(system.discriminator,))

    def _never_switches(self, epochs: int) -> bool:
        return self.variant == "two_stage" and self.terms[1] > 0 and self.switch >= epochs

    def _tell(self, discriminator: Any, batch: Batch, fake: Tensor, step: Step) -> Tensor:
        """The discriminator's loss."""
        real, told = discriminator(batch.extra["real"])[0], discriminator(fake)[0]
        step.say("discriminator_accuracy", torch.cat([real > 0, told <= 0]).float().mean())
        loss = F.softplus(-real).mean() + F.softplus(told).mean()
        if self.variant == "robust_d":
            classes = discriminator(batch.extra["adversarial"])[1]
            step.say("discriminator_class_accuracy", (classes.argmax(1) == batch.y).float().mean())
            loss = loss + F.cross_entropy(classes, batch.y)  # type: ignore[arg-type]
        return loss

    def _learn(self, system: Any, batch: Batch, made: Tensor, step: Step) -> Tensor:
        """The generator's loss; made: x + p, with its graph."""
        target, (adversarial, gan, hinge) = batch.extra["target"], self.terms
        moved = made.clamp(0, 1)
        logits = system.source(moved)
        assert batch.y is not None
        aimed = target != (batch.y if batch.y.dim() == 1 else batch.y.argmax(1))  # mixed images have shares of labels
        hit = (logits.argmax(1) == target) & aimed
        step.say("targeted_success", hit.sum() / aimed.sum().clamp_min(1))
        terms = {"loss_adversarial": adversarial * F.cross_entropy(logits, target)}
        if gan:
            real, classes = system.discriminator(moved)
            fooled = F.softplus(-real).mean()
            terms["loss_gan"] = gan * (fooled if classes is None else fooled + F.cross_entropy(classes, target))
        if hinge:
            terms["loss_hinge"] = hinge * excess(made - batch.x, self.bound)
        for name, value in terms.items():
            step.say(name, value)
        return torch.stack([*terms.values()]).sum()


def excess(change: Tensor, bound: float) -> Tensor:
    """mean max(0, |p|_2 - bound) over perturbations [N, ...]."""
    return (change.flatten(1).norm(dim=1) - bound).clamp_min(0).mean()


class Discriminator(nn.Module):
    """Images [N, C, H, W] to (logit [N] of being real, class logits [N, K] or None); three strided convolutions, no norm."""

    def __init__(self, channels: int, width: int, classes: int = 0) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        strided = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(0.2))]
        self.trunk = nn.Sequential(*strided, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.real = nn.Linear(16 * width, 1)
        self.classes = nn.Linear(16 * width, classes) if classes else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.trunk(x)
        return self.real(h).squeeze(1), None if self.classes is None else self.classes(h)

    @property
    def classifier(self) -> nn.Module:
        """The head that tells classes, as a model of its own; it shares the weights."""
        assert self.classes is not None
        return nn.Sequential(self.trunk, self.classes)


class _Conditional(System):
    def forward(self, x: Tensor) -> Tensor:
        """The generator's images of class 0: what shows whether it still returns numbers."""
        return self.model(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
