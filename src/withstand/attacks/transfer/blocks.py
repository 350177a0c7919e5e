"""Views that show the surrogate images with other statistics, or with their blocks in another order."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.attacks.transfer.parts import Look, images, mean
from withstand.errors import bad
from withstand.protocols import Oracle
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import per_row


@component("view", "block_shuffle", systems=("transfer_baselines",))
class BlockShuffle:
    """Block shuffle and rotation (BSR): the mean over images cut into blocks that are shuffled and turned.

    The image is cut into `parts` strips of random height, which change places; each of them into `parts` pieces of random
    width, which change places; each piece is turned about its centre by an angle in [-angle, angle) degrees, with bilinear
    weights and zeros where nothing is. parts=1 with angle=0 is the image itself. copies: images per look.

    Reference: Wang, He, Wang, Wang, "Boosting Adversarial Transferability by Block Shuffle and Rotation", 2024, arXiv
    2308.10299.
    """

    parts: int = 3
    angle: float = 24.0
    copies: int = 10

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return self.copies

    def __post_init__(self) -> None:
        for name in ("parts", "copies"):
            if getattr(self, name) < 1:
                raise bad(name, getattr(self, name), "a whole number >= 1")
        if not 0 <= self.angle <= 180:
            raise bad("angle", self.angle, "degrees in [0, 180]")

    def __call__(self, oracle: Oracle) -> Oracle:
        def shuffled(x: Tensor, rows: Rows, step: int) -> Look:
            def look(i: int) -> Look:
                own = step * self.copies + i
                with torch.enable_grad():
                    point = x.detach().requires_grad_(True)
                    changed = self.change(point, rows, own)
                gradient, value = oracle(changed.detach(), rows, own)
                return torch.autograd.grad(changed, point, gradient)[0], value

            return mean(look(i) for i in range(self.copies))

        return shuffled

    def change(self, x: Tensor, rows: Rows, step: int) -> Tensor:
        """Images [N, C, H, W] as this step shows them."""
        height, width = images("block_shuffle", x)
        n = self.parts
        if min(height, width) < n:
            raise bad("parts", n, f"at most {min(height, width)}, the image's shorter side")
        draws = rows.uniform((2, n), "block rows", step, dtype=torch.float64)
        strip, down, top, tall = _places(draws[:, 0], draws[:, 1], height)  # [N, H]
        draws = rows.uniform((2, n, n), "block columns", step, dtype=torch.float64)
        by_strip = _places(draws[:, 0], draws[:, 1], width)  # [N, n, W]
        rank = strip[..., None].expand(-1, -1, width)
        piece, right, left, wide = (part.gather(1, rank) for part in by_strip)  # [N, H, W]
        turn = rows.uniform((n * n,), "block angles", step, -self.angle, self.angle, torch.float64) * (math.pi / 180)
        turn = turn.gather(1, (rank * n + piece).flatten(1)).view_as(piece)
        reach_y, reach_x = (tall[..., None] - 1) / 2, (wide - 1) / 2
        dy, dx = down[..., None] - reach_y, right - reach_x
        y = turn.cos() * dy - turn.sin() * dx
        z = turn.sin() * dy + turn.cos() * dx
        inside = (y.abs() <= reach_y + 0.5) & (z.abs() <= reach_x + 0.5)
        y = top[..., None] + reach_y + y.clamp(-reach_y.expand_as(y), reach_y.expand_as(y))
        z = left + reach_x + z.clamp(-reach_x, reach_x)
        grid = torch.stack([z * 2 / max(width - 1, 1) - 1, y * 2 / max(height - 1, 1) - 1], 3).to(x.dtype)
        return F.grid_sample(x, grid, align_corners=True) * inside[:, None]


def _places(cuts: Tensor, order: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each of `side` places of a line that is cut into strips and put together anew, [..., side] each: which strip lies
    there, how far into it, where it began, and its length. cuts, order: uniform draws [..., n]."""
    lengths = (cuts / cuts.sum(-1, keepdim=True) * side).round().long()
    rest = side - lengths.sum(-1, keepdim=True)
    lengths.scatter_add_(-1, lengths.argmax(-1, keepdim=True), rest)
    began = lengths.cumsum(-1) - lengths
    order = order.argsort(-1)
    ends = lengths.gather(-1, order).cumsum(-1)
    i = torch.arange(side, device=cuts.device)
    slot = (i[:, None] >= ends[..., None, :]).sum(-1)
    strip = order.gather(-1, slot)
    length = lengths.gather(-1, strip)
    return strip, i - (ends.gather(-1, slot) - length), began.gather(-1, strip), length


@component("view", "random_normalisation", systems=("bia", "transfer_baselines"))
class RandomNormalisation:
    """Random normalisation (RN): the mean over images whose brightness and contrast are drawn.

    x' = 0.5 + 0.75 (x - m) / s, m ~ N(0.5, spread^2), s ~ N(0.75, spread^2), drawn for each example. In the paper
    (x - m) / s takes the place of the network's own normalisation; here it is measured against its centre, so that
    spread=0 is the image itself, whatever network follows. copies: images per look.

    Reference: Zhang, Li, Chen, Song, Gao, He, Xue, "Beyond ImageNet Attack: Towards Crafting Adversarial Examples for
    Black-box Domains", 2022, arXiv 2201.11528 (there for training generators).
    """

    spread: float = 0.08
    copies: int = 1

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return self.copies

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 0.15:
            raise bad("spread", self.spread, "a standard deviation in [0, 0.15]", "Beyond it s comes near 0.")
        if self.copies < 1:
            raise bad("copies", self.copies, "a whole number >= 1")

    def __call__(self, oracle: Oracle) -> Oracle:
        def normalised(x: Tensor, rows: Rows, step: int) -> Look:
            def look(i: int) -> Look:
                own = step * self.copies + i
                m, s = (self.spread * rows.normal((2,), "normalisation", own, torch.float64)).to(x.dtype).unbind(1)
                scale = per_row(0.75 / (0.75 + s), x)
                gradient, value = oracle(0.5 + (x - 0.5 - per_row(m, x)) * scale, rows, own)
                return gradient * scale, value

            return mean(look(i) for i in range(self.copies))

        return normalised
