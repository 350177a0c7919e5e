"""The network that turns an image into an adversarial one."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad

Output = Literal["image", "residual"]
SMALLEST = 5  # pixels of a side: below, nothing is left to reflect


class Generator(nn.Module):
    """A residual network between two strided and two transposed convolutions; images [N, C, H, W] in [0, 1] to the same.

    output "image": (tanh + 1) / 2, a whole image, which the attack then projects into its set; "residual": x + reach * tanh,
    which may leave [0, 1] by as much. classes: K > 0 makes it conditional, `generator(x, target)` with target long [N]
    given to the first layer as K planes, one of them 1. ngf: channels at full resolution, four times as many inside.
    blocks: residual blocks. dropout: inside of them, while training.

    The networks of the papers take sides that are multiples of 4; others, from 5 pixels on, are padded by reflection at
    the bottom and the right, and cut afterwards.

    >>> sum(p.numel() for p in Generator(3).parameters())
    7841411

    Reference: layers as in Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
    2016, arXiv 1603.08155, and in the official code of Naseer et al., "Cross-Domain Transferability of Adversarial
    Perturbations", 2019, arXiv 1905.11736.
    """

    def __init__(
        self,
        channels: int,
        ngf: int = 64,
        blocks: int = 6,
        output: Output = "image",
        reach: float = 1.0,
        classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.output, self.reach = channels, classes, output, reach
        inner = [_Residual(4 * ngf, dropout) for _ in range(blocks)]
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels + classes, ngf, 7, bias=False),
            *_normal(ngf),
            nn.Conv2d(ngf, 2 * ngf, 3, 2, 1, bias=False),
            *_normal(2 * ngf),
            nn.Conv2d(2 * ngf, 4 * ngf, 3, 2, 1, bias=False),
            *_normal(4 * ngf),
            *inner,
            nn.ConvTranspose2d(4 * ngf, 2 * ngf, 3, 2, 1, 1, bias=False),
            *_normal(2 * ngf),
            nn.ConvTranspose2d(2 * ngf, ngf, 3, 2, 1, 1, bias=False),
            *_normal(ngf),
            nn.ReflectionPad2d(3),
            nn.Conv2d(ngf, channels, 7),
        )

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        made = torch.tanh(self._padded(self._joined(x, target)))
        return (made + 1) / 2 if self.output == "image" else x + self.reach * made

    def extra_repr(self) -> str:
        return f"output={self.output}, reach={self.reach:g}, classes={self.classes}"

    def _joined(self, x: Tensor, target: Tensor | None) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise bad(
                "x", f"shape {list(x.shape)}", f"images [N, {self.channels}, H, W], as the generator was made for"
            )
        if min(x.shape[2:]) < SMALLEST:
            raise bad("x", f"{x.shape[2]}x{x.shape[3]} pixels", f"sides of {SMALLEST} pixels or more")
        if not self.classes:
            if target is not None:
                raise bad("target", "classes", "none for this generator, which aims at no class")
            return x
        if target is None:
            raise bad("target", "none", f"a class from 0 to {self.classes - 1} for each image")
        if int(target.min()) < 0 or int(target.max()) >= self.classes:
            raise bad("target", f"{int(target.min())} to {int(target.max())}", f"classes from 0 to {self.classes - 1}")
        planes = F.one_hot(target, self.classes).to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return torch.cat([x, planes], 1)

    def _padded(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        more = (0, -width % 4, 0, -height % 4)
        return self.layers(F.pad(x, more, mode="reflect") if any(more) else x)[..., :height, :width]


class _Residual(nn.Module):
    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            *_normal(channels),
            nn.Dropout(dropout),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _normal(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
