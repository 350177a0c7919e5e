"""The OPT attack."""

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.needs import needs_positive, needs_threat, needs_whole
from withstand.attacks.engine.queries import Queries
from withstand.attacks.rays import Rays, search_directions, unit
from withstand.objectives import Margin, ObjectiveField
from withstand.registry import component
from withstand.threats import L2, ThreatField, per_row


@component("attack", "opt", systems=("classic_attacks",))
class OPT(Attack):
    """Minimises the distance to the boundary over directions, from decisions alone.

    g(theta) is the smallest distance along theta at which the goal is reached. Its gradient is the mean over q random unit
    vectors u of (g(theta + beta u) - g(theta)) / beta * u; the best of these probes is a candidate too.

    threat: L2; without eps the attack reports the distance, with eps points beyond it are failures. queries: budget per
    example, all included. q: probes per gradient. alpha: first step size. beta: first probing distance. objective: only
    its goal matters: `margin()`, any wrong class, or `targeted_margin(target=3)`.

    Reference: Cheng et al., "Query-Efficient Hard-label Black-box Attack: An Optimization-based Approach", 2019,
    arXiv 1807.04457.
    """

    threat: ThreatField = L2()
    queries: int = 80_000
    q: int = 10
    alpha: float = 0.2
    beta: float = 1e-3
    objective: ObjectiveField = Margin()

    access = "decision"
    nearest = True

    def __post_init__(self) -> None:
        needs_threat(self, L2)
        needs_whole(self, "queries", "q")
        needs_positive(self, "alpha", "beta")

    def search(self, p: Problem) -> None:
        queries = Queries(p, self.queries)
        p.keep_only(~p.won)
        search_directions(p, queries, self._estimate, self.alpha, self.beta)

    def _estimate(self, rays: Rays, theta: Tensor, g: Tensor, beta: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        n, shape = len(g), tuple(theta.shape[1:])
        u = unit(rays.p.rows.normal((self.q, *shape), "opt", step, theta.dtype).reshape(n * self.q, *shape))
        at = torch.arange(n, device=g.device).repeat_interleave(self.q)
        probes = unit(theta[at] + per_row(beta[at], u) * u)
        found = rays.measure(probes, g[at], beta[at] / 500, at)
        slope = torch.where(found.isfinite(), (found - g[at]) / beta[at], 0.0)
        gradient = (per_row(slope, u) * u).reshape(n, self.q, *shape).mean(1)
        least, which = found.reshape(n, self.q).min(1)
        return gradient, probes.reshape(n, self.q, *shape)[torch.arange(n, device=g.device), which], least
