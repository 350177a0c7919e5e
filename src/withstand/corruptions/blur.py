"""Blur: defocus, glass, motion, zoom and gaussian."""

import numpy as np
import torch
from torch import Tensor

from withstand.corruptions.filters import convolve, crop_for, gaussian, motion, zoom_in
from withstand.corruptions.kinds import Job, kind, uniform


@kind("gaussian_blur")
def gaussian_blur(x: Tensor, c: float, job: Job) -> Tensor:
    """Gaussian of c pixels."""
    return gaussian(x, c)


@kind("defocus_blur")
def defocus_blur(x: Tensor, c: tuple[float, float], job: Job) -> Tensor:
    """A disk of radius c[0], its edge softened by a Gaussian of c[1] pixels."""
    return convolve(x, disk(*c))


def disk(radius: float, alias: float) -> np.ndarray:
    """[17, 17] (larger above radius 8): X^2 + Y^2 <= radius^2, normalised, then blurred over 3x3 (5x5) pixels."""
    import cv2

    reach = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
    inside = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(inside / inside.sum(), (3, 3) if radius <= 8 else (5, 5), sigmaX=alias)


@kind("motion_blur")
def motion_blur(x: Tensor, c: tuple[int, float], job: Job) -> Tensor:
    """A trail of 2 c[0] + 1 pixels, fading with a Gaussian of c[1], at an angle U(-45, 45) degrees."""
    return motion(x, *c, angle=uniform(job.rows, (), "angle") * 90 - 45)


@kind("zoom_blur")
def zoom_blur(x: Tensor, c: tuple[float, int], job: Job) -> Tensor:
    """The mean of p and of its central zooms by 1, 1 + c[0], ..., c[1] of them."""
    count, step = c[1], (1 + c[0]) - 1  # the step of numpy's arange, whose last bits decide how some sizes round
    x = x.contiguous(memory_format=torch.channels_last)  # enlarging is three times faster so on a CPU
    total = 2 * x  # the image itself and its zoom by 1
    for i in range(1, count):
        (top, tall), (left, wide) = (crop_for(size, 1 + i * step) for size in x.shape[2:])
        total += zoom_in(x[:, :, top : top + tall, left : left + wide], 1 + i * step, *x.shape[2:])
    return (total / (count + 1)).contiguous()


@kind("glass_blur")
def glass_blur(x: Tensor, c: tuple[float, int, int], job: Job) -> Tensor:
    """Gaussian of c[0] pixels, truncated to 8 bits; c[2] passes of local exchange within c[1] pixels; Gaussian again.

    A pass scans rows, then columns, from S - d down to d + 1 and exchanges each pixel with the one at an offset from
    {-d, ..., d - 1}^2. The published code assigns a tuple of array views, which *copies* the neighbour over the pixel.
    """
    sigma, d, passes = c
    x = torch.floor(gaussian(x, sigma) + 2.0**-10)
    tall, wide = (max(size - 2 * d, 0) for size in x.shape[2:])
    for step in range(passes if tall and wide else 0):
        offsets = (uniform(job.rows, (tall, wide, 2), f"offset {step}") * (2 * d)).long().clamp_max_(2 * d - 1) - d
        x = (exchange if job.swap else copy_over)(x, offsets, d)
    return gaussian(x, sigma)


def copy_over(x: Tensor, offsets: Tensor, d: int) -> Tensor:
    """The published pass, exactly, in a logarithmic number of parallel steps. offsets: [n, S - 2d, S - 2d, (dy, dx)].

    A pixel copies its neighbour's new value if the scan has passed the neighbour (it lies after the pixel in reading
    order, inside the scanned region), else the old one. So the pixels point at each other in chains that end at an old
    value; pointing at the target's target halves every chain.
    """
    n, channels, h, w = x.shape
    every = torch.arange(h * w, device=x.device)
    new = every.repeat(n, 1).view(n, h, w) + h * w  # entries under h * w stand for new values, those above for old ones
    y, z = torch.arange(d + 1, h - d + 1, device=x.device), torch.arange(d + 1, w - d + 1, device=x.device)
    here = y[:, None] * w + z
    y, z = y[:, None] + offsets[..., 0], z + offsets[..., 1]
    there = y * w + z
    passed = (there > here) & (y > d) & (y <= h - d) & (z > d) & (z <= w - d)
    new[:, d + 1 : h - d + 1, d + 1 : w - d + 1] = there + h * w * ~passed
    new, old = new.flatten(1), (every + h * w).expand(n, -1)
    while bool((new < h * w).any()):
        new = torch.cat([new, old], 1).gather(1, new)
    return x.flatten(2).gather(2, (new - h * w)[:, None].expand(-1, channels, -1)).view_as(x)


def exchange(x: Tensor, offsets: Tensor, d: int) -> Tensor:
    """A true swap in the same order: no colour is lost. offsets: [n, S - 2d, S - 2d, (dy, dx)].

    Two swaps can touch the same pixel only if they lie less than 2d rows and columns apart, so all pixels with the same
    2d * row + column swap at once.
    """
    n, channels, _, w = x.shape
    tall, wide = offsets.shape[1:3]
    flat = x.flatten(2).clone()
    for front in range(2 * d * (tall - 1) + wide - 1, -1, -1):
        row = torch.arange(max(0, -((wide - 1 - front) // (2 * d))), min(tall, front // (2 * d) + 1), device=x.device)
        column = front - 2 * d * row
        offset = offsets[:, row, column]
        here = ((row + d + 1) * w + column + d + 1).expand(n, -1)
        there = here + offset[..., 0] * w + offset[..., 1]
        here, there = (i[:, None].expand(-1, channels, -1) for i in (here, there))
        a, b = flat.gather(2, here), flat.gather(2, there)
        flat.scatter_(2, here, b).scatter_(2, there, a)
    return flat.view_as(x)
