"""A window of each example without content."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.recipe import Step


@component("augmentation", "cutout")
class Cutout:
    """A grey window at a random place: a square of an image, a stretch of a series.

    size: its side as a share of the side of the image (of the length of a series), rounded to whole pixels. The middle is
    uniform, so that windows at the border are cut off. Grey is the middle of the range of inputs, 0 where they have none.

    References: DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017, arXiv
    1708.04552; in grey and half the side: Sohn et al., "FixMatch", 2020, arXiv 2001.07685.
    """

    size: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.size <= 1:
            raise bad("size", self.size, "a share of the side in (0, 1]")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        if batch.x.dim() < 3:
            raise bad("cutout", f"inputs {list(batch.x.shape)}", "images [N, C, H, W] or series [N, C, T]")
        sides = batch.x.shape[2:]
        middle = step.rows.uniform((len(sides),), "cutout")
        grey = 0.0 if step.box is None else sum(step.box) / 2
        return replace(batch, x=batch.x.masked_fill(window(middle, sides, self.size), grey))


def window(middle: Tensor, sides: torch.Size, size: float) -> Tensor:
    """bool [N, 1, *sides]: the cells of windows around `middle` [N, dims] in [0, 1)."""
    return cells(middle, sides, [max(1, round(size * side)) for side in sides])


def cells(middle: Tensor, sides: torch.Size, lengths: Sequence[int | Tensor]) -> Tensor:
    """bool [N, 1, *sides], as `window`, of so many cells along each side; a length may be [N, 1]."""
    inside = torch.ones(len(middle), 1, *sides, dtype=torch.bool, device=middle.device)
    for d, (side, length) in enumerate(zip(sides, lengths)):
        first = (middle[:, d, None] * side).floor() - length // 2
        past = torch.arange(side, device=middle.device) - first
        inside &= ((past >= 0) & (past < length)).view(-1, 1, *(side if e == d else 1 for e in range(len(sides))))
    return inside
