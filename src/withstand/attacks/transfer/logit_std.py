"""Steps along the gradient divided by its spread, without a sign: the attack that was published with DRA."""

from dataclasses import field
from typing import Any, Literal

import torch
from torch import Tensor

from withstand.attacks.engine import Point, Problem
from withstand.attacks.pgd import PGD
from withstand.attacks.transfer.parts import images
from withstand.errors import bad
from withstand.objectives import LabelLogit, ObjectiveField
from withstand.registry import component
from withstand.threats import Linf, ThreatField, per_row


@component("shaping", "spread", systems=("dra",))
class Spread:
    """g divided by the (unbiased) standard deviation of |g| over the pixels of each channel.

    A channel whose gradients are all equally large has no spread, and becomes as large as 1e12 allows.
    """

    def __call__(self, gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        height, width = images("spread", gradient)
        if height * width < 2:
            raise bad("spread: x", f"{height} x {width} pixels", "two pixels or more")
        return gradient / (gradient.abs().std((2, 3), keepdim=True) + 1e-12), memory


@component("attack", "logit_std", systems=("dra",))
class LogitStd(PGD):
    """Ascent on the label's negated logit along gradients divided by their spread, without signs (published with DRA).

    z <- P(z + step * eps * g / std|g|), from the clean point; the standard deviation is each channel's own. Single pixels
    may move by far more than a step before they are clipped, which is meant. Made for surrogates tuned by the recipe
    `dra`. Ends at its last step, as all transfer attacks do.

    step: as a share of eps; 1/8 is the published 2/255 at 16/255. For targets take
    objective=targeted_logit(target=t), steps=300, as published. The published code has an option for a random start
    that does nothing and a targeted mode that cannot be reached; both are left out here.

    Reference: Zhu et al., "Toward Understanding and Boosting Adversarial Transferability from a Distribution Perspective",
    2022, arXiv 2210.04213, and alibaba/easyrobust (examples/attacks/dra).
    """

    threat: ThreatField = Linf(16 / 255)
    step: float | None = 1 / 8
    random_start: Any = False
    objective: ObjectiveField = LabelLogit()
    shapings: tuple[Any, ...] = (Spread(),)
    keep: Literal["best", "last"] = field(default="last", kw_only=True)
    active: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parameterisation is not None:
            raise bad("parameterisation", repr(self.parameterisation), "none: the spread is that of the pixels")

    def move(self, p: Problem, z: Point, gradient: Point, size: float) -> Point:
        assert isinstance(z, Tensor)
        assert isinstance(gradient, Tensor)
        p.size = size
        with torch.no_grad():
            return p.project(z + per_row(p.threat.scale(p.x_alive) * size, z) * gradient)
