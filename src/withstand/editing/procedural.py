"""Backgrounds out of nothing: textures that are drawn at random and look like no place."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from withstand.errors import unknown


def texture(height: int, width: int, generator: Generator, kind: str | None = None) -> Tensor:
    """A random texture, float [3, height, width] in [0, 1].

    kind: "cloud" (noise whose amplitude falls with the frequency), "cells" (a Voronoi mosaic) or "waves" (sums of
    slanted stripes); None draws one of them.
    """
    kinds = sorted(_KINDS)
    if kind is None:
        kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    if kind not in _KINDS:
        raise unknown("kind of texture", kind, kinds)
    return _KINDS[kind](height, width, generator).clamp(0, 1)


def _cloud(height: int, width: int, g: Generator) -> Tensor:
    f = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    steepness = 0.8 + 1.2 * torch.rand((), generator=g)
    spectrum = torch.fft.rfft2(torch.randn(3, height, width, generator=g))
    noise = torch.fft.irfft2(spectrum / f.clamp_min(1 / max(height, width)) ** steepness, s=(height, width))
    noise = (noise - noise.mean((1, 2), keepdim=True)) / noise.std((1, 2), keepdim=True).clamp_min(1e-6)
    mixed = torch.einsum("ij,jhw->ihw", torch.eye(3) + 0.7, noise) / 2.0  # colours of a texture go together
    return _colours(1, g)[0, :, None, None] + 0.15 * mixed


def _cells(height: int, width: int, g: Generator) -> Tensor:
    n = int(torch.randint(12, 80, (), generator=g))
    at = torch.rand(n, 2, generator=g) * torch.tensor([height, width])
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).float()
    nearest = torch.cdist(grid.reshape(-1, 2), at).argmin(1).reshape(height, width)
    return _colours(n, g)[nearest].permute(2, 0, 1).contiguous()


def _waves(height: int, width: int, g: Generator) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    made = torch.zeros(3, height, width)
    for _ in range(3):
        angle, phase, length = torch.rand(3, generator=g).tolist()
        wave = 2 * math.pi / (6 + 40 * length) * (x * math.cos(math.pi * angle) + y * math.sin(math.pi * angle))
        made += (_colours(1, g)[0] - 0.5)[:, None, None] * torch.sin(wave + 2 * math.pi * phase)
    return _colours(1, g)[0, :, None, None] + 0.4 * made


def _colours(n: int, g: Generator) -> Tensor:
    return 0.1 + 0.8 * torch.rand(n, 3, generator=g)


_KINDS: dict[str, Callable[[int, int, Generator], Tensor]] = {"cloud": _cloud, "cells": _cells, "waves": _waves}
