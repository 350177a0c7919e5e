"""HAG: the code turned into its opposite."""

from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import Problem
from withstand.attacks.hashing.aim import Codes, HashingAttack, counted
from withstand.attacks.hashing.centres import sign
from withstand.errors import bad
from withstand.objectives import State
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("attack", "hag", systems=("cgat",))
class HAG(HashingAttack):
    """Turn the query's code into its opposite, bit by bit (untargeted, hashing models; no labels, no database).

    Minimises ((sum_k m_k u'_k h_k) / (sum_k m_k) + 1)^2, h = F(x) through tanh for the clean query, u' = tanh(alpha F(x')),
    m_k = 1 where |u'_k - sign h_k| < 1 + t: bits that have flipped far enough count no more.

    t: the slack. anneal: alpha grows from 0.1 to 1; without that the tanh saturates, gradients vanish and models look robust
    that are not. The mask is the masked form of a public reimplementation; the official code divides the sum over all bits
    by the number of those that count. Steps follow the gradient's sign, in the official code the gradient itself.

    Reference: Yang, Liu, Deng, Tao, "Adversarial Examples for Hamming Space Search", IEEE Transactions on Cybernetics 50,
    2020.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 100
    step: float = 1 / 8
    random_start: bool = True
    t: float = 0.5
    anneal: bool = True

    labelled = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 < self.t <= 1:
            raise bad("t", self.t, "a slack in (-1, 1]")

    @property
    def anneals(self) -> bool:  # type: ignore[override]
        """As the field says."""
        return self.anneal

    def problem(self, **settings: Any) -> Problem:
        aim = Opposite(settings["model"], self.t, 0.1 if self.anneal else None)
        return super().problem(**{"objective": aim, **settings})


class Opposite(Codes):
    """The objective: minus HAG's loss; as a number, how many bits have flipped."""

    def __init__(self, model: Any, t: float, alpha: float | None) -> None:
        super().__init__(model, alpha)
        self.t = t

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        super().begin(clean, y, rows)
        return {"clean": clean.logits}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        code = sign(state["clean"])
        smooth = -hag_loss(self.soft(seen), state["clean"], self.t)
        return counted(smooth, seen.logits, -code)


def hag_loss(u: Tensor, clean: Tensor, t: float = 0.5) -> Tensor:
    """((sum_k m_k u_k h_k) / (sum_k m_k) + 1)^2, [N], with h the clean outputs; 0 where no bit counts any more."""
    m = ((u.detach() - sign(clean)).abs() < 1 + t).to(u.dtype)
    count = m.sum(1)
    return torch.where(count > 0, ((m * u * clean).sum(1) / count.clamp_min(1) + 1).square(), 0.0)
