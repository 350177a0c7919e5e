"""DeepFool."""

from functools import partial

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.gradients import gradients_of
from withstand.attacks.engine.needs import needs_threat, needs_whole
from withstand.errors import bad
from withstand.objectives import Confident, Margin, at
from withstand.registry import component
from withstand.threats import L2, Linf, ThreatField, clip, per_row


@component("attack", "deepfool", systems=("classic_attacks",))
class DeepFool(Attack):
    """Steps to the nearest linearised boundary until the class changes.

    With f_k = z_k - z_y and w_k its gradient at the present point, the step goes to the class with the smallest
    |f_k| / ||w_k||_q (q dual to the norm): r = |f_k| w_k / ||w_k||_2^2 for L2, |f_k| / ||w_k||_1 * sign(w_k) for Linf.
    The point is x + (1 + overshoot) * sum r, moved into the box.

    threat: L2 or Linf; without eps the attack reports the distance, with eps points beyond it are failures.
    steps: at most. candidates: classes compared, the highest by the clean logits (None: all); each costs a backward pass.

    Reference: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural networks",
    2016, arXiv 1511.04599.
    """

    threat: ThreatField = L2()
    steps: int = 50
    overshoot: float = 0.02
    candidates: int | None = 10

    nearest = True
    fine = True
    objective = Margin()
    criterion = Confident(Margin(kappa=1e-5))  # a class that changed within rounding may change back in another batch

    def __post_init__(self) -> None:
        needs_threat(self, L2, Linf)
        needs_whole(self, "steps")
        if self.overshoot < 0:
            raise bad("overshoot", self.overshoot, "a number >= 0")
        if self.candidates is not None and self.candidates < 2:
            raise bad("candidates", self.candidates, "a whole number >= 2 (the label is one of them), or None for all")

    def search(self, p: Problem) -> None:
        logits = p.clean.logits
        count = min(self.candidates or logits.shape[1], logits.shape[1]) - 1
        others = logits.scatter(1, p.y[:, None], -torch.inf).topk(count, dim=1).indices
        others, total = p.keep_only(~p.won, others, torch.zeros_like(p.x))
        for _ in range(self.steps):
            if p.finished:
                return
            gaps = partial(_gaps, y=p.y_alive, others=others)
            values, slopes = gradients_of(p, self._point(p, total), gaps)
            others, total, values, slopes = p.keep_only(~p.won[p.alive], others, total, values, slopes)
            total = total + self._step(values, slopes)
        if not p.finished:
            p.look(self._point(p, total))

    def _point(self, p: Problem, total: Tensor) -> Tensor:
        return clip(p.x_alive + (1 + self.overshoot) * total, p.box)

    def _step(self, values: Tensor, slopes: Tensor) -> Tensor:
        """values [A, C], slopes [A, C, ...] -> the step [A, ...] to the nearest of the C linearised boundaries."""
        euclidean = isinstance(self.threat, L2)
        size = slopes.flatten(2).norm(dim=2, p=2 if euclidean else 1).clamp_min(1e-12)
        k = (values.abs() / size).argmin(1)
        rows = torch.arange(len(k), device=k.device)
        gap = (values[rows, k].abs() + 1e-4) / size[rows, k]  # 1e-4 (as released): cross it, not touch it
        slope = slopes[rows, k]
        return per_row(gap, slope) * (slope / per_row(size[rows, k], slope) if euclidean else slope.sign())


def _gaps(logits: Tensor, y: Tensor, others: Tensor) -> Tensor:
    """f_k = z_k - z_y for the classes `others` [A, C]."""
    return logits.gather(1, others) - at(logits, y)[:, None]
