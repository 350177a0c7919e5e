"""Attacks that see only decisions and search over directions: g(theta) is the way from x to the boundary along theta."""

from collections.abc import Callable

import torch
from torch import Tensor

from withstand.attacks.engine import Problem
from withstand.attacks.engine.queries import Queries
from withstand.threats import clip, per_row

Estimate = Callable[["Rays", Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""(rays, theta [A, ...], g [A], beta [A], step) -> the gradient of g [A, ...], and the best direction met on the way
with its g (infinite where none was measured)."""


def search_directions(p: Problem, q: Queries, estimate: Estimate, alpha: float, beta: float) -> None:
    """Minimise g over directions by estimated gradients, until the budget or the precision is used up.

    Start: the best of 100 random directions (up to 500 where none meets the boundary). Step: theta - a * gradient with
    a = alpha at first; a doubles while g falls (15 tries), else shrinks by 4 until it falls (15 tries). Below 1e-4 it
    returns to 1 and the probing distance beta shrinks by 10, until beta < 1e-8.
    """
    rays = Rays(p, q)
    theta, g = _first_directions(rays)
    theta, g = p.keep_only(g.isfinite(), theta, g)
    a, b = g.new_full((len(g),), alpha), g.new_full((len(g),), beta)
    step = 0
    while not p.finished:
        gradient, probe, probed = estimate(rays, theta, g, b, step)
        theta, g, a = _line_search(rays, theta, g, gradient, a, b)
        better = probed < g
        theta, g = torch.where(per_row(better, theta), probe, theta), torch.where(better, probed, g)
        spent = a < 1e-4
        a, b = torch.where(spent, 1.0, a), torch.where(spent, b / 10, b)
        theta, g, a, b = p.keep_only((b >= 1e-8) & (q.left > 0), theta, g, a, b)
        step += 1


class Rays:
    """Points x + g * theta of the alive rows, moved into the box, and how far it is along them to the boundary."""

    def __init__(self, p: Problem, q: Queries) -> None:
        self.p, self.q = p, q

    def reaches(self, theta: Tensor, g: Tensor, at: Tensor) -> Tensor:
        """Whether the points at distance g [M] along unit directions theta [M, ...] of rows `at` [M] reach the goal."""
        return self.q.ask(clip(self.p.x_alive[at] + per_row(g, theta) * theta, self.p.box), at)[0]

    def bisect(self, theta: Tensor, low: Tensor, high: Tensor, tolerance: Tensor, at: Tensor) -> Tensor:
        """The boundary between `low` (outside the goal) and `high` (inside), to the tolerance; all [M]."""
        low, high = low.clone(), high.clone()
        tolerance = torch.maximum(tolerance, 4 * torch.finfo(high.dtype).eps * high)
        for _ in range(60):
            wide = ((high - low > tolerance) & (self.q.left[at] > 0)).nonzero().flatten()
            if len(wide) == 0:
                break
            middle = (low[wide] + high[wide]) / 2
            won = self.reaches(theta[wide], middle, at[wide])
            low[wide], high[wide] = torch.where(won, low[wide], middle), torch.where(won, middle, high[wide])
        return high

    def measure(self, theta: Tensor, guess: Tensor, tolerance: Tensor, at: Tensor, grow: bool = True) -> Tensor:
        """g of directions theta [M, ...] near a guess [M]: 1 % longer or shorter until bracketed, then bisection.

        grow=False: infinite where g lies beyond the guess, at the price of one query.
        """
        low, high = guess.clone(), guess.clone()
        won = self.reaches(theta, guess, at)
        outward = ~won
        limit = 2 * guess
        while grow and bool(outward.any()):
            open_ = outward.nonzero().flatten()
            low[open_] = high[open_]
            high[open_] = high[open_] * 1.01
            stopped = (high[open_] > limit[open_]) | (self.q.left[at[open_]] <= 0)
            hit = self.reaches(theta[open_], high[open_], at[open_]) & ~stopped
            won[open_[hit]] = True
            outward[open_[hit | stopped]] = False
        inward = won & (low == high)
        while bool(inward.any()):
            open_ = inward.nonzero().flatten()
            low[open_] = low[open_] * 0.99
            hit = self.reaches(theta[open_], low[open_], at[open_])
            high[open_[hit]] = low[open_[hit]]
            inward[open_] = hit & (self.q.left[at[open_]] > 0)
        found = torch.full_like(guess, torch.inf)
        sure = won.nonzero().flatten()
        found[sure] = self.bisect(theta[sure], low[sure], high[sure], tolerance[sure], at[sure])
        return found


def _first_directions(rays: Rays) -> tuple[Tensor, Tensor]:
    """The closest of 100 random directions for each alive row, and its g (infinite where 500 met nothing)."""
    p, q = rays.p, rays.q
    best, g = torch.zeros_like(p.x_alive), torch.full((len(p.alive),), torch.inf, dtype=p.x.dtype, device=p.x.device)
    for i in range(500):
        rows = (((i < 100) | g.isinf()) & (q.left > 0)).nonzero().flatten()
        if len(rows) == 0:
            break
        way = (strange_point(p, "rays/start", i) - p.x_alive)[rows]
        length = way.flatten(1).norm(dim=1)
        theta = way / per_row(length.clamp_min(1e-12), way)
        high = torch.minimum(length, g[rows])
        won = rays.reaches(theta, high, rows).nonzero().flatten()
        if len(won):
            rows, theta, high = rows[won], theta[won], high[won]
            g[rows] = rays.bisect(theta, torch.zeros_like(high), high, 1e-3 * high, rows)
            best[rows] = theta
    return best, g


def _line_search(
    rays: Rays, theta: Tensor, g: Tensor, gradient: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """theta and g after the step, and the step size that was used."""
    best, least, a = theta.clone(), g.clone(), a.clone()

    def tries(rows: Tensor) -> Tensor:
        moved = unit(theta[rows] - per_row(a[rows], theta) * gradient[rows])
        found = rays.measure(moved, least[rows], b[rows] / 500, rows, grow=False)
        better = found < least[rows]
        best[rows[better]], least[rows[better]] = moved[better], found[better]
        return better

    rows = torch.arange(len(g), device=g.device)
    for _ in range(15):
        better = tries(rows)
        rows = rows[better]
        if len(rows) == 0:
            break
        a[rows] *= 2
    rows = (least >= g).nonzero().flatten()
    for _ in range(15):
        if len(rows) == 0:
            break
        a[rows] *= 0.25
        rows = rows[~tries(rows)]
    return best, least, a


def unit(theta: Tensor) -> Tensor:
    """Directions [A, ...] of length 1."""
    return theta / per_row(theta.flatten(1).norm(dim=1).clamp_min(1e-12), theta)


def strange_point(p: Problem, stream: str, step: int) -> Tensor:
    """A random point of the box far from any example, [A, ...]; without a box, normal noise of growing size around x.

    The kinds take turns, since many classifiers see one and the same class in all uniform noise: uniform noise, corners of
    the box, blocks of four by four equal values, one level per channel.
    """
    shape = tuple(p.x.shape[1:])
    if p.box is None:
        return p.x_alive + 2.0 ** (step % 20 - 4) * p.rows.normal(shape, stream, step, p.x.dtype)
    low, high = p.box
    kind = step % 4
    if kind == 1:
        return (low + high) / 2 + (high - low) / 2 * p.rows.signs(shape, stream, step, p.x.dtype)
    if kind == 0 or len(shape) < 2:
        return p.rows.uniform(shape, stream, step, low, high, p.x.dtype)
    if kind == 3:
        level = p.rows.uniform((shape[0],), stream, step, low, high, p.x.dtype)
        return level.reshape(*level.shape, *[1] * (len(shape) - 1)).expand(-1, *shape)
    coarse = p.rows.uniform((*shape[:-2], *(-(-n // 4) for n in shape[-2:])), stream, step, low, high, p.x.dtype)
    return coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)[..., : shape[-2], : shape[-1]]
