"""How well scores tell what to accept from what to reject, by three notions of what that is.

References: Yang et al., "OpenOOD: Benchmarking Generalized Out-of-Distribution Detection", 2022, arXiv 2210.07242; Zhu,
Chen, Li, Zhang, Xue, Tian, Jiang, Zheng, Chen, "Rethinking Out-of-Distribution Detection From a Human-Centric
Perspective", IJCV 2024, arXiv 2211.16778.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from withstand.errors import bad, unknown
from withstand.metrics import aupr, auroc, fpr_at_tpr

Notion = Literal["conventional", "full_spectrum", "human_centric"]
NOTIONS: tuple[Notion, ...] = get_args(Notion)


def acceptable(
    labels: np.ndarray, predictions: np.ndarray, shifted: np.ndarray, notion: Notion
) -> tuple[np.ndarray, np.ndarray]:
    """Which examples ought to be accepted, and which ones are judged at all: bool [N] each.

    labels: int [N], -1 outside of the label space. predictions: int [N]. shifted: bool [N], of the label space but of
    another distribution.

    "conventional": everything of the label space; shifted examples are not judged. "full_spectrum": shifted examples are
    judged, and to be accepted. "human_centric": whatever is classified right, and nothing else.
    """
    if notion not in NOTIONS:
        raise unknown("notion", str(notion), NOTIONS)
    known = labels >= 0
    if notion == "human_centric":
        return known & (labels == predictions), np.ones(len(labels), bool)
    return known, ~shifted if notion == "conventional" else np.ones(len(labels), bool)


@dataclass(frozen=True)
class Judgement:
    """Figures of one detector on one set of examples.

    auroc: the chance that something to reject scores above something to accept, ties count half. aupr_accept, aupr_reject:
    average precision with either kind as the positives. fpr95: the share of what is to be rejected that passes where 95 %
    of what is to be accepted pass. error: the share of wrong decisions at the threshold given (NaN for none), least_error:
    at the best one. aurc: the mean, over all shares of examples that may be accepted, of what is wrongly so.
    accept, reject: numbers of examples.
    """

    auroc: float
    aupr_accept: float
    aupr_reject: float
    fpr95: float
    error: float
    least_error: float
    aurc: float
    accept: int
    reject: int


def judge(
    scores: np.ndarray, accept: np.ndarray, threshold: float | None = None, weights: np.ndarray | None = None
) -> Judgement:
    """Judge scores float [N], higher = more suspicious, of examples to accept or not, bool [N].

    threshold: what scores above it is rejected. weights: of the examples, [N]; None: all alike.

    Raises: BadInput for scores that are NaN, lengths that differ, and nothing to accept or nothing to reject.
    """
    scores, accept = np.asarray(scores, float), np.asarray(accept, bool)
    if scores.shape != accept.shape or np.isnan(scores).any():
        raise bad("scores", f"{scores.shape} for {accept.shape} examples", "a number for each, none NaN")
    if accept.all() or not accept.any():
        got = "nothing to reject" if accept.all() else "nothing to accept"
        raise bad("examples", got, "some of either kind", "A model that is always right, or never, tells nothing here.")
    w = np.ones(len(scores)) if weights is None else np.asarray(weights, float)
    order = np.argsort(scores, kind="stable")
    ranked, right, mass = scores[order], accept[order], w[order] / w.sum()
    ends = np.r_[ranked[1:] != ranked[:-1], True]  # a threshold cannot part equal scores
    passed = np.r_[0, np.cumsum(mass)[ends]]
    wrong = np.r_[0, np.cumsum(mass * ~right)[ends]]
    missed = mass[right].sum() - np.r_[0, np.cumsum(mass * right)[ends]]
    risk = np.diff(passed) * wrong[1:] / passed[1:]
    flagged = scores > (np.inf if threshold is None else threshold)
    return Judgement(
        auroc(scores, ~accept, w),
        aupr(-scores, accept, w),
        aupr(scores, ~accept, w),
        fpr_at_tpr(-scores, accept, 0.95, w),
        float("nan") if threshold is None else float(w[flagged == accept].sum() / w.sum()),
        float((wrong + missed).min()),
        float(risk.sum()),
        int(accept.sum()),
        int((~accept).sum()),
    )
