"""Random crops and mirror images."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.recipe import Step


@component("augmentation", "crop_flip")
class CropFlip:
    """A random crop of the zero-padded image at its own size, then a mirror image with probability 1/2.

    padding: pixels on each side. flip: whether mirror images occur (not for digits or letters).
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise bad("padding", self.padding, "pixels >= 0")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        if batch.x.dim() != 4:
            mend = "Give augmentations that suit the data."
            raise bad("crop_flip", f"inputs {list(batch.x.shape)}", "images [N, C, H, W]", mend)
        return replace(batch, x=crop_flip(batch.x, step, self.padding, self.flip))


def crop_flip(x: Tensor, step: Step, padding: int, flip: bool) -> Tensor:
    """x [N, C, H, W] cropped at one random place per example and mirrored by a coin per example."""
    n, _, h, w = x.shape
    draws = step.rows.integers((2,), 0, 2 * padding + 1, "crop")
    ys = draws[:, 0, None] + torch.arange(h, device=x.device)
    xs = draws[:, 1, None] + torch.arange(w, device=x.device)
    if flip:
        xs = torch.where(step.rows.bits((1,), "flip") < 0, xs.flip(1), xs)
    padded = F.pad(x, (padding,) * 4)
    return (
        padded[torch.arange(n, device=x.device)[:, None, None], :, ys[:, :, None], xs[:, None, :]]
        .permute(0, 3, 1, 2)
        .contiguous()
    )
