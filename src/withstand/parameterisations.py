"""Parameterisations: what a search moves instead of pixels, and how that becomes an input."""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Leaf
from withstand.registry import component
from withstand.threats import Box


@component("parameterisation", "pyramid", systems=("pyramidat",))
class Pyramid:
    """Perturbations on several scales: coarse cells move by a lot, pixels by little.

    x_adv = clip(x + sum_s m_s * up_s(d_s)), each d_s [N, C, H/s, W/s] within the attack's threat, up_s replicating a cell
    over its s x s block.

    scales: sides s of a cell in pixels, each a divisor of the image's sides. multipliers: m_s, one for each scale. grids:
    instead of scales, numbers of cells along a side, for images that no scale divides (nearest interpolation). clip: to the
    box once, at the end, or after "each" level in the order given, as the official code does. The attack's eps bounds every
    level by itself, so that a pixel moves by up to eps * sum of the multipliers. The defaults are for 224 pixels; the
    official eps of 6/255 is in units of [-1, 1], 3/255 here.

    >>> PGD(Linf(3 / 255), steps=5, step=1 / 6, random_start=False, parameterisation=Pyramid())

    Reference: Herrmann et al., "Pyramid Adversarial Training Improves ViT Performance", 2022, arXiv 2111.15121.
    """

    scales: tuple[int, ...] = (32, 16, 1)
    multipliers: tuple[float, ...] = (20, 10, 1)
    grids: tuple[int, ...] | None = None
    clip: Literal["once", "each"] = "once"
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        levels = self.scales if self.grids is None else self.grids
        if not levels or min(levels) < 1:
            raise bad("scales", levels, "whole numbers >= 1")
        if len(levels) != len(self.multipliers):
            raise bad("multipliers", f"{len(self.multipliers)} for {len(levels)} scales", "one for each scale")

    def leaves(self, x: Tensor, threat: Any, box: Box) -> dict[str, Leaf]:
        """A level for each scale, zero at first, bound by the threat as it is.

        Raises: BadInput for inputs that are no images or have another box, and for scales that do not divide their sides.
        """
        if self.box not in (None, box):
            raise bad("pyramid box", self.box, f"{box}, the range of the inputs", "Or None, to clip nothing.")
        return {
            f"{position}": Leaf(threat, x.new_zeros(len(x), x.shape[1], *cells))
            for position, cells in enumerate(self._cells(x))
        }

    def decode(self, z: Mapping[str, Tensor], x: Tensor) -> Tensor:
        for position, multiplier in enumerate(self.multipliers):
            level = z[str(position)]
            x = x + multiplier * (
                level if level.shape == x.shape else F.interpolate(level, x.shape[2:], mode="nearest")
            )
            if self.box is not None and self.clip == "each":
                x = x.clamp(*self.box)
        return x if self.box is None else x.clamp(*self.box)

    def _cells(self, x: Tensor) -> list[tuple[int, int]]:
        if x.dim() != 4:
            raise bad("x", f"shape {tuple(x.shape)}", "images [N, C, H, W]")
        h, w = x.shape[2:]
        if self.grids is not None:
            return [(min(g, h), min(g, w)) for g in self.grids]
        if uneven := [s for s in self.scales if h % s or w % s]:
            mend = f"Take divisors of {h} and {w}, or say numbers of cells with grids=."
            raise bad("scales", f"{uneven[0]} for images of {h}x{w}", "scales that divide the image's sides", mend)
        return [(h // s, w // s) for s in self.scales]


@component("parameterisation", "polynomial", systems=("tsa_stat",))
class Polynomial:
    """A polynomial of every value with coefficients of its own: z_cj = sum_k a_kcj x_cj^k, k = 0..degree.

    Degree 0 is the additive x + a_0. The identity is a_1 = 1 and zeros else (degree 0: zeros); degree 1 with a_1 = 1 holds
    every additive change. In an attack with a ball as its threat, the ball bounds the coefficients around the identity.

    degree: the highest power. box: what the result is clipped to, None = nothing.

    >>> Polynomial(1).decode(Polynomial(1).identity(torch.ones(1, 1, 2)), torch.ones(1, 1, 2))
    tensor([[[1., 1.]]])

    Reference: Belkhouja, Doppa, "Adversarial Framework with Certified Robustness for Time-Series Domain via Statistical
    Features", JAIR 73, 2022, arXiv 2207.04307; the additive case as in its official code.
    """

    degree: int = 1
    box: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.degree < 0:
            raise bad("degree", self.degree, "a whole number >= 0")

    def identity(self, x: Tensor) -> dict[str, Tensor]:
        """The coefficients [N, degree + 1, ...] that change nothing."""
        a = x.new_zeros(len(x), self.degree + 1, *x.shape[1:])
        if self.degree:
            a[:, 1] = 1.0
        return {"coefficients": a}

    def leaves(self, x: Tensor, threat: Any, box: Box) -> dict[str, Leaf]:
        """One leaf of coefficients, bound by the threat around the identity."""
        return {name: Leaf(threat, origin) for name, origin in self.identity(x).items()}

    def decode(self, z: Mapping[str, Tensor], x: Tensor) -> Tensor:
        a = z["coefficients"]
        made = a[:, self.degree]
        for k in reversed(range(self.degree)):  # Horner's scheme
            made = made * x + a[:, k]
        made = made if self.degree else x + made
        return made if self.box is None else made.clamp(*self.box)
