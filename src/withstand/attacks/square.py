"""The Square attack: random search with square patches, which needs scores only."""

import math
from collections.abc import Callable
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Point, Problem
from withstand.errors import bad
from withstand.objectives import Margin, ObjectiveField
from withstand.registry import component
from withstand.threats import L1, L2, Linf, ThreatField, clip, per_row

_CHUNK = 64  # proposals whose random numbers are drawn together
Settle = Callable[[Tensor], Tensor]


@component("attack", "square", systems=("classic_attacks",))
class Square(Attack):
    """Random search with square patches, on scores alone.

    Linf: start from vertical stripes of +-eps; each proposal sets one square to x + eps or x - eps, channel by channel.
    L2: start from a tiling of signed bumps; each proposal moves the energy of two windows into one of them, as a new
    bump on top of what it holds. L1: as for L2, with steeper bumps (nested rectangles weighted 1 / j^4) and absolute values
    for squares; the window then gets channels times what it needs, and the nearest point of the ball inside the box is
    taken, so that small changes give way to large ones. A proposal is kept where the objective rises or the goal is
    reached. The side of a
    square is sqrt(p h w); p falls from `share` by halves as queries are spent.

    threat: linf, l2 or l1. queries: proposals after the start. share: p at first. rescale: stretch the schedule of p, made
    for 10,000 queries, to `queries` (AutoAttack leaves it as it is). objective: what is increased, from scores.

    The official code shares position and signs of a proposal among the images of a batch; here each image has its own
    draw, so that no result depends on the batch. Images of any size are accepted; the tiling covers the whole tiles
    that fit.

    Reference: Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack
    via random search", 2020, arXiv 1912.00049. The L1 form: Croce, Hein, "Mind the box: l1-APGD for sparse adversarial
    attacks on image classifiers", 2021, arXiv 2103.01208, and the authors' code for AutoAttack.
    """

    threat: ThreatField = Linf(8 / 255)
    queries: int = 5000
    share: float = 0.8
    rescale: bool = True
    objective: ObjectiveField = Margin()

    access: ClassVar[str] = "scores"
    prepares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.threat, (Linf, L2, L1)) or self.threat.eps is None:
            raise bad("threat", repr(self.threat), "linf, l2 or l1 with a radius, e.g. linf(8/255)")
        if self.queries < 0:
            raise bad("queries", self.queries, "a whole number >= 0")
        if not 0 < self.share <= 1:
            raise bad("share", self.share, "a share of the image in (0, 1]")

    def search(self, p: Problem) -> Point:
        if p.x.dim() != 4:
            raise bad("x", f"shape {tuple(p.x.shape)}", "images [N, C, H, W]", "Square moves squares of pixels.")
        p.clean  # noqa: B018 (the clean point counts as a candidate)
        p.restart()
        if p.finished:
            return p.x
        moves = (_Squares if isinstance(p.threat, Linf) else _Windows)(p)
        z = moves.start()
        seen, value = p.look(z)
        z, value, had = p.drop_done(z, value, p.broken(seen))
        draws = torch.empty(0)
        for query in range(self.queries):
            if p.finished:
                return z
            chunk, place = divmod(query, _CHUNK)
            if place == 0 or len(draws) != len(p.alive):
                draws = p.rows.uniform((_CHUNK, moves.numbers), "square", chunk)
            share = self.share * self._fraction(query)
            candidate, settle = moves.propose(z, share, draws[:, place])
            seen, found = p.peek(candidate)
            won = p.broken(seen)
            kept = (found > value) | (won & ~had)
            z = settle(kept)
            value = torch.where(kept, found, value)
            if bool(won.any()):
                had = had | won
                p.offer(z, won, value)
                z, value, had = p.drop_done(z, value, had)
        if not p.finished:
            p.offer(z, torch.zeros_like(value, dtype=torch.bool), value)
        return z

    def _fraction(self, query: int) -> float:
        """How far p has fallen: halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries."""
        at = query * 10000 // self.queries if self.rescale else query
        return 0.5 ** sum(at > mark for mark in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


class _Squares:
    """Linf: every value of a candidate lies at a corner of the ball inside the box. Proposals are written into z itself
    and taken back where they were no good, so that a step touches the squares only."""

    def __init__(self, p: Problem) -> None:
        self.p, self.alive, self.numbers = p, -1, 2 + p.x.shape[1]
        self.corners = p.x

    def start(self) -> Tensor:
        """Vertical stripes: one sign for each channel and column."""
        x = self.p.x_alive
        signs = self.p.rows.signs((x.shape[1], 1, x.shape[3]), "square/start", dtype=x.dtype)
        stripes = self.p.project(x + per_row(self.p.threat.radius(x), x) * signs)
        return stripes.contiguous()  # written into through a flat view, which channels-last memory has none of

    def propose(self, z: Tensor, share: float, draw: Tensor) -> tuple[Tensor, Settle]:
        x, size = self.p.x_alive, z[0].numel()
        if self.alive != len(x):
            self.alive, eps = len(x), per_row(self.p.threat.radius(x), x)
            self.corners = torch.cat([clip(x - eps, self.p.box).flatten(1), clip(x + eps, self.p.box).flatten(1)], 1)
        s = side(share, *z.shape[2:])
        index = _window(z, s, draw[:, 0], draw[:, 1])
        upper = (draw[:, 2:] < 0.5).long() * size
        new = self.corners.gather(1, (index + upper[:, :, None]).flatten(1))
        index, flat = index.flatten(1), z.flatten(1)
        old = flat.gather(1, index)
        flat.scatter_(1, index, new)

        def settle(kept: Tensor) -> Tensor:
            flat.scatter_(1, index, torch.where(kept[:, None], new, old))
            return z

        return z, settle


class _Windows:
    """L2: the perturbation always has length eps before it is moved into the box. L1: it is projected onto the ball inside
    the box. An energy is a sum of squares (L2) or of absolute values (L1); a length is its root (itself)."""

    def __init__(self, p: Problem) -> None:
        self.p, self.numbers = p, 5 + p.x.shape[1]
        self.order = 1 if isinstance(p.threat, L1) else 2
        self.energy, self.root = (Tensor.abs, Tensor.clone) if self.order == 1 else (Tensor.square, Tensor.sqrt)

    def start(self) -> Tensor:
        """A tiling of bumps, each with its own sign and orientation."""
        x = self.p.x_alive
        n, c, h, w = x.shape
        s = max(min(h, w) // 5, 1)
        rows, columns = h // s, w // s
        tall = self.p.rows.uniform((rows, columns), "square/tall") < 0.5
        signs = self.p.rows.signs((c, rows, columns), "square/start", dtype=x.dtype)
        bumps = _bumps(s, x.dtype, x.device, self.order)[tall.long()].reshape(n, 1, rows, columns, s, s)
        tiles = (bumps * signs[..., None, None]).transpose(3, 4).reshape(n, c, rows * s, columns * s)
        delta = torch.zeros_like(x)
        top, left = (h - rows * s) // 2, (w - columns * s) // 2
        delta[:, :, top : top + rows * s, left : left + columns * s] = tiles
        return self._place(delta)

    def propose(self, z: Tensor, share: float, draw: Tensor) -> tuple[Tensor, Settle]:
        x = self.p.x_alive
        c = x.shape[1]
        s = side(share, *z.shape[2:], least=3)
        s = min(s + (s % 2 == 0), *z.shape[2:])
        first = _window(z, s, draw[:, 0], draw[:, 1]).flatten(1)
        second = _window(z, s, draw[:, 2], draw[:, 3]).flatten(1)
        delta = (z - x).flatten(1)
        spare = (self.p.threat.radius(x) ** self.order - self.energy(delta).sum(1)).clamp_min(0)[:, None] / c
        held = delta.gather(1, first).reshape(len(z), c, s * s)
        energy = self.energy(held).sum(2)
        delta.scatter_(1, first, 0.0)
        other = self.energy(delta.gather(1, second).reshape(len(z), c, s * s)).sum(2)
        delta.scatter_(1, second, 0.0)
        bump = _bumps(s, x.dtype, x.device, self.order)[(draw[:, 4] < 0.5).long()][:, None]
        signs = torch.where(draw[:, 5:] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None]
        new = bump * signs + held / (self.root(energy)[:, :, None] + 1e-12)
        length = self.root(spare + energy + other) / (new.norm(self.order, dim=2) + 1e-12)
        length = length * c if self.order == 1 else length
        delta.scatter_(1, first, (new * length[:, :, None]).flatten(1))
        candidate = self._place(delta.reshape(z.shape))
        return candidate, lambda kept: torch.where(per_row(kept, z), candidate, z)

    def _place(self, delta: Tensor) -> Tensor:
        x = self.p.x_alive
        if self.order == 1:
            return self.p.project(x + delta)
        length = self.p.threat.radius(x) / (delta.flatten(1).norm(dim=1) + 1e-12)
        return clip(torch.addcmul(x, delta, per_row(length, x)), self.p.box)


def side(p: float, height: int, width: int, least: int = 1) -> int:
    """The side of a square that covers the share p of an image: `least` or more, and no more than the image has."""
    return min(max(round(math.sqrt(p * height * width)), least), height, width)


def _window(z: Tensor, s: int, down: Tensor, across: Tensor) -> Tensor:
    """Positions [A, C, s * s] in the flattened example of one s x s window for each row, its corner from two draws."""
    h, w = z.shape[2:]
    corner = (down * (h - s)).long() * w + (across * (w - s)).long()
    return corner[:, None, None] + _offsets(z.shape[1], h, w, s, z.device)


@cache
def _offsets(c: int, h: int, w: int, s: int, device: torch.device) -> Tensor:
    inside = torch.arange(s, device=device)[:, None] * w + torch.arange(s, device=device)
    return torch.arange(c, device=device)[:, None] * (h * w) + inside.flatten()


@cache
def _bumps(s: int, dtype: torch.dtype, device: torch.device, order: int = 2) -> Tensor:
    """Both orientations of the bump of unit norm, [2, s * s]: two halves of opposite sign."""
    upper, lower = _hill(s // 2, s, order), _hill(s - s // 2, s, order)
    bump = torch.cat([upper, -lower])
    bump = bump / bump.norm(order)
    return torch.stack([bump.flatten(), bump.T.flatten()]).to(device, dtype)


def _hill(rows: int, columns: int, order: int) -> Tensor:
    """The sum of nested rectangles weighted 1 / j^2 (1 / j^4 for order 1), j = 1 for the innermost, with unit norm."""
    middle, centre = rows // 2, columns // 2
    ring = torch.maximum((torch.arange(rows) - middle).abs()[:, None], (torch.arange(columns) - centre).abs()[None])
    weights = 1 / torch.arange(1, max(middle, centre) + 2, dtype=torch.float64) ** (4 if order == 1 else 2)
    outwards = weights.flip(0).cumsum(0).flip(0)  # a value of ring m lies in the rectangles m, m + 1, ...
    hill = outwards[ring]
    return hill / hill.norm(order).clamp_min(1e-12)
