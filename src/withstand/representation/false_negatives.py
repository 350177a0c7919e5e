"""Which negatives of an anchor are false: chosen by similarity, without labels, more of them as training goes on.

A reconstruction: the paper's abstract says that false negatives are detected and removed by a simple adaptive rule; the
rule itself was not to be had. Here it is that of false negative cancellation (a share of the most similar candidates,
and those above a threshold only), with a share that grows from nothing, since similarity means nothing early on.

References: Gupta, Akhtar, Mian, Shah, "Contrastive Self-Supervised Learning Leads to Higher Adversarial Susceptibility",
2022, arXiv 2207.10862; Huynh et al., 2022, arXiv 2011.11765.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from withstand.errors import bad


@dataclass(frozen=True)
class FalseNegativeSchedule:
    """The share of the candidates that is taken for false negatives, by progress t in [0, 1] of the training:
    q(t) = q_max * clip((t - t0) / (t1 - t0), 0, 1); t0 = t1 is a jump, and t0 = t1 = 0 is q_max throughout.
    """

    q_max: float = 0.1
    t0: float = 0.2
    t1: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.q_max < 1:
            raise bad("q_max", self.q_max, "a share in [0, 1)")
        if not 0 <= self.t0 <= self.t1 <= 1:
            raise bad("t0, t1", (self.t0, self.t1), "shares of the training with 0 <= t0 <= t1 <= 1")

    def __call__(self, t: float) -> float:
        if self.t0 == self.t1:
            return self.q_max if t >= self.t0 else 0.0
        return self.q_max * min(1.0, max(0.0, (t - self.t0) / (self.t1 - self.t0)))


def scores(z: Tensor, pairs: Tensor | None = None) -> Tensor:
    """Cosines of all views with each other, detached, [M, M].

    pairs: int64 [M] or [M, v - 1], the other views of each; with it, an anchor counts as close to a candidate as the
    closest of its own views is (the support views of false negative cancellation).
    """
    with torch.autocast(z.device.type, enabled=False):
        unit = torch.nn.functional.normalize(z.detach().float(), dim=1)
        s = unit @ unit.T
    return s if pairs is None else torch.maximum(s, s[pairs.view(len(s), -1)].amax(1))


def select_false_negatives(
    scores: Tensor, q: float, threshold: float | None = None, *, exclude: Tensor | None = None
) -> Tensor:
    """The false negatives of each anchor, bool [M, M]: the floor(q * candidates) highest scores, above the threshold.

    scores: [M, M]; they are detached here. q: share of the candidates in [0, 1). exclude: int64 [M] or [M, v - 1], the
    other views of each anchor, which are no candidates; nor is the anchor itself. Views are chosen one by one: of a
    candidate's views one may go and the others stay.

    Raises: BadInput for a share out of range, or scores that are NaN.
    """
    m = len(scores)
    if scores.shape != (m, m):
        raise bad("scores", f"shape {tuple(scores.shape)}", "[M, M]")
    if not 0 <= q < 1:
        raise bad("q", q, "a share in [0, 1)")
    closed = torch.eye(m, dtype=torch.bool, device=scores.device)
    if exclude is not None:
        closed.scatter_(1, exclude.view(m, -1), True)
    found = torch.zeros_like(closed)
    k = int(q * (m - int(closed[0].sum())) + 1e-9)
    if k == 0:
        return found
    s = scores.detach().float().masked_fill(closed, -torch.inf)
    if bool(s.isnan().any()):
        raise bad("scores", "NaN", "finite scores", "The embeddings have broken down; lower the learning rate.")
    found.scatter_(1, s.topk(k, dim=1).indices, True)
    if threshold is not None:
        found &= s > threshold
    return found & ~closed
