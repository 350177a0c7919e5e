"""RandAugment on whole batches."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.augment import photometric as light
from withstand.training.augment.photometric import images
from withstand.training.augment.warp import warp
from withstand.training.recipe import Step


@component("augmentation", "randaugment")
class RandAugment:
    """A few changes of light and shape, drawn anew for each image from FixMatch's fourteen, each of random strength.

    ops: draws for an image, with replacement. share: the chance of each to be made. Strengths are uniform over the whole
    range of an operation (the reference takes 9 steps of it), directions by chance: brightness, contrast, colour and
    sharpness weakened to 0.05..0.95; 4..7 bits; rotation up to 30 degrees; shear and shift up to 0.3 of the side;
    everything above a threshold inverted; contrast stretched; levels equalised; nothing. What comes in from outside is
    black. Follow it with `cutout(0.5)`, as FixMatch does.

    References: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced search space",
    2019, arXiv 1909.13719; the pool: Sohn et al., "FixMatch", 2020, arXiv 2001.07685.
    """

    ops: int = 2
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.ops < 1:
            raise bad("ops", self.ops, "a whole number >= 1")
        if not 0 <= self.share <= 1:
            raise bad("share", self.share, "a chance in [0, 1]")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        low, high = images("randaugment", batch.x, step)
        light.grey(batch.x[:0])  # whatever is drawn, refuse at the first batch what has no luma
        x = (batch.x - low) / (high - low)
        which = step.rows.integers((self.ops,), 0, len(POOL), "randaugment operation")
        made = step.rows.uniform((self.ops,), "randaugment chance") < self.share
        strength = step.rows.uniform((self.ops,), "randaugment strength")
        sign = step.rows.signs((self.ops,), "randaugment direction")
        names = tuple(POOL)
        chosen = torch.where(made, which, names.index("identity")).cpu()
        for slot in range(self.ops):
            signed = strength[:, slot] * sign[:, slot]
            x = apply([names[i] for i in chosen[:, slot].tolist()], x, strength[:, slot], signed, POOL, 30)
        return replace(batch, x=x * (high - low) + low)


Change = Callable[[Tensor, Tensor], Tensor]


def apply(
    names: list[str], x: Tensor, strength: Tensor, signed: Tensor, pool: Mapping[str, Change | None], degrees: float
) -> Tensor:
    """One operation of the pool for each image [N, C, H, W] in [0, 1].

    strength: [N, ...], what the changes of the pool get beside the images. signed: [N] in [-1, 1], the strength of shears,
    shifts and turns, the last up to `degrees`.
    """
    out = x.clone()
    shapes = [i for i, name in enumerate(names) if name in GEOMETRIC]
    if shapes:  # all of them in one pass
        rows = torch.tensor(shapes, device=x.device)
        moves = F.one_hot(torch.tensor([GEOMETRIC.index(names[i]) for i in shapes], device=x.device), len(GEOMETRIC))
        out[rows] = warp(x[rows], _back(moves, signed[rows], x.shape[2], x.shape[3], degrees))
    for name in sorted(set(names) - set(GEOMETRIC) - {"identity"}):
        rows = torch.tensor([i for i, own in enumerate(names) if own == name], device=x.device)
        out[rows] = pool[name](x[rows], strength[rows])  # type: ignore[misc]
    return out


def _back(moves: Tensor, s: Tensor, h: int, w: int, degrees: float) -> Tensor:
    """[N, 2, 3]: where each of the geometric operations looks. moves: one-hot [N, 5], which it is; s: signed strength [N].

    Shear and shift are as PIL's affine transforms with (1, 0.3 s, 0), (0.3 s, 1, 0): shear about the upper left corner.
    """
    turn, shear_x, shear_y, right, down = moves.to(s.dtype).unbind(1)
    angle = turn * s * math.radians(degrees)
    a, b = 0.3 * s * shear_x, 0.3 * s * shear_y
    rows = [
        torch.stack([angle.cos(), -angle.sin() + a, a * h / 2 + torch.trunc(0.3 * s * w) * right], 1),
        torch.stack([angle.sin() + b, angle.cos(), b * w / 2 + torch.trunc(0.3 * s * h) * down], 1),
    ]
    return torch.stack(rows, 1)


def _weaker(change: Change) -> Change:
    return lambda x, s: change(x, 0.05 + 0.9 * s)


GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
POOL: dict[str, Change | None] = {
    "autocontrast": lambda x, s: light.autocontrast(x),
    "brightness": _weaker(light.brightness),
    "colour": _weaker(light.colour),
    "contrast": _weaker(light.contrast),
    "equalise": lambda x, s: light.equalise(x),
    "identity": None,
    "posterise": lambda x, s: light.posterise(x, 4 + (4 * s).floor().long()),
    "sharpness": _weaker(light.sharpness),
    "solarise": lambda x, s: light.solarise(x, 1 - s),
    **dict.fromkeys(GEOMETRIC),
}
"""Changes of light as functions of images and strengths; shapes are done together."""
