"""The Sign-OPT attack."""

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.needs import needs_positive, needs_threat, needs_whole
from withstand.attacks.engine.queries import Queries
from withstand.attacks.rays import Rays, search_directions, unit
from withstand.objectives import Margin, ObjectiveField
from withstand.registry import component
from withstand.threats import L2, ThreatField, per_row

_GROUP = 20  # probes asked in one call


@component("attack", "sign_opt", systems=("classic_attacks",))
class SignOPT(Attack):
    """Minimises the distance to the boundary over directions, spending one query on the sign of each slope.

    As OPT, but with the gradient mean(s * u) over k random unit vectors u: s = +1 where x + g(theta) * unit(theta + beta u)
    misses the goal (the boundary is further away there), else -1.

    threat: L2; without eps the attack reports the distance, with eps points beyond it are failures. queries: budget per
    example, all included. k: probes per gradient. alpha: first step size. beta: first probing distance. objective: only
    its goal matters: `margin()`, any wrong class, or `targeted_margin(target=3)`.

    Reference: Cheng et al., "Sign-OPT: A Query-Efficient Hard-label Adversarial Attack", 2020, arXiv 1909.10773.
    """

    threat: ThreatField = L2()
    queries: int = 20_000
    k: int = 200
    alpha: float = 0.2
    beta: float = 1e-3
    objective: ObjectiveField = Margin()

    access = "decision"
    nearest = True

    def __post_init__(self) -> None:
        needs_threat(self, L2)
        needs_whole(self, "queries", "k")
        needs_positive(self, "alpha", "beta")

    def search(self, p: Problem) -> None:
        queries = Queries(p, self.queries)
        p.keep_only(~p.won)
        search_directions(p, queries, self._estimate, self.alpha, self.beta)

    def _estimate(self, rays: Rays, theta: Tensor, g: Tensor, beta: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        n, shape = len(g), tuple(theta.shape[1:])
        gradient = torch.zeros_like(theta)
        for group, begin in enumerate(range(0, self.k, _GROUP)):
            size = min(_GROUP, self.k - begin)
            draw = rays.p.rows.normal((size, *shape), f"sign_opt/{group}", step, theta.dtype)
            u = unit(draw.reshape(n * size, *shape))
            at = torch.arange(n, device=g.device).repeat_interleave(size)
            further = ~rays.reaches(unit(theta[at] + per_row(beta[at], u) * u), g[at], at)
            sign = torch.where(further, 1.0, -1.0).to(u.dtype)
            gradient += (per_row(sign, u) * u).reshape(n, size, *shape).sum(1)
        return gradient / self.k, theta, torch.full_like(g, torch.inf)
