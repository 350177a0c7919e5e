"""The box-constrained L-BFGS attack."""

from collections.abc import Callable

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.needs import needs_positive, needs_target, needs_threat, needs_whole
from withstand.attacks.trade_off import TradeOff
from withstand.objectives import ObjectiveField, TargetedCrossEntropy
from withstand.registry import component
from withstand.threats import L2, Box, ThreatField, clip, per_row


@component("attack", "lbfgs", systems=("classic_attacks",))
class LBFGS(Attack):
    """Minimise ||r||^2 + c * CE(f(x + r), t) inside the box with L-BFGS, and search the smallest c that succeeds.

    The paper writes the weight on the distance instead, c' = 1 / c; the nearest example is the one where it is largest.
    c is searched for each example: tenfold growth until the first success, bisection afterwards.

    threat: L2; without eps the attack reports the distance, with eps points beyond it are failures. steps: model passes
    per value of c. searches: values of c. c: the first one. objective: what pulls towards the class t; by default the
    runner-up of the clean logits, where any wrong class counts as success.

    Reference: Szegedy et al., "Intriguing properties of neural networks", 2014, arXiv 1312.6199.
    """

    threat: ThreatField = L2()
    steps: int = 100
    searches: int = 10
    c: float = 1e-2
    objective: ObjectiveField = TargetedCrossEntropy()

    nearest = True
    fine = True

    def __post_init__(self) -> None:
        needs_threat(self, L2)
        needs_whole(self, "steps", "searches")
        needs_positive(self, "c")
        needs_target(self)

    def search(self, p: Problem) -> None:
        p.clean  # noqa: B018 (examples that are wrong already cost nothing)
        trade = TradeOff(self.c, p.x)

        def loss(z: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = p.value_and_gradient(z)
            weight, delta = trade.c[p.alive], z - p.x_alive
            total = delta.square().flatten(1).sum(1) - weight * value
            return total, 2 * delta - per_row(weight, delta) * gradient

        for _ in range(self.searches):
            p.restart()
            p.keep_only(p.best_distance > 0)
            if p.finished:
                return
            minimise(loss, p.x_alive.clone(), p.box, self.steps, p.keep_only)
            trade.update(p.hit)


def minimise(
    loss: Callable[[Tensor], tuple[Tensor, Tensor]],
    z: Tensor,
    box: Box,
    steps: int,
    keep_only: Callable[..., tuple[Tensor, ...]],
    memory: int = 10,
    tolerance: float = 1e-5,
) -> Tensor:
    """Minimise each row's loss inside the box by projected L-BFGS; returns the rows that did not converge.

    Values at a bound that the gradient pushes outward are held there; the quasi-Newton direction is that of the others
    (two-metric projection). A step that does not lower the loss enough (Armijo along the projected path) is halved. All
    rows advance together: each model pass is a first trial for some and a shortened one for others.

    loss: points [A, ...] -> values [A] and gradients [A, ...]. keep_only(stay, *held): called when rows have converged.

    Reference: Byrd, Lu, Nocedal, Zhu, "A Limited Memory Algorithm for Bound Constrained Optimization", 1995; the projection
    follows Bertsekas, "Projected Newton Methods for Optimization Problems with Simple Constraints", 1982.
    """
    value, slope = loss(z)
    moves, turns = z.new_zeros(len(z), memory, z[0].numel()), z.new_zeros(len(z), memory, z[0].numel())
    length = torch.ones_like(value)
    for _ in range(steps - 1):
        free = _free(z, slope, box)
        trial = clip(z + per_row(length, z) * _direction(slope, free, moves, turns), box)
        new_value, new_slope = loss(trial)
        move, turn = (trial - z).flatten(1), (new_slope - slope).flatten(1)
        taken = new_value <= value + 1e-4 * (slope.flatten(1) * move).sum(1)
        curved = taken & ((move * turn).sum(1) > 1e-10 * move.norm(dim=1) * turn.norm(dim=1))
        moves = torch.where(curved[:, None, None], torch.cat([moves[:, 1:], move[:, None]], 1), moves)
        turns = torch.where(curved[:, None, None], torch.cat([turns[:, 1:], turn[:, None]], 1), turns)
        z, slope = torch.where(per_row(taken, z), trial, z), torch.where(per_row(taken, z), new_slope, slope)
        value, length = torch.where(taken, new_value, value), torch.where(taken, 1.0, length / 2)
        flat = (slope * _free(z, slope, box)).flatten(1).abs().amax(1) <= tolerance
        stay = ~(flat | (length < 1e-8))
        if not bool(stay.all()):
            z, slope, value, length, moves, turns = keep_only(stay, z, slope, value, length, moves, turns)
            if len(z) == 0:
                break
    return z


def _free(z: Tensor, slope: Tensor, box: Box) -> Tensor:
    """1 where a value may still move against the gradient, 0 where it is held at its bound."""
    if box is None:
        return torch.ones_like(z)
    return 1 - (((z <= box[0]) & (slope > 0)) | ((z >= box[1]) & (slope < 0))).to(z.dtype)


def _direction(slope: Tensor, free: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """-H g on the free values, H from the remembered pairs (two-loop recursion); -g / max(1, |g|_1) without pairs."""
    mask = free.flatten(1)
    g = slope.flatten(1) * mask
    s, t = moves * mask[:, None], turns * mask[:, None]
    curvature = (s * t).sum(2)
    weight = torch.where(curvature > 1e-12, 1 / curvature.clamp_min(1e-12), 0.0)  # pairs that the mask made useless
    q, shares = g, []
    for i in reversed(range(moves.shape[1])):
        share = weight[:, i] * (s[:, i] * q).sum(1)
        q = q - share[:, None] * t[:, i]
        shares.append(share)
    scale = curvature[:, -1] / t[:, -1].square().sum(1).clamp_min(1e-12)
    first = 1 / g.abs().sum(1).clamp_min(1)
    q = q * torch.where(weight[:, -1] > 0, scale, first)[:, None]
    for i, share in enumerate(reversed(shares)):
        q = q + (share - weight[:, i] * (t[:, i] * q).sum(1))[:, None] * s[:, i]
    q = torch.where(((q * g).sum(1) > 0)[:, None], q, g * first[:, None])
    return -q.reshape(slope.shape)
