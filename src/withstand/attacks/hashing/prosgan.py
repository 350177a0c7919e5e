"""ProS-GAN: a generator that is told a set of labels, and turns any image into one whose code stands for them."""

from collections.abc import Iterator
from dataclasses import replace as with_
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.engine import Problem
from withstand.attacks.fit import load_fitted
from withstand.attacks.generative.attack import images_of
from withstand.attacks.generative.generator import SMALLEST
from withstand.attacks.generative.source import Source
from withstand.attacks.hashing.aim import CodeProduct
from withstand.attacks.hashing.centres import as_labels, sign
from withstand.attacks.hashing.painter import CodeGenerator, Critic, Painter
from withstand.attacks.hashing.targets import Targeted
from withstand.attacks.hashing.tha import PrototypeNet, known_codes
from withstand.attacks.pgd import needs_fixed_set
from withstand.errors import bad
from withstand.models.hashing import hasher_in
from withstand.protocols import Batch, Dataset, Space, Update
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf, ThreatField
from withstand.training.optimizers import Steps
from withstand.training.recipe import MakeOptimizer, Optimizers, Recipe, Step, System

KIND = "hash_generator"
_FALL = Steps((1 / 2, 3 / 4))


@component("recipe", "prosgan_generator", systems=("cgat",))
class ProSGANRecipe(Recipe):
    """A generator of images whose codes stand for wanted labels, for the attack `prosgan`; the hashing model stands still.

    First a `PrototypeNet` learns the codes of label sets y_t, drawn from those of the training examples. With its code h,
    its features f, the codes b_j of all examples, s_j = 1 where y_t and y_j share a label, theta_j = h . b_j / 2,

    mean_j softplus(theta_j) - s_j theta_j + MSE(sigmoid(W f), y_t) + (quantisation / batch) * sum |sign h - h|^2.

    Then it stands still, and a generator G(x, f) and a discriminator D with C + 1 outputs learn, for images x with labels y
    and code b_t = sign h. With x' = G(x, f), images in [-1, 1], u the hashing model, (w1, w2, w3) = weights,

    G: w1 MSE(x', x) + w2 (1 - mean u(x') . b_t / K) + w3 MSE(D(x'), (y_t, 0)),
    D: (MSE(D(x), (y, 0)) + MSE(D(x'), (y_t, 1))) / 2, in every `every`-th step.

    Nothing bounds x' - x but w1: 50, or 100 on FLICKR-25K. first: the share of the training that is the prototypes', with
    `repeats` updates for each batch, their rate falling to a tenth at 1/2 and 3/4 of it; the rates of G and D follow the
    trainer's schedule. By default that is 10 epochs of 110, about the 30000 updates of the official code on 5000 images,
    each of as many label sets as a batch has images (there 64), then 50 epochs at the full rate and 50 in which it falls
    to zero, here in every step. Label sets are those of the examples, not of the whole database.

    Given: a hashing model and the data that it learned from, images of one size. bits: of the model. ngf, blocks: of G; ndf:
    of D; hidden, feature: of the prototypes. What is shipped is G with the prototypes. In the history: the terms, and the
    share of the bits of x' that are b_t's.

    Reference: Wang, Zhang, Wu, Shen, Lu, "Prototype-supervised Adversarial Network for Targeted Attack of Deep Hashing",
    CVPR 2021, arXiv 2105.07553; the settings are those of the official code.
    """

    bits: int = 32
    weights: tuple[float, float, float] = (50.0, 5.0, 1.0)
    first: float = 1 / 11
    repeats: int = 15
    every: int = 3
    quantisation: float = 1e-4
    ngf: int = 64
    blocks: int = 6
    ndf: int = 64
    hidden: int = 4096
    feature: int = 512

    verb: ClassVar[str] = "fit-attack"
    ships: ClassVar[str] = KIND
    learned: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "adam(1e-4, (0.5, 0.999))",
        "schedule": "linear(60 / 110)",
        "batch": 24,
        "epochs": 110,
    }

    def __post_init__(self) -> None:
        for name, least in (
            ("blocks", 0),
            *((n, 1) for n in ("bits", "repeats", "every", "ngf", "ndf", "hidden", "feature")),
        ):
            if getattr(self, name) < least:
                raise bad(name, getattr(self, name), f"a whole number >= {least}")
        if min(self.weights) < 0 or self.weights[1] == 0:
            raise bad("weights", self.weights, "three numbers >= 0, the second > 0")
        if not 0 < self.first < 1:
            raise bad("first", self.first, "a share of the training between 0 and 1")
        if self.quantisation < 0:
            raise bad("quantisation", self.quantisation, "a weight >= 0")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        x = data.batch([0]).x
        if data.space.box != (0.0, 1.0) or x.dim() != 4 or min(x.shape[2:]) < SMALLEST:
            got = f"{list(x.shape[1:])} in {data.space.box}"
            raise bad("data", got, f"images in [0, 1] with sides of {SMALLEST} pixels or more")
        codes, labels, kinds = known_codes(model, data, self.bits)
        channels, height, width = x.shape[1:]
        shape, classes = (channels, height, width), labels.shape[1]
        system = _Painting(
            self.deploy(None, Space(shape, data.space.box, classes)),
            classifier=nn.Linear(self.feature, classes),
            discriminator=Critic(shape, classes, self.ndf),
            source=Source(model),
        )
        for name, held in (("codes", codes), ("labels", labels), ("kinds", kinds)):
            system.register_buffer(name, held, persistent=False)
        return system

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        prototypes = [*system.model.prototypes.parameters(), *system.classifier.parameters()]
        made = {
            "main": main(system.model.painter.parameters()),
            "discriminator": main(system.discriminator.parameters()),
            "prototypes": main(prototypes),
        }
        system.rated = made
        return made

    def deploy(self, model: Any, space: Space) -> nn.Module:
        if space.shape is None or None in space.shape or len(space.shape) != 3 or not space.classes:
            raise bad("space", f"{space.shape}, {space.classes} classes", "images of one size, and classes")
        channels, height, width = (int(side or 0) for side in space.shape)
        prototypes = PrototypeNet(space.classes, self.bits, self.hidden, self.feature)
        return CodeGenerator(prototypes, Painter((channels, height, width), self.feature, self.ngf, self.blocks))

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        """The images, with their labels 0/1 [N, C] and the label sets that they are to stand for."""
        y = as_labels(batch.y, "labels", system.labels.shape[1]).to(batch.x)
        return with_(batch, y=y, extra={**batch.extra, "target": _drawn(system, step)})

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        if step.progress < self.first:
            for k in range(self.repeats):
                fall = lambda: _rate(system, "prototypes", _FALL(step.progress / self.first))  # noqa: E731
                yield Update(
                    lambda k=k: self._learn_codes(system, _drawn(system, step, k), step), "prototypes", (), fall
                )
            return
        made: list[Tensor] = []

        def tell() -> Tensor:
            made.append(system.model(batch.x, batch.extra["target"]))
            real, fake = system.discriminator(batch.x), system.discriminator(made[0].detach())
            return (lsgan(real, batch.y, 0.0) + lsgan(fake, batch.extra["target"], 1.0)) / 2  # type: ignore[arg-type]

        if self.weights[2] and step.step % self.every == 0:
            yield Update(tell, "discriminator", (system.model.prototypes,), lambda: _follow(system))

        def learn() -> Tensor:
            moved = made[0] if made else system.model(batch.x, batch.extra["target"])
            return self._learn(system, batch, moved, step)

        yield Update(learn, freeze=(system.discriminator, system.model.prototypes))

    def _learn_codes(self, system: Any, wanted: Tensor, step: Step) -> Tensor:
        """The loss of the prototypes, for label sets 0/1 [B, C]."""
        net = system.model.prototypes
        features = net.feature(wanted)
        h = torch.tanh(net.hashing(features))
        pairs = likelihood(h, wanted, system.codes, system.labels)
        told = F.mse_loss(torch.sigmoid(system.classifier(features)), wanted)
        step.say("loss_pairs", pairs)
        return pairs + told + self.quantisation / len(h) * (sign(h.detach()) - h).square().sum()

    def _learn(self, system: Any, batch: Batch, moved: Tensor, step: Step) -> Tensor:
        """The loss of the generator; moved: its images, with their graph."""
        wanted, (kept, hashed, gan) = batch.extra["target"], self.weights
        code, u = system.model.codes(wanted), system.source(moved)
        step.say("target_bits", (sign(u.detach()) == code).float().mean())
        terms = {
            "loss_reconstruction": 4 * kept * F.mse_loss(moved, batch.x),  # in [-1, 1] all is twice as far
            "loss_hashing": hashed * (1 - (u * code).mean()),
        }
        if gan:
            terms["loss_gan"] = gan * lsgan(system.discriminator(moved), wanted, 0.0)
        for name, value in terms.items():
            step.say(name, value)
        return torch.stack([*terms.values()]).sum()


