"""The boundary attack."""

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.needs import needs_threat, needs_whole
from withstand.attacks.engine.queries import Queries
from withstand.attacks.rays import strange_point
from withstand.errors import bad
from withstand.objectives import Margin, ObjectiveField
from withstand.registry import component
from withstand.threats import L2, ThreatField, clip, per_row

_WINDOW = 10  # steps between two adaptations


@component("attack", "boundary", systems=("classic_attacks",))
class Boundary(Attack):
    """A random walk along the decision boundary towards x that sees only decisions.

    It starts at a random point that reaches the goal, pulled towards x by bisection. Each step proposes a random move of
    length delta * dist on the sphere around x; if that still reaches the goal it is taken, and a move towards x by
    epsilon * dist is proposed from there. Both sizes follow the acceptance rates of the last ten steps: divided by `adapt`
    above one half, multiplied by it below one fifth.

    threat: L2; without eps the attack reports the distance, with eps points beyond it are failures. queries: budget per
    example; the clean point and all starting points count. starts: random points tried. objective: only its goal matters:
    `margin()`, any wrong class, or `targeted_margin(target=3)`.

    Reference: Brendel, Rauber, Bethge, "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine
    Learning Models", 2018, arXiv 1712.04248.
    """

    threat: ThreatField = L2()
    queries: int = 5_000
    starts: int = 100
    delta: float = 0.01
    epsilon: float = 0.01
    adapt: float = 0.667
    objective: ObjectiveField = Margin()

    access = "decision"
    nearest = True

    def __post_init__(self) -> None:
        needs_threat(self, L2)
        needs_whole(self, "queries", "starts")
        for name in ("delta", "epsilon", "adapt"):
            if not 0 < getattr(self, name) < 1:
                raise bad(name, getattr(self, name), "a number between 0 and 1")

    def search(self, p: Problem) -> None:
        q = Queries(p, self.queries)
        p.keep_only(~p.won)
        z = self._start(p, q)
        delta, epsilon = z.new_full((len(z),), self.delta), z.new_full((len(z),), self.epsilon)
        counts = z.new_zeros(len(z), 3)  # moves on the sphere that held, moves towards x that were tried, that held
        step = 0
        while not p.finished:
            aside = clip(self._aside(p, z, delta, step), p.box)
            held, _ = q.ask(aside)
            tried = held.nonzero().flatten()
            nearer = aside + per_row(epsilon, z) * (p.x_alive - aside)
            closer = torch.zeros_like(held)
            closer[tried] = q.ask(nearer[tried], tried)[0]
            z = torch.where(per_row(closer, z), nearer, torch.where(per_row(held, z), aside, z))
            counts += torch.stack([held, held, closer], 1)
            step += 1
            if step % _WINDOW == 0:
                delta = self._adapted(delta, counts[:, 0] / _WINDOW)
                rate = counts[:, 2] / counts[:, 1].clamp_min(1)
                epsilon = torch.where(counts[:, 1] > 0, self._adapted(epsilon, rate), epsilon)
                counts = torch.zeros_like(counts)
            stay = (q.left >= 1) & (delta > 1e-7)
            if not bool(stay.all()):
                z, delta, epsilon, counts = p.keep_only(stay, z, delta, epsilon, counts)

    def _start(self, p: Problem, q: Queries) -> Tensor:
        """A point of each row that reaches the goal, near the boundary on the line to x; rows without one leave."""
        z, found = p.x_alive.clone(), torch.zeros_like(p.alive, dtype=torch.bool)
        for i in range(self.starts):
            missing = (~found & (q.left > 0)).nonzero().flatten()
            if len(missing) == 0:
                break
            tried = strange_point(p, "boundary/start", i)[missing]
            won, _ = q.ask(tried, missing)
            z[missing[won]] = tried[won]
            found[missing[won]] = True
        z = p.keep_only(found, z)
        low, high = z.new_zeros(len(z)), z.new_ones(len(z))
        start = z
        for _ in range(10):
            middle = (low + high) / 2
            won, _ = q.ask(p.x_alive + per_row(middle, z) * (start - p.x_alive))
            low, high = torch.where(won, low, middle), torch.where(won, middle, high)
        return p.x_alive + per_row(high, z) * (start - p.x_alive)

    def _aside(self, p: Problem, z: Tensor, delta: Tensor, step: int) -> Tensor:
        """A random move orthogonal to the way to x, put back on the sphere around x."""
        way = z - p.x_alive
        distance = way.flatten(1).norm(dim=1)
        unit = way / per_row(distance.clamp_min(1e-12), way)
        move = p.rows.normal(tuple(z.shape[1:]), "boundary", step, z.dtype)
        move = move - per_row((move * unit).flatten(1).sum(1), move) * unit
        move = move * per_row(delta * distance / move.flatten(1).norm(dim=1).clamp_min(1e-12), move)
        moved = way + move
        return p.x_alive + moved * per_row(distance / moved.flatten(1).norm(dim=1).clamp_min(1e-12), moved)

    def _adapted(self, size: Tensor, rate: Tensor) -> Tensor:
        larger = torch.where(rate > 0.5, (size / self.adapt).clamp_max(0.9), size)
        return torch.where(rate < 0.2, size * self.adapt, larger)
