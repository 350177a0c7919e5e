"""Noise: gaussian, shot, impulse and speckle. Every channel value draws its own."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from withstand.corruptions.kinds import Job, kind, normal, words


@kind("gaussian_noise")
def gaussian_noise(x: Tensor, c: float, job: Job) -> Tensor:
    """p + c N(0, 1)."""
    return normal(job.rows, x.shape[1:], "noise").mul_(255 * c).add_(x)


@kind("speckle_noise")
def speckle_noise(x: Tensor, c: float, job: Job) -> Tensor:
    """p + p c N(0, 1)."""
    return normal(job.rows, x.shape[1:], "noise").mul_(c).add_(1).mul_(x)


@kind("impulse_noise")
def impulse_noise(x: Tensor, c: float, job: Job) -> Tensor:
    """A share c of the channel values becomes black or white, each with the same chance."""
    u = words(job.rows, x.shape[1:], "noise")
    edge = round(c / 2 * 2**32)
    return x.masked_fill(u < edge - 2**31, 0).masked_fill_(u >= 2**31 - edge, 255)


@kind("shot_noise")
def shot_noise(x: Tensor, c: int, job: Job) -> Tensor:
    """Poisson(p c) / c.

    Counts above c are white whatever they are, so a draw is one of c + 1 values with known chances for each of the 256
    levels: drawn in one look by Walker's alias method.
    """
    keep, jump = (t.to(x.device) for t in _alias_tables(c))
    u = (words(job.rows, x.shape[1:], "noise").long() & 0xFFFFFFFF) * (c + 1)
    cell, rest = u >> 32, (u & 0xFFFFFFFF).float() * 2.0**-32
    place = (x.long() * (c + 1) + cell).flatten()
    moved = rest >= keep.index_select(0, place).view_as(x)
    return jump.index_select(0, place).view_as(x).mul_(moved.float()).add_(cell.float()).mul_(255 / c)


@cache
def _alias_tables(c: int) -> tuple[Tensor, Tensor]:
    """For each level l and cell k of min(Poisson(l c / 255), c): the chance to keep k, and how far to jump otherwise.

    Both [256 * (c + 1)]. Reference: Walker, "An Efficient Method for Generating Discrete Random Variables with General
    Distributions", ACM TOMS 1977.
    """
    from scipy.stats import poisson

    rates = np.arange(256)[:, None] * c / 255
    chance = poisson.pmf(np.arange(c + 1), rates)
    chance[:, c] = poisson.sf(c - 1, rates[:, 0])
    left = chance * (c + 1)
    keep, other = np.ones_like(left), np.tile(np.arange(c + 1), (256, 1))
    level, settled = np.arange(256), np.zeros(left.shape, dtype=bool)
    for _ in range(c):  # the smallest open cell is filled up from the largest
        small = np.where(settled, np.inf, left).argmin(1)
        large = np.where(settled, -np.inf, left).argmax(1)
        keep[level, small], other[level, small] = left[level, small], large
        settled[level, small] = True
        left[level, large] -= 1 - keep[level, small]
    return torch.from_numpy(keep).float().flatten(), torch.from_numpy(other - np.arange(c + 1)).float().flatten()
