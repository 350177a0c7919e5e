"""The gradient of a value that is only known point by point, from random directions that lean towards a prior."""

from typing import Any, cast

import torch
from torch import Tensor

from withstand.attacks.engine import Problem
from withstand.attacks.engine.queries import Queries
from withstand.threats import per_row

_NORM = 3  # directions that tell the length of the gradient, for lam="auto"


class Estimate:
    """P-RGF: g = 1/q sum_b (V(P(z + sigma u_b)) - V(z)) / sigma * u_b, with `mixed` directions u_b.

    asked, silent: how often each row of the block asked, and how often that changed nothing, [N].

    Reference: Cheng, Dong, Pang, Su, Zhu, "Improving Black-box Adversarial Attacks with a Transfer-based Prior", 2019, arXiv
    1906.06919.
    """

    def __init__(self, q: int, lam: float | str, p: Problem) -> None:
        """q: directions of an estimate. lam: weight of the prior, a number in [0, 1] or "auto"."""
        self.q, self.lam = q, lam
        self.asked, self.silent = torch.zeros(2, len(p.x), device=p.x.device)

    def __call__(
        self, p: Problem, q: Queries, z: Tensor, value: Tensor, v: Tensor, sigma: Tensor, rows: Tensor, turn: int
    ) -> Tensor:
        """The gradient [A, ...] at z, zero outside of `rows` bool [A].

        value [A]: there. v [A, ...]: the prior, unit or zero. sigma [A]: length of a probe, as a share of a steepest step's.
        A row keeps one question for what follows.
        """
        size, shape = z[0].numel(), tuple(z.shape[1:])
        ghat, has, threat = torch.zeros_like(z), nonzero(v), cast(Any, p.threat)
        if not bool(rows.any()):
            return ghat
        length = sigma * threat.scale(p.x_alive) * threat.steepest(torch.ones_like(z)).flatten(1).norm(dim=1)

        def slope(u: Tensor) -> Tensor:
            """Of the value along u, [A]; 0 for rows that do not ask."""
            i = (rows & open_rows(p, q, 2)).nonzero().flatten()
            found = torch.zeros(len(z), dtype=z.dtype, device=z.device)
            now = q.ask(p.project(z + per_row(length, z) * u)[i], i)[1]
            found[i] = (now - value[i].to(now)) / length[i]
            self.asked[p.alive[i]] += 1
            self.silent[p.alive[i]] += found[i] == 0
            return found

        lam = torch.full_like(sigma, self.lam if isinstance(self.lam, float) else 0.5)
        if self.lam == "auto" and bool((rows & has).any()):
            along = slope(v)
            v = torch.where(per_row(along < 0, z), -v, v)
            drawn = [slope(unit(p.rows.normal(shape, "qair/norm", turn * _NORM + s, z.dtype))) for s in range(_NORM)]
            squared = size * torch.stack(drawn).square().mean(0)
            lam = optimal_lambda(along.square() / squared.clamp_min(1e-30), size, self.q).to(z)
        lam = torch.where(has, lam, 0.0)
        whole, rows = rows & (lam == 1), rows & (lam < 1)
        for b in range(self.q if bool(rows.any()) else 0):
            u = mixed(v, p.rows.normal(shape, "qair", turn * self.q + b, z.dtype), lam)
            ghat += per_row(slope(u), z) * u / self.q
        return torch.where(per_row(whole, z), v, ghat)


def mixed(v: Tensor, xi: Tensor, lam: Tensor) -> Tensor:
    """Unit directions sqrt(lam) v + sqrt(1 - lam) normalise((I - v v^T) xi), [A, ...]; v unit, or zero: then lam is 0."""
    across = unit(xi - per_row((xi * v).flatten(1).sum(1), xi) * v)
    lam = per_row(torch.where(nonzero(v), lam, 0.0), xi)
    return lam.sqrt() * v + (1 - lam).sqrt() * across


def optimal_lambda(squared_cosine: Tensor, size: int, q: int) -> Tensor:
    """The weight of the prior at which the estimate comes closest to the gradient, [A] in [0, 1].

    squared_cosine: a^2, of the angle between prior and gradient. size: D, the input's dimension. q: directions.
    0 for a^2 <= 1 / (D + 2q - 2), 1 for a^2 >= (2q - 1) / (D + 2q - 2), between them
    (1 - a^2) (a^2 (D + 2q - 2) - 1) / (2 a^2 D q - a^4 D (D + 2q - 2) - 1).
    """
    a, m = squared_cosine.double().clamp(0, 1), size + 2 * q - 2
    inner = (1 - a) * (a * m - 1) / (2 * a * size * q - a * a * size * m - 1)
    return torch.where(a <= 1 / m, 0.0, torch.where(a >= (2 * q - 1) / m, 1.0, inner))


def unit(u: Tensor) -> Tensor:
    """u / |u| for each row; zero stays zero."""
    return u / per_row(u.flatten(1).norm(dim=1).clamp_min(1e-12), u)


def nonzero(u: Tensor) -> Tensor:
    """Whether anything in each row is not zero, bool [A]."""
    return (u != 0).flatten(1).any(1)


def open_rows(p: Problem, q: Queries, left: int) -> Tensor:
    """Which alive rows may still ask so many questions and have a reason to, bool [A]."""
    return (q.left >= left) & ~(p.won[p.alive] & p.active)
