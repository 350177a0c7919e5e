"""The networks of ProS-GAN: a painter that is told a set of labels, and a discriminator that reads labels off images."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from withstand.attacks.generative.generator import SMALLEST
from withstand.attacks.hashing.centres import sign
from withstand.attacks.hashing.tha import PrototypeNet
from withstand.errors import bad

Shape = tuple[int, int, int]


class CodeGenerator(nn.Module):
    """`generator(x, y)`: images [N, C, H, W] in [0, 1] that are to get the codes of label sets y 0/1 [N, classes].

    prototypes: tells the code of a set of labels, and the features that the painter is given. painter: see `Painter`.
    """

    def __init__(self, prototypes: PrototypeNet, painter: "Painter") -> None:
        super().__init__()
        self.prototypes, self.painter = prototypes, painter

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.painter(x, self.prototypes.feature(y).detach())

    def codes(self, y: Tensor) -> Tensor:
        """The codes [N, K] of -1 and 1 that stand for label sets."""
        return sign(self.prototypes(y).detach())


class Painter(nn.Module):
    """Images [N, C, H, W] in [0, 1] and features [N, feature] of what is wanted, to images in [0, 1].

    The features become C planes: a linear layer to 2 ngf small maps (14 x 14 for 224 pixels, with four doublings; 4 x 4 to
    7 x 7 below 64 pixels, with fewer), doubled by transposed convolutions that halve the channels. Planes and image go
    through a convolution, two strided ones, `blocks` residual blocks and two transposed ones; their ngf maps and the
    image make the result, (tanh + 1) / 2. Instance norm throughout. It is made for one size of images; sides that are no
    multiples of 4 are padded by reflection and cut afterwards.

    Reference: layers as in the official code of ProS-GAN, see `ProSGANRecipe`; images are taken in [-1, 1] inside.
    """

    def __init__(self, shape: Shape, feature: int = 512, ngf: int = 64, blocks: int = 6) -> None:
        super().__init__()
        channels, height, width = self.shape = tuple(shape)
        if min(height, width) < SMALLEST:
            raise bad("data", f"{height}x{width} pixels", f"images with sides of {SMALLEST} pixels or more")
        self.more = (0, -width % 4, 0, -height % 4)
        padded = height + self.more[3], width + self.more[1]
        doublings = min(4, int(math.log2(min(padded) / 4)))
        self.start = (2 * ngf, *(math.ceil(side / 2**doublings) for side in padded))
        widths = [max(1, 2 * ngf >> k) for k in range(doublings + 1)]
        self.grow = nn.Linear(feature, math.prod(self.start))
        self.planes = nn.Sequential(
            *(layer for a, b in pairwise(widths) for layer in _up(a, b)),
            nn.Conv2d(widths[-1], channels, 3, 1, 1, bias=False),
        )
        self.body = nn.Sequential(
            *_plain(nn.Conv2d(2 * channels, ngf, 7, 1, 3)),
            *_plain(nn.Conv2d(ngf, 2 * ngf, 4, 2, 1)),
            *_plain(nn.Conv2d(2 * ngf, 4 * ngf, 4, 2, 1)),
            *(_Residual(4 * ngf) for _ in range(blocks)),
            *_up(4 * ngf, 2 * ngf),
            *_up(2 * ngf, ngf),
        )
        self.last = nn.Conv2d(ngf + channels, channels, 3, 1, 1, bias=False)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise bad("x", f"images {list(x.shape[1:])}", f"{list(self.shape)}, as the generator was made for")
        seen = 2 * F.pad(x, self.more, mode="reflect") - 1
        planes = self.planes(torch.relu(self.grow(features)).unflatten(1, self.start))
        planes = planes[..., : seen.shape[2], : seen.shape[3]]
        made = self.last(torch.cat([self.body(torch.cat([planes, seen], 1)), seen], 1))
        return (torch.tanh(made[..., : x.shape[2], : x.shape[3]]) + 1) / 2


class Critic(nn.Module):
    """Images [N, C, H, W] in [0, 1] to [N, classes + 1]: how much of each label, and at last how much of a fake.

    Strided convolutions under spectral norm that double their channels from `ndf` on, as many as leave 4 to 7 pixels of
    the shorter side, five at most and one at least; a convolution over what is left.
    """

    def __init__(self, shape: Shape, classes: int, ndf: int = 64) -> None:
        super().__init__()
        channels, height, width = shape
        depth = min(5, max(1, int(math.log2(min(height, width))) - 2))
        widths = [channels, *(ndf << k for k in range(depth))]
        strided = [
            layer
            for a, b in pairwise(widths)
            for layer in (spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.01))
        ]
        self.layers = nn.Sequential(
            *strided, nn.Conv2d(widths[-1], classes + 1, (height >> depth, width >> depth), bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(2 * x - 1).flatten(1)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in range(2))
        self.layers = nn.Sequential(*_plain(first), second, nn.InstanceNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return layer, nn.InstanceNorm2d(layer.out_channels), nn.ReLU()


def _up(a: int, b: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return _plain(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False))
