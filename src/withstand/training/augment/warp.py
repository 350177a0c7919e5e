"""Affine maps of the image plane: rotation, shear, shift, scale; one of its own for each image."""

import math
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.augment.photometric import images
from withstand.training.recipe import Step

Interpolation = Literal["nearest", "bilinear"]


@component("augmentation", "affine")
class Affine:
    """A random rotation, shear, shift and change of size about the centre, bilinear; what comes in from outside is black.

    degrees: largest angle. shear: largest shift of a row for each row, of a column for each column. shift: largest share of
    the side. scale: s in [1 - scale, 1 + scale]. All uniform, signs by chance.
    """

    degrees: float = 25.0
    shear: float = 0.25
    shift: float = 0.25
    scale: float = 0.2

    def __post_init__(self) -> None:
        for name in ("degrees", "shear", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise bad(name, getattr(self, name), "a finite number >= 0")
        if not 0 <= self.scale < 1:
            raise bad("scale", self.scale, "a share in [0, 1)")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        low, high = images("affine", batch.x, step)
        angle, sx, sy, dx, dy, scale = step.rows.uniform((6,), "affine", low=-1.0).unbind(1)
        h, w = batch.x.shape[2:]
        forth = compose(
            translation(dx * self.shift * w, dy * self.shift * h),
            rotation(angle * math.radians(self.degrees)),
            shearing(sx * self.shear, sy * self.shear),
            scaling(1 + scale * self.scale),
        )
        moved = warp(batch.x - low, invert(forth), "bilinear") + low
        return replace(batch, x=moved.clamp(low, high))


def warp(x: Tensor, back: Tensor, mode: Interpolation = "nearest") -> Tensor:
    """x [N, C, H, W] moved by affine maps of the plane, zero where they look outside.

    back: [N, 2, 3], from a place in the result to the place in x that is seen there, in pixels to the right of and below
    the centre.
    """
    n, _, h, w = x.shape
    side = torch.tensor([w / 2, h / 2], device=x.device, dtype=torch.float32)
    at_y, at_x = (torch.arange(size, device=x.device) - (size - 1) / 2 for size in (h, w))
    places = torch.stack([at_x.expand(h, w), at_y[:, None].expand(h, w), torch.ones(h, w, device=x.device)], 2)
    seen = (places.view(1, h * w, 3) @ back.float().transpose(1, 2)).view(n, h, w, 2)
    return F.grid_sample(x, (seen / side).to(x.dtype), mode, "zeros", align_corners=False)


def rotation(angle: Tensor) -> Tensor:
    """[N, 2, 3]: anticlockwise by radians [N], about the centre."""
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _matrix(c, s, o, -s, c, o)


def shearing(along_x: Tensor, along_y: Tensor) -> Tensor:
    """[N, 2, 3]: a place (x, y) goes to (x + along_x * y, y + along_y * x)."""
    one, o = torch.ones_like(along_x), torch.zeros_like(along_x)
    return _matrix(one, along_x, o, along_y, one, o)


def translation(right: Tensor, down: Tensor) -> Tensor:
    """[N, 2, 3]: by so many pixels."""
    one, o = torch.ones_like(right), torch.zeros_like(right)
    return _matrix(one, o, right, o, one, down)


def scaling(factor: Tensor) -> Tensor:
    """[N, 2, 3]: by a factor, about the centre."""
    o = torch.zeros_like(factor)
    return _matrix(factor, o, o, o, factor, o)


def compose(*maps: Tensor) -> Tensor:
    """[N, 2, 3]: the last of the maps first."""
    whole = _square(maps[0])
    for one in maps[1:]:
        whole = whole @ _square(one)
    return whole[:, :2]


def invert(forth: Tensor) -> Tensor:
    """[N, 2, 3]: the way back. Raises: BadInput for a map that folds the plane."""
    matrix = _square(forth)
    if not bool((torch.linalg.det(matrix).abs() > 1e-6).all()):
        raise bad("shear", "a map that folds the plane", "along_x * along_y < 1", "Take less shear.")
    return torch.linalg.inv(matrix)[:, :2]


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, 1).view(-1, 2, 3)


def _square(m: Tensor) -> Tensor:
    last = torch.tensor([0.0, 0.0, 1.0], device=m.device, dtype=m.dtype).expand(len(m), 1, 3)
    return torch.cat([m, last], 1)
