"""Interpolated adversarial training."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import say_accuracy
from withstand.models.taps import stages, submodule
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.augment import mix, pairs
from withstand.training.recipe import Recipe, Step, System

INPUT = "input"


@component("recipe", "iat", systems=("iat",))
class IAT(Recipe):
    """Interpolated adversarial training: half mixup of clean images, half mixup of adversarial ones.

    L = 1/2 M(x, y) + 1/2 M(x', y),  M(u, y) = lam CE(f(mix(u)), y) + (1 - lam) CE(f(mix(u)), y[pi]),
    mix(u) = lam u + (1 - lam) u[pi], lam ~ Beta(alpha, alpha), pi a permutation of the batch of this process.

    The attack comes first, on the unmixed images with their own labels, and never mixes; adversarial images are mixed with
    adversarial ones only. For what the clean half alone does, compare with alpha=0: no mixing.

    attack: 7 steps of 2/255 in the ball of 8/255. alpha >= 0: 1 for input mixup, 2 is usual in manifold mode.
    mode: "input" mixes images; "manifold" mixes at a place that is drawn anew for each pass from `layers`: names of
    submodules, or "input"; None takes the input and the first two stages. share_mix: the same lam, pi and place for both
    halves (the paper leaves it open). norm: "two_pass" normalises the halves apart, the clean one first; "joint" in one
    pass together, which is another training wherever there is batch norm, and mixes both halves at one place.

    Mixed labels lower the confidence, which weakens attacks on the cross-entropy: judge with AutoAttack, or a margin loss.
    The one public re-implementation attacks in train mode: attack=pgd(..., mode="train").

    Reference: Lamb, Verma, Kannala, Bengio, "Interpolated Adversarial Training: Achieving Robust Neural Networks without
    Sacrificing Too Much Accuracy", 2019, arXiv 1906.06784. Manifold mode: Verma et al., "Manifold Mixup", 2019,
    arXiv 1806.05236.
    """

    attack: AttackField = PGD(Linf(8 / 255), steps=7, step=1 / 4)
    alpha: float = 1.0
    mode: Literal["input", "manifold"] = "input"
    layers: tuple[str, ...] | None = None
    share_mix: bool = False
    norm: Literal["two_pass", "joint"] = "two_pass"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise bad("alpha", self.alpha, "a number >= 0, 0 for no mixing")
        if self.layers is not None and (self.mode == "input" or not self.layers):
            raise bad("layers", self.layers, 'one name or more, in mode "manifold"; None in mode "input"')

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = System(copy.deepcopy(model))
        places: tuple[str, ...] = (INPUT,)
        if self.mode == "manifold":
            places = self.layers or (INPUT, *stages(system.model, data.batch([0]).x, 2))
        for place in places:
            if place != INPUT:
                submodule(system.model, place)
        system.places = places
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        adversarial = step.attack(self.attack, system.model, batch.x, batch.y)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        if len(batch) == 1 and self.alpha > 0:
            warnings.warn("iat: a batch of one example has nothing to be mixed with", stacklevel=2)
        clean = self._draw(system, len(batch), step, "clean")
        adversarial = clean if self.share_mix else self._draw(system, len(batch), step, "adversarial")
        if self.norm == "joint":
            both = torch.cat([batch.x, batch.extra["adversarial"]])
            adversarial = replace(adversarial, place=clean.place)
            with mixing(system.model, clean.place, lambda u: halves(u, clean, adversarial)) as entry:
                logits = system(entry(both)).chunk(2)
        else:
            logits = [_pass(system, x, m) for x, m in ((batch.x, clean), (batch.extra["adversarial"], adversarial))]
        parts = [m.loss(z, batch.y, step) for z, m in zip(logits, (clean, adversarial))]
        for name, z, m in zip(("clean", "adversarial"), logits, (clean, adversarial)):
            say_accuracy(step, m.larger(batch.y), **{name: z})
        step.say("loss_clean", parts[0])
        step.say("loss_adversarial", parts[1])
        return (parts[0] + parts[1]) / 2

    def _draw(self, system: Any, n: int, step: Step, half: str) -> "Mix":
        lam, order = pairs(n, self.alpha, step, f"iat/{half}")
        at = torch.randint(len(system.places), (), generator=step.generator(f"iat/{half}/place"))
        return Mix(lam, order, system.places[int(at)])


@dataclass(frozen=True)
class Mix:
    """What was drawn for one pass: the share of the own example, the partners [N], and where they are mixed."""

    lam: float
    order: Tensor
    place: str = INPUT

    def __call__(self, u: Tensor) -> Tensor:
        return mix(u, self.lam, self.order.to(u.device))

    def loss(self, logits: Tensor, y: Any, step: Step) -> Tensor:
        """M: the cross-entropy of both labels of a mixed example, weighted by their shares."""
        partner = y[self.order.to(y.device)]
        return self.lam * step.cross_entropy(logits, y) + (1 - self.lam) * step.cross_entropy(logits, partner)

    def larger(self, y: Any) -> Tensor:
        """The label of the larger share of each mixed example."""
        return y if self.lam >= 0.5 else y[self.order.to(y.device)]


def halves(u: Tensor, first: Mix, second: Mix) -> Tensor:
    """Each half of a joint batch mixed within itself."""
    one, two = u.chunk(2)
    return torch.cat([first(one), second(two)])


def _pass(system: Any, x: Tensor, drawn: Mix) -> Tensor:
    with mixing(system.model, drawn.place, drawn) as entry:
        return system(entry(x))


@contextmanager
def mixing(model: nn.Module, place: str, change: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Let `change` act on the output of a submodule; at the place "input", on what the yielded function is given.

    Raises: BadInput for a submodule that runs more than once in the block, or never, or returns no tensor.
    """
    if place == INPUT:
        yield change
        return
    runs = 0

    def hook(_: nn.Module, __: Any, output: Any) -> Tensor:
        nonlocal runs
        runs += 1
        if runs > 1 or not isinstance(output, Tensor):
            what = "runs more than once" if runs > 1 else f"returns a {type(output).__name__}"
            raise bad("layers", f"{place!r}, which {what}", "submodules that return one tensor, once per pass")
        return change(output)

    with ExitStack() as stack:
        stack.callback(submodule(model, place).register_forward_hook(hook).remove)
        yield lambda x: x
    if not runs:
        raise bad("layers", repr(place), "a submodule that runs in every forward pass")