def likelihood(h: Tensor, y: Tensor, codes: Tensor, labels: Tensor) -> Tensor:
    """mean softplus(theta) - s theta over pairs of outputs h [B, K] and codes [N, K]; s = 1 where labels are shared."""
    theta = h @ codes.T / 2
    return (F.softplus(theta) - (y @ labels.T > 0) * theta).mean()


def lsgan(told: Tensor, y: Tensor, fake: float) -> Tensor:
    """The mean squared distance of a discriminator's outputs [N, C + 1] to labels 0/1 [N, C] followed by `fake`."""
    return F.mse_loss(told, torch.cat([y.to(told), told.new_full((len(y), 1), fake)], 1))


def _drawn(system: Any, step: Step, again: int = 0) -> Tensor:
    """Label sets 0/1 [N, C] for the batch, each drawn among the different ones of the examples."""
    return system.kinds[step.rows.integers((), 0, len(system.kinds), "label sets", again)]


def _rate(system: Any, name: str, factor: float) -> None:
    """Set the rates of an optimiser to a share of those that it began with."""
    for group in system.rated[name].param_groups:
        group["lr"] = factor * group.setdefault("full", group["lr"])


def _follow(system: Any) -> None:
    """Let the discriminator's rate be that of the generator."""
    for group in system.rated["discriminator"].param_groups:
        group["lr"] = system.rated["main"].param_groups[0]["lr"]


