"""What a kind of corruption is to `corrupt`: a function of a block of images, and how it is found by name.

A kind takes x: float32 [n, C, H, W] of whole 8-bit levels 0..255, its parameters at one severity and the job, and
returns levels of the same shape, not yet clipped or truncated. The docstrings give the formulas as published, for
pixels p = x / 255 in [0, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from withstand.corruptions.tables import Preset
from withstand.random import Rows


@dataclass(frozen=True)
class Job:
    """What a kind may use beside the images: the draws of these rows and the settings of the call."""

    rows: Rows
    preset: Preset
    swap: bool = False
    textures: tuple[Tensor, ...] = ()


Corrupt = Callable[[Tensor, Any, Job], Tensor]
KINDS: dict[str, Corrupt] = {}
NEEDS_COLOUR: set[str] = set()


def kind(name: str, *, colour: bool = False) -> Callable[[Corrupt], Corrupt]:
    """Register a kind. colour: it is defined on RGB only, so that grey images go through RGB and back."""

    def keep(function: Corrupt) -> Corrupt:
        KINDS[name] = function
        if colour:
            NEEDS_COLOUR.add(name)
        return function

    return keep


def luma(x: Tensor) -> Tensor:
    """Grey [n, 1, H, W] of RGB [n, 3, H, W] by the ITU-R 601 weights; grey images stay as they are."""
    if x.shape[1] == 1:
        return x
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


# Draws: `Rows` gives 64 random bits an element; images need but 32, and float32 arithmetic, which is 10 times faster.


def words(rows: Rows, shape: tuple[int, ...], stream: str) -> Tensor:
    """int32 [N, *shape] with all bits random."""
    size = math.prod(shape)
    return rows.bits(((size + 1) // 2,), stream).view(torch.int32)[:, :size].reshape(len(rows), *shape)


def uniform(rows: Rows, shape: tuple[int, ...], stream: str) -> Tensor:
    """float32 [N, *shape] uniform in [0, 1]."""
    return words(rows, shape, stream).float().mul_(2.0**-32).add_(0.5)


def normal(rows: Rows, shape: tuple[int, ...], stream: str) -> Tensor:
    """float32 [N, *shape] standard normal (Box-Muller; no value beyond 6.0)."""
    size = math.prod(shape)
    half = (size + 1) // 2
    u = uniform(rows, (2, half), stream)
    radius = u[:, 0].clamp_min(2.0**-26).log_().mul_(-2).sqrt_()
    angle = u[:, 1] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :size].reshape(len(rows), *shape)
