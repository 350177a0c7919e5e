"""The Jacobian-based saliency map attack."""

from functools import partial

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.gradients import gradients_of
from withstand.attacks.engine.needs import needs_target, needs_threat
from withstand.errors import bad
from withstand.objectives import ObjectiveField, TargetedMargin, at
from withstand.registry import component
from withstand.threats import L0, ThreatField, clip


@component("attack", "jsma", systems=("classic_attacks",))
class JSMA(Attack):
    """Jacobian-based saliency map: changes the two values that help the target most and the other classes least, until
    the class changes.

    Over pairs (p, q) with a = dz_t/dp + dz_t/dq > 0 and b = sum_{j != t} (dz_j/dp + dz_j/dq) < 0 it maximises -a * b, and
    adds theta to both (signs turned round for theta < 0). A value that has reached the bound of the box leaves the search.
    z are the logits: with probabilities b would always be -a.

    threat: L0; eps, where given, is the number of values that may change. gamma: the share of values that may change;
    the smaller bound holds. objective: names the target. By default the runner-up of the clean logits, any wrong class
    counting as success; `targeted_margin(target=3)` asks for class 3. Needs the box; each step costs one forward pass, two
    backward passes and a comparison of all pairs (d^2 numbers for d values, a part at a time).

    Reference: Papernot et al., "The Limitations of Deep Learning in Adversarial Settings", 2016, arXiv 1511.07528.
    """

    threat: ThreatField = L0()
    theta: float = 1.0
    gamma: float = 0.1
    objective: ObjectiveField = TargetedMargin()

    nearest = True

    def __post_init__(self) -> None:
        needs_threat(self, L0)
        needs_target(self)
        if self.theta == 0:
            raise bad("theta", self.theta, "the change of a value, e.g. 1.0 or -1.0")
        if not 0 < self.gamma <= 1:
            raise bad("gamma", self.gamma, "a share of the values, above 0 and at most 1")

    def search(self, p: Problem) -> None:
        if p.box is None:
            raise bad("box", None, "the range of the input, which this attack moves values to")
        p.clean  # noqa: B018 (examples that are wrong already cost nothing)
        bound = p.box[1] if self.theta > 0 else p.box[0]
        budget = p._threat.radius(p.x).clamp_max(int(self.gamma * p.x[0].numel() + 1e-9))
        z, budget = p.keep_only(~p.won, p.x, budget)
        while not p.finished:
            _, slopes = gradients_of(p, z, partial(_target_and_sum, target=p.state["target"]))
            slopes = slopes.flatten(2) * (1 if self.theta > 0 else -1)
            open_ = (z != bound).flatten(1)
            gain, first, second = best_pair(slopes[:, 0], slopes[:, 1] - slopes[:, 0], open_)
            pair = torch.stack([first, second], 1)
            flat = z.flatten(1)
            moved = clip(flat.scatter(1, pair, flat.gather(1, pair) + self.theta), p.box).reshape(z.shape)
            room = (moved != p.x_alive).flatten(1).sum(1) <= budget
            z, budget = p.keep_only(~p.won[p.alive] & (gain > 0) & room, moved, budget)
            if not p.finished:
                p.look(z)
                z, budget = p.keep_only(~p.won[p.alive], z, budget)


def best_pair(towards: Tensor, away: Tensor, open_: Tensor, part: int = 1 << 24) -> tuple[Tensor, Tensor, Tensor]:
    """The pair p < q of open values with the largest saliency, for each row.

    towards, away: [A, d], derivatives of the target and of the sum of the others. open_: bool [A, d]. part: numbers held
    at once. Returns the saliency [A] (0 where no pair helps) and the two positions [A].
    """
    rows, d = towards.shape
    best = towards.new_zeros(rows)
    first, second = torch.zeros(2, rows, dtype=torch.int64, device=towards.device)
    size = max(1, part // (rows * d))
    columns = torch.arange(d, device=towards.device)
    for begin in range(0, d, size):
        piece = slice(begin, min(begin + size, d))
        a = towards[:, piece, None] + towards[:, None]
        b = away[:, piece, None] + away[:, None]
        good = (a > 0) & (b < 0) & open_[:, piece, None] & open_[:, None] & (columns[piece, None] < columns)
        top, where = torch.where(good, -a * b, 0.0).flatten(1).max(1)
        better = top > best
        best = torch.where(better, top, best)
        first = torch.where(better, begin + where // d, first)
        second = torch.where(better, where % d, second)
    return best, first, second


def _target_and_sum(logits: Tensor, target: Tensor) -> Tensor:
    return torch.stack([at(logits, target), logits.sum(1)], 1)
