"""Optimisers and schedules as settings."""

import math
from typing import Annotated, Any

import torch
from pydantic import PlainValidator

from withstand.errors import bad
from withstand.registry import coerce, component


def _positive(name: str, value: float, zero: bool = False) -> None:
    if not (value >= 0 if zero else value > 0) or not math.isfinite(value):
        raise bad(name, value, f"a finite number {'>=' if zero else '>'} 0")


@component("optimizer", "sgd")
class SGD:
    """Stochastic gradient descent with momentum.

    lr: learning rate. momentum in [0, 1). weight_decay: added to the gradient as weight_decay * w. nesterov: look ahead.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False

    def __post_init__(self) -> None:
        _positive("lr", self.lr)
        _positive("weight_decay", self.weight_decay, zero=True)
        if not 0 <= self.momentum < 1:
            raise bad("momentum", self.momentum, "a number in [0, 1)")

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr, self.momentum, 0, self.weight_decay, self.nesterov)


@component("optimizer", "adam")
class Adam:
    """Adam (Kingma, Ba, 2015, arXiv 1412.6980); weight decay is added to the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _positive("lr", self.lr)
        _positive("weight_decay", self.weight_decay, zero=True)

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr, self.betas, weight_decay=self.weight_decay)


@component("optimizer", "adamw")
class AdamW:
    """Adam with decoupled weight decay (Loshchilov, Hutter, 2019, arXiv 1711.05101)."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        _positive("lr", self.lr)
        _positive("weight_decay", self.weight_decay, zero=True)

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, self.lr, self.betas, weight_decay=self.weight_decay)


@component("schedule", "constant")
class Constant:
    """The learning rate stays as it is."""

    def __call__(self, progress: float) -> float:
        return 1.0


@component("schedule", "cosine")
class Cosine:
    """Half a cosine from the full learning rate to `last` of it, after a linear warm-up over the share `warmup`.

    Reference: Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, arXiv 1608.03983.
    """

    warmup: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1 or not 0 <= self.last <= 1:
            raise bad("cosine", f"warmup={self.warmup}, last={self.last}", "warmup in [0, 1) and last in [0, 1]")

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        done = (progress - self.warmup) / (1 - self.warmup)
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * done)) / 2


@component("schedule", "cosine_arc")
class CosineArc:
    """The beginning of a cosine, cos(pi * turn * t / T), which ends while it still falls: 0.195 of the rate by default.

    turn: of half a period; 7/16 as in FixMatch (Sohn et al., 2020, arXiv 2001.07685).
    """

    turn: float = 7 / 16

    def __post_init__(self) -> None:
        if not 0 <= self.turn <= 0.5:
            raise bad("turn", self.turn, "a share in [0, 0.5], so that no rate is negative")

    def __call__(self, progress: float) -> float:
        return math.cos(math.pi * self.turn * progress)


@component("schedule", "steps")
class Steps:
    """The learning rate is multiplied by `factor` at each of the given shares of the training.

    The default is the best practice for adversarial training, 110 epochs with decays at 100 and 105 (Pang et al., "Bag of
    Tricks for Adversarial Training", 2021, arXiv 2010.00467).
    """

    at: tuple[float, ...] = (100 / 110, 105 / 110)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.at):
            raise bad("at", self.at, "shares of the training, each between 0 and 1")
        _positive("factor", self.factor)

    def __call__(self, progress: float) -> float:
        return self.factor ** sum(progress >= share for share in self.at)


@component("schedule", "linear")
class Linear:
    """The full learning rate until the share `after` of the training, then straight down to zero."""

    after: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.after < 1:
            raise bad("after", self.after, "a share in [0, 1)")

    def __call__(self, progress: float) -> float:
        return min(1.0, (1 - progress) / (1 - self.after))


@component("schedule", "one_cycle")
class OneCycle:
    """Straight up to the full learning rate over the share `peak` of the training, straight down to zero.

    The cyclic schedule of short adversarial training (Wong et al., "Fast is better than free", 2020, arXiv 2001.03994).
    """

    peak: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.peak < 1:
            raise bad("peak", self.peak, "a share between 0 and 1")

    def __call__(self, progress: float) -> float:
        return progress / self.peak if progress < self.peak else (1 - progress) / (1 - self.peak)


def _callable(kind: str) -> Any:
    def check(value: Any) -> Any:
        value = coerce(kind)(value)
        if not callable(value):
            raise bad(kind, repr(value), f"a {kind} or its text")
        return value

    return check


OptimizerField = Annotated[Any, PlainValidator(_callable("optimizer"))]
ScheduleField = Annotated[Any, PlainValidator(_callable("schedule"))]