class _Painting(System):
    kinds: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Images of the first set of labels: what shows whether the generator still returns numbers."""
        return self.model(x, self.kinds[:1].expand(len(x), -1))


def _generator(value: Any) -> Any:
    """A module, or what stands for one; texts are loaded when they are needed first."""
    return value if value is None or isinstance(value, str) else load_fitted(value, KIND)


GeneratorField = Annotated[Any, PlainValidator(_generator)]
"""The type of a field that holds a `CodeGenerator`: "artefact:FOLDER", what `fit_attack` returned, or a module."""


@component("attack", "prosgan", systems=("cgat",))
class ProSGAN(Targeted):
    """Give the query the code of a wanted set of labels, by a generator: one forward pass (targeted, hashing models).

    z = P(G(x, y_t)), P the projection into the threat's set and the range of images. The paper sets no bound: it reports how
    far the images are. Here the threat holds, as for every attack, which costs a generator that learned without it some of
    its effect; linf(1.0) leaves its images as they are.

    generator: "artefact:FOLDER" of `withstand fit-attack prosgan_generator`, what `fit_attack` returned, or a
    `CodeGenerator`; it takes images of the size that it learned from. target, database: see `Targeted`; the database tells
    which labels there are. keep="best" asks the model twice for each image, whether the generator's lies nearer to the
    prototype sign(h) than the clean one. keep="last", with active=False, asks it nothing, so that models of other bits may
    be attacked (transfer).

    Reference: Wang, Zhang, Wu, Shen, Lu, "Prototype-supervised Adversarial Network for Targeted Attack of Deep Hashing",
    CVPR 2021, arXiv 2105.07553.
    """

    threat: ThreatField = Linf(8 / 255)
    generator: GeneratorField = None

    access: ClassVar[Any] = "scores"
    prepares: ClassVar[bool] = False
    steps: ClassVar[int] = 1
    step: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_fixed_set(self)

    def refuse(self, model: Any, x: Tensor) -> None:
        net, found = self.network, hasher_in(model)
        self.generate(x, torch.eye(net.prototypes.classes, device=x.device)[:1].expand(len(x), -1))
        if self.keep == "best" and found is not None and found[1].bits != net.prototypes.bits:
            got, allowed = f"one for {net.prototypes.bits} bits", f"one for the model's {found[1].bits}"
            raise bad("generator", got, allowed, "Fit one on it, or attack it with keep='last', active=False.")

    def problem(self, **settings: Any) -> Problem:
        net = self.network

        def prototype(wanted: Tensor, rows: Rows) -> Tensor:
            y = _of_classes(wanted, net.prototypes.classes)
            return net.codes(y.to(next(net.parameters())))

        aim = CodeProduct(settings["model"], prototype, away=False, source="generator")
        return super().problem(**{"objective": aim, **settings})

    def search(self, p: Problem) -> Tensor:
        if self.keep == "best":
            p.clean  # noqa: B018 (the clean point counts as a candidate)
        z = p.project(self.generate(p.x_alive, p.y_alive))
        if self.keep == "best":
            p.look(z)
        return z

    def generate(self, x: Tensor, wanted: Tensor) -> Tensor:
        """What the generator makes of images x for label sets 0/1 [N, C], not projected. Raises: BadInput where it does not
        fit them."""
        net = self.network
        return images_of(net, x, _of_classes(wanted, net.prototypes.classes).to(x))

    @property
    def network(self) -> CodeGenerator:
        """The generator. Raises: BadInput where there is none, or something else."""
        mend = "Fit one: withstand fit-attack 'prosgan_generator(bits=32)' artefact:HASHING --data DATA --out DIR"
        if self.generator is None:
            raise bad("generator", "none", '"artefact:FOLDER", a CodeGenerator, or what fit_attack returned', mend)
        net = load_fitted(self.generator, KIND)
        if not isinstance(net, CodeGenerator):
            raise bad("generator", type(net).__name__, "a CodeGenerator, which is told sets of labels", mend)
        return net


def _of_classes(wanted: Tensor, classes: int) -> Tensor:
    """Label sets 0/1 [N, classes]. Raises: BadInput for those of more classes."""
    y = as_labels(wanted, "target", classes)
    if y.shape[1] != classes:
        raise bad("generator", f"one for {classes} classes", f"one for {y.shape[1]}, as the labels are")
    return y
