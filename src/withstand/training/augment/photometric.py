"""Changes of light and colour with one strength for each image, as PIL and torchvision define them for all alike.

x: float [N, C, H, W] in [0, 1], C = 1 or 3; strengths: [N]. Results stay in [0, 1].
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.recipe import Step

LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601-2."""


@component("augmentation", "light")
class Light:
    """Brightness and contrast at random: lo + (x - lo) * b, then the distance from the mean grey times c.

    brightness, contrast: b in [1 - brightness, 1 + brightness], c alike, uniform and independent.
    """

    brightness: float = 0.3
    contrast: float = 0.3

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise bad(name, getattr(self, name), "a share in [0, 1]")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        low, high = images("light", batch.x, step)
        b, c = step.rows.uniform((2,), "light", low=-1.0, dtype=batch.x.dtype).unbind(1)
        x = brightness((batch.x - low) / (high - low), 1 + b * self.brightness)
        return replace(batch, x=contrast(x, 1 + c * self.contrast) * (high - low) + low)


def images(name: str, x: Tensor, step: Step) -> tuple[float, float]:
    """The range of values. Raises: BadInput for what is no batch of images of a known range."""
    if x.dim() != 4 or not x.is_floating_point():
        got = f"inputs {x.dtype} {list(x.shape)}"
        raise bad(name, got, "float images [N, C, H, W]", "Give augmentations that suit the data.")
    if step.box is None:
        raise bad(name, "images without a declared range", "a data set whose space has a box, e.g. (0.0, 1.0)")
    return step.box


def blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share * x + (1 - share) * other, cut to [0, 1]."""
    return (other + (x - other) * share.view(-1, 1, 1, 1)).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """Luma, [N, 1, H, W]; grey images as they are."""
    if x.shape[1] == 1:
        return x
    if x.shape[1] != 3:
        raise bad("images", f"{x.shape[1]} channels", "1 or 3, which have a luma")
    return (x * torch.tensor(LUMA, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)).sum(1, keepdim=True)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """factor * x."""
    return blend(x, torch.zeros_like(x), factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """The distance from the image's mean grey, times a factor."""
    return blend(x, grey(x).mean((1, 2, 3), keepdim=True), factor)


def colour(x: Tensor, factor: Tensor) -> Tensor:
    """The distance from grey, times a factor; grey images stay as they are."""
    return blend(x, grey(x), factor) if x.shape[1] == 3 else x


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """The distance from the smoothed image, times a factor."""
    return blend(x, smoothed(x), factor)


def smoothed(x: Tensor) -> Tensor:
    """Means over 3x3 (weight 5 in the middle, 1 around); the border stays."""
    kernel = torch.ones(3, 3, device=x.device, dtype=x.dtype)
    kernel[1, 1] = 5
    return _filtered(x, kernel / 13)


def blurred(x: Tensor) -> Tensor:
    """Means over the rim of 5x5; a border of two stays."""
    kernel = torch.ones(5, 5, device=x.device, dtype=x.dtype)
    kernel[1:4, 1:4] = 0
    return _filtered(x, kernel / 16)


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel convolved where the kernel fits."""
    reach = len(kernel) // 2
    if min(x.shape[2:]) < len(kernel):
        return x
    out, inner = x.clone(), (..., slice(reach, -reach), slice(reach, -reach))
    out[inner] = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None]).view_as(x[inner])
    return out


def posterise(x: Tensor, bits: Tensor) -> Tensor:
    """2^bits levels, the largest not above the value; bits int64 [N] in 1..8."""
    levels = (2.0 ** bits.to(x.dtype)).view(-1, 1, 1, 1)
    return (x * levels).floor().clamp(max=levels - 1) / levels


def solarise(x: Tensor, threshold: Tensor) -> Tensor:
    """1 - x wherever x >= threshold."""
    return torch.where(x >= threshold.view(-1, 1, 1, 1), 1 - x, x)


def autocontrast(x: Tensor) -> Tensor:
    """Every channel stretched to all of [0, 1]; constant ones stay."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, x, (x - low) / torch.where(flat, 1, high - low)).clamp(0, 1)


def equalise(x: Tensor) -> Tensor:
    """Every channel's 256 levels spread so that each is as frequent as the others; channels of one level stay.

    With n_v pixels of level v, s = (pixels - n_last) // 255 for the highest level that occurs: v becomes
    (s // 2 + sum_{u<v} n_u) // s, at most 255; s = 0 changes nothing.
    """
    level = (x * 255).round().long().flatten(2)
    counts = torch.zeros(*level.shape[:2], 256, device=x.device, dtype=torch.long)
    counts.scatter_add_(2, level, torch.ones_like(level))
    below = counts.cumsum(2) - counts
    last = level.amax(2, keepdim=True)
    spread = below.gather(2, last) // 255
    table = ((spread // 2 + below) // spread.clamp(min=1)).clamp(max=255)
    made = torch.where(spread > 0, table.gather(2, level), level)
    return (made / 255).to(x.dtype).view_as(x)
