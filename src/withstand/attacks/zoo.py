"""Zeroth-order optimisation."""

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.needs import needs_positive, needs_threat, needs_whole
from withstand.attacks.engine.queries import Queries
from withstand.attacks.trade_off import TradeOff
from withstand.errors import bad
from withstand.objectives import Confident, Margin, ObjectiveField
from withstand.registry import component
from withstand.threats import L2, ThreatField, clip

_GROUP = 5  # coordinates asked in one call


@component("attack", "zoo", systems=("classic_attacks",))
class ZOO(Attack):
    """The objective of Carlini and Wagner, minimised by Adam on a few random values at a time, from scores alone.

    The derivative by a value is (f(x + h e_i) - f(x - h e_i)) / 2h, two queries (one-sided at the bounds of the box); that
    of the distance is exact. Each value has Adam moments and a step count of its own. On log-probabilities the margin is
    the same as on logits.

    threat: L2; without eps the attack reports the distance, with eps points beyond it are failures. queries: budget per
    example, shared evenly by the rounds. searches: values of the weight c. c: the first one. coordinates: values moved
    per step. lr: Adam's. h: half width of the difference. objective: `margin(kappa)` or `targeted_margin(target, kappa=)`.
    The paper takes lr 0.01, 128 values and nine rounds, with budgets of 10^5 queries and more.

    Reference: Chen et al., "ZOO: Zeroth Order Optimization based Black-box Attacks to Deep Neural Networks without Training
    Substitute Models", 2017, arXiv 1708.03999.
    """

    threat: ThreatField = L2()
    queries: int = 10_000
    searches: int = 2
    c: float = 1.0
    coordinates: int = 16
    lr: float = 0.02
    h: float = 1e-4
    objective: ObjectiveField = Margin(kappa=0.0)

    access = "scores"
    nearest = True
    fine = True

    def __post_init__(self) -> None:
        needs_threat(self, L2)
        needs_whole(self, "queries", "searches", "coordinates")
        needs_positive(self, "c", "lr", "h")
        if not 0 <= getattr(self.objective, "kappa", -1.0) < float("inf"):
            raise bad(
                "objective", repr(self.objective), "margin(kappa) or targeted_margin(..., kappa=...) with kappa >= 0"
            )

    @property
    def criterion(self) -> Confident:
        """A wrong class whose margin reaches kappa."""
        return Confident(self.objective)

    def search(self, p: Problem) -> None:
        q = Queries(p, self.queries)
        size = min(self.coordinates, p.x[0].numel())
        steps = (self.queries - 1) // self.searches // (2 * size + 1)
        if steps < 1:
            least = self.searches * (2 * size + 1) + 1
            raise bad("queries", self.queries, f"at least {least} for {self.searches} rounds of {size} values")
        trade = TradeOff(self.c, p.x)
        for search in range(self.searches):
            p.restart()
            p.keep_only(p.best_distance > 0)
            if p.finished:
                return
            self._round(p, q, trade.c[p.alive], range(search * steps, (search + 1) * steps), size)
            trade.update(p.hit)

    def _round(self, p: Problem, q: Queries, c: Tensor, steps: range, size: int) -> None:
        x = p.x_alive.flatten(1)
        z = x.clone()
        mean, square, count = torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(z)
        for step in steps:
            order = p.rows.uniform((z.shape[1],), "zoo", step, dtype=torch.float64)
            chosen = order.topk(size, dim=1).indices
            slope = torch.cat([self._slope(p, q, z, part) for part in chosen.split(_GROUP, dim=1)], 1)
            push = 2 * (z - x).gather(1, chosen) - c[:, None] * slope
            seen = count.gather(1, chosen) + 1
            m = mean.gather(1, chosen) * 0.9 + push * 0.1
            v = square.gather(1, chosen) * 0.999 + push.square() * 0.001
            move = self.lr * (m / (1 - 0.9**seen)) / ((v / (1 - 0.999**seen)).sqrt() + 1e-8)
            mean, square, count = (t.scatter(1, chosen, n) for t, n in ((mean, m), (square, v), (count, seen)))
            z = clip(z.scatter_add(1, chosen, -move), p.box)
            q.ask(z.reshape(p.x_alive.shape))

    def _slope(self, p: Problem, q: Queries, z: Tensor, chosen: Tensor) -> Tensor:
        """The objective's derivatives by the chosen values [A, g], 2g queries a row."""
        rows, g = chosen.shape
        unit = torch.zeros(rows, g, z.shape[1], dtype=z.dtype, device=z.device)
        unit.scatter_(2, chosen[:, :, None], self.h)
        probes = clip(torch.stack([z[:, None] + unit, z[:, None] - unit], 1), p.box)
        at = torch.arange(rows, device=z.device).repeat_interleave(2 * g)
        value = q.ask(probes.reshape(-1, *p.x.shape[1:]), at)[1].reshape(rows, 2, g)
        width = (probes[:, 0] - probes[:, 1]).gather(2, chosen[:, :, None]).squeeze(2)
        return (value[:, 0] - value[:, 1]) / width
