"""The attack of Carlini and Wagner, L2."""

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.needs import needs_positive, needs_threat, needs_whole
from withstand.attacks.trade_off import TradeOff
from withstand.errors import bad
from withstand.objectives import Confident, Margin, ObjectiveField
from withstand.registry import component
from withstand.threats import L2, Box, ThreatField, per_row


@component("attack", "carlini_wagner", systems=("classic_attacks",))
class CarliniWagner(Attack):
    """Minimise ||x' - x||^2 - c * min(margin, kappa) with Adam, x' = (tanh w + 1) / 2, and search c for each example.

    The closest success of all iterates is kept. Each of the `searches` rounds starts again from x with a new c: ten times
    the old one until the first success, then the middle between failure and success.

    threat: L2; without eps the attack reports the distance, with eps points beyond it are failures. steps: Adam steps per
    round. c: the first weight. lr: Adam's. objective: `margin(kappa)`, or `targeted_margin(target, kappa=...)`; a point
    counts when its margin reaches kappa. abort_early: a round ends for examples whose loss has not fallen by 0.01 % in
    a tenth of its steps.

    Reference: Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, arXiv 1608.04644.
    """

    threat: ThreatField = L2()
    steps: int = 1000
    searches: int = 9
    c: float = 1e-3
    lr: float = 0.01
    objective: ObjectiveField = Margin(kappa=0.0)
    abort_early: bool = True

    nearest = True
    fine = True

    def __post_init__(self) -> None:
        needs_threat(self, L2)
        needs_whole(self, "steps", "searches")
        needs_positive(self, "c", "lr")
        if not 0 <= getattr(self.objective, "kappa", -1.0) < float("inf"):
            raise bad(
                "objective", repr(self.objective), "margin(kappa) or targeted_margin(..., kappa=...) with kappa >= 0"
            )

    @property
    def criterion(self) -> Confident:
        """A wrong class whose margin reaches kappa."""
        return Confident(self.objective)

    def search(self, p: Problem) -> None:
        p.clean  # noqa: B018 (examples that are wrong already cost nothing)
        trade = TradeOff(self.c, p.x)
        for _ in range(self.searches):
            p.restart()
            p.keep_only(p.best_distance > 0)
            if p.finished:
                return
            self._round(p, trade.c[p.alive])
            trade.update(p.hit)

    def _round(self, p: Problem, c: Tensor) -> None:
        w = _encode(p.x_alive, p.box)
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        before = torch.full_like(c, torch.inf)
        for step in range(1, self.steps + 1):
            z, slope = _decode(w, p.box)
            value, gradient = p.value_and_gradient(z)
            delta = z - p.x_alive
            if self.abort_early and step % max(1, self.steps // 10) == 0:
                loss = delta.square().flatten(1).sum(1) - c * value
                stay = loss <= before * (1 - 1e-4 * before.sign())
                w, mean, square, before, c, delta, gradient, slope = p.keep_only(
                    stay, w, mean, square, loss, c, delta, gradient, slope
                )
                if p.finished:
                    return
            push = (2 * delta - per_row(c, delta) * gradient) * slope
            mean.mul_(0.9).add_(push, alpha=0.1)
            square.mul_(0.999).addcmul_(push, push, value=0.001)
            w = w - self.lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        p.look(_decode(w, p.box)[0])


def _encode(x: Tensor, box: Box) -> Tensor:
    """The variable that moves freely while its point stays in the box; x itself without a box."""
    if box is None:
        return x.clone()
    return torch.atanh((2 * (x - box[0]) / (box[1] - box[0]) - 1) * (1 - 1e-6))  # 1e-6: atanh is infinite at the bounds


def _decode(w: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """The point of w, and the derivative of each of its values."""
    if box is None:
        return w, torch.ones_like(w)
    t, half = torch.tanh(w), (box[1] - box[0]) / 2
    return box[0] + half * (t + 1), half * (1 - t * t)
