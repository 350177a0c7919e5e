"""The nearest point of a hyperplane inside a box, under Linf, L2 and L1; exact, for a batch."""

import torch
from torch import Tensor

from withstand.threats import L1, L2, Box, Linf, Threat


def to_hyperplane(u: Tensor, w: Tensor, gap: Tensor, norm: Threat, box: Box = None) -> Tensor:
    """The shortest d [A, n] with w . d = gap and u + d in the box; where there is none, all of d goes to the box.

    u, w: [A, n]; gap: [A]; norm: a threat of type Linf, L2 or L1 (its radius plays no part).

    With room_i the way from u_i to the box in the direction that helps, sign(gap w_i):
    Linf: |d_i| = min(l, room_i); L2: |d_i| = min(m |w_i|, room_i), where l or m solves sum |w_i| |d_i| = |gap|;
    L1: values are filled to the box in falling order of |w_i| until |gap| is used up.

    Under Linf and L2 the sum is concave and piecewise linear in l or m. Newton's method from below therefore never
    overshoots: each step adds to the values that stand at the box, and the step that adds none is exact.
    """
    slope = w.abs()
    direction = torch.where(gap[:, None] < 0, -w, w)
    if box is None:
        room = torch.full_like(u, torch.inf)
    else:
        room = torch.where(direction > 0, box[1] - u, u - box[0]).clamp_min_(0)
    need = gap.abs()
    if isinstance(norm, Linf):
        size = torch.minimum(room, _level(slope, room, need))
    elif isinstance(norm, L2):
        size = torch.minimum(room, _level(slope, room, need, slope) * slope)
    elif isinstance(norm, L1):
        size = _fill(slope, room, need)
    else:
        raise TypeError(f"no projection onto a hyperplane under {norm!r}")
    return size * direction.sign()


def _level(slope: Tensor, room: Tensor, need: Tensor, pace: Tensor | None = None) -> Tensor:
    """The smallest level [A, 1] with sum slope * min(level * pace, room) = need; huge where the box has no room for it.

    slope, room, pace [A, n] (no pace: 1); need [A].
    """
    need, most = need[:, None], torch.finfo(slope.dtype).max
    gain = slope if pace is None else slope * pace
    worth = slope * room
    free = gain.sum(1, keepdim=True)
    level = torch.where(free > 0, need / free, 0.0)
    standing = 0
    while True:
        full = room < (level if pace is None else level * pace)
        count = int(full.sum())
        if count == standing:
            return level
        standing = count
        used = torch.where(full, worth, 0.0).sum(1, keepdim=True)
        free = torch.where(full, 0.0, gain).sum(1, keepdim=True)
        level = torch.where(free > 0, (need - used) / free, most).maximum(level)


def _fill(slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """|d| under L1: the steepest values first, each as far as it goes."""
    steep, order = slope.sort(dim=1, descending=True)
    room = room.gather(1, order)
    worth = torch.where(steep > 0, steep * room, 0.0)
    before = torch.cat([torch.zeros_like(need)[:, None], worth.cumsum(1)[:, :-1]], 1)
    left = (need[:, None] - before).clamp_min(0)
    size = torch.where(left >= worth, room, left / steep).where(steep > 0, 0.0)
    return torch.zeros_like(size).scatter(1, order, size)
