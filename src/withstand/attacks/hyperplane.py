"""The nearest point of a hyperplane inside a box, under Linf, L2 and L1; exact, for a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from withstand.threats import L1, L2, Box, Linf, Threat

Scratch = Callable[[str, Tensor], Tensor]


def _fresh(name: str, like: Tensor) -> Tensor:
    return torch.empty_like(like)


def to_hyperplane(
    u: Tensor, w: Tensor, gap: Tensor, norm: Threat, box: Box = None, scratch: Scratch = _fresh
) -> Tensor:
    """The shortest d [A, n] with w . d = gap and u + d in the box; where there is none, all of d goes to the box.

    u, w: [A, n]; gap: [A]; norm: a threat of type Linf, L2 or L1 (its radius plays no part). scratch(name, like): where
    to find memory that may be written over; the result lies in "d".

    With room_i the way from u_i to the box in the direction that helps, sign(gap w_i):
    Linf: |d_i| = min(l, room_i); L2: |d_i| = min(m |w_i|, room_i), where l or m solves sum |w_i| |d_i| = |gap|;
    L1: values are filled to the box in falling order of |w_i| until |gap| is used up.

    Under Linf and L2 the sum is concave and piecewise linear in l or m. Newton's method from below therefore never
    overshoots: each step adds to the values that stand at the box, and the step that adds none is exact.
    """
    d = torch.mul(w, torch.where(gap < 0, -1.0, 1.0).to(w.dtype)[:, None], out=scratch("d", w))
    room = scratch("room", w)
    if box is None:
        room.fill_(torch.inf)
    else:
        torch.gt(d, 0, out=room)  # 1 where u must grow
        room.mul_(box[1] - box[0]).add_(box[0]).sub_(u).abs_()
    slope = torch.abs(w, out=scratch("slope", w))
    if isinstance(norm, (Linf, L2)):
        size = _level(slope, room, gap.abs()[:, None], isinstance(norm, L2), scratch)
    elif isinstance(norm, L1):
        size = _fill(slope, room, gap.abs())
    else:
        raise TypeError(f"no projection onto a hyperplane under {norm!r}")
    return d.sign_().mul_(size)


def _level(slope: Tensor, room: Tensor, need: Tensor, paced: bool, scratch: Scratch) -> Tensor:
    """min(level * pace, room) for the smallest level [A, 1] with which the sum of slope times it is `need`.

    slope, room [A, n]; need [A, 1]; pace: the slope if `paced`, else 1. The level is huge where there is no room for it.
    """
    size, open_ = scratch("size", room), scratch("open", room)
    gain = torch.mul(slope, slope, out=scratch("gain", room)) if paced else slope
    most = torch.finfo(slope.dtype).max
    free = gain.sum(1, keepdim=True)
    level = torch.where(free > 0, need / free, 0.0).clamp_max_(most)
    while True:
        reach = torch.mul(slope, level, out=size) if paced else level
        torch.ge(room, reach, out=open_)
        torch.minimum(room, reach, out=size)
        before, free = free, torch.linalg.vecdot(gain, open_)[:, None]
        if not bool((free < before).any()):  # written so that NaN ends the loop as well
            return size
        left = (need - torch.linalg.vecdot(slope, size)[:, None]).clamp_min_(0)
        level = torch.where(free > 0, level + left / free, most).clamp_max_(most)


def _fill(slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """|d| under L1: the steepest values first, each as far as it goes."""
    steep, order = slope.sort(dim=1, descending=True)
    room = room.gather(1, order)
    worth = torch.where(steep > 0, steep * room, 0.0)
    before = torch.cat([torch.zeros_like(need)[:, None], worth.cumsum(1)[:, :-1]], 1)
    left = (need[:, None] - before).clamp_min(0)
    size = torch.where(left >= worth, room, left / steep).where(steep > 0, 0.0)
    return torch.zeros_like(size).scatter(1, order, size)
