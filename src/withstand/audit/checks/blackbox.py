"""Attacks that only see answers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.attacks.engine import Attack, AttackResult
from withstand.audit.check import Check, Table
from withstand.audit.measure import (
    OptionalAttack,
    attack_on,
    attack_passes,
    bounded,
    condition_of,
    confidence,
    labelled,
    predict,
    run_attack,
    threat_text,
)
from withstand.errors import bad
from withstand.metrics import quantile_interval, wilson
from withstand.protocols import Batch, Context, Figure, Findings, Metric, Row, Target
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("check", "blackbox", systems=("classic_attacks",))
class BlackBox(Check):
    """Accuracy against an adversary who sees only scores or decisions, and the queries that success takes.

    threat: what the adversary may do. attack: `square` (sees scores, Linf or L2), `boundary` (sees decisions, L2), or any
    other attack with a budget of queries; None takes Square. An attack that looks for the nearest point succeeds with the
    first point within the threat's radius.

    References: Andriushchenko, Croce, Flammarion, Hein, "Square Attack", 2020, arXiv 1912.00049; Brendel, Rauber, Bethge,
    "Decision-Based Adversarial Attacks", 2018, arXiv 1712.04248.
    """

    threat: ThreatField = Linf(8 / 255)
    attack: OptionalAttack = None

    title = "Black box"

    def __post_init__(self) -> None:
        bounded(self)
        if self.attack is not None and (self.attack.access == "gradients" or not hasattr(self.attack, "queries")):
            raise bad(
                "attack", repr(self.attack), "a black-box attack with a budget of queries, e.g. square or boundary"
            )

    @property
    def chosen(self) -> Attack:
        """The attack that runs."""
        return attack_on(self.threat, self.attack, "square")

    @property
    def access(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.chosen.access})

    def passes(self, target: Target) -> float:
        return 1 + attack_passes(self.chosen, target)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack", "threat", "eps"}: outcome, value = queries until success (0: wrong from the start, missing: no
        success), distance = of the point found, cost = queries spent."""
        x, y, ids = labelled(shard)
        attack = self.chosen
        right = predict(target, x, ctx).argmax(1) == y
        result = run_attack(attack, target, x, y, ids, ctx)
        _, guess = confidence(predict(target, result.x_adv, ctx))
        stood = right & ~result.success & (guess == y)
        queries = torch.where(right, queries_to_success(result, self.threat.eps), 0)
        condition = condition_of(attack, self.threat)
        columns = (ids, stood, queries, y, guess, result.distance, result.forwards)
        for id_, outcome, asked, label, prediction, distance, spent in zip(*(c.tolist() for c in columns)):
            yield Row("image", id_, condition, outcome, None if outcome else asked, label, prediction, distance, spent)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        attack = self.chosen
        condition = condition_of(attack, self.threat)
        budget = int(attack.queries)  # type: ignore[attr-defined]
        rows = rows.where(**condition)
        named = {**condition, "queries": budget}
        accuracy = rows.share("black_box_accuracy")
        accuracy.condition = named
        found = Findings([accuracy])
        queries = np.where(rows.outcome, np.inf, rows.value)
        fallen = queries[np.isfinite(queries) & (queries > 0)]
        if len(fallen):
            value, low, high = quantile_interval(fallen)
            low, high = (v if np.isfinite(v) else None for v in (low, high))
            found.metrics.append(
                Metric("median_queries", value, low, high, "exact", len(fallen), "queries", "higher", named)
            )
        said = threat_text(condition["threat"], condition["eps"])
        caption = (
            f"Share of all examples that stay right while {condition['attack']} asks more and more questions ({said}); "
            f"before the first question {np.mean(queries > 0):.1%}. 95 % intervals (Wilson)."
        )
        title = f"Queries to success, {condition['attack']}, {said}"
        found.figures.append(queries_figure(queries, budget, condition["attack"], title, "accuracy", caption))
        return found


def queries_figure(queries: np.ndarray, budget: int, attack: str, title: str, y_label: str, caption: str) -> Figure:
    """The share of examples that still stand after so many queries; queries: until each one's fall, infinite for none."""
    grid = [int(q) for q in np.unique(np.geomspace(1, max(budget, 2), 25).round()) if q <= budget]
    left = [int((queries > q).sum()) for q in grid]
    ends = [wilson(k, len(queries)) for k in left]
    drawn = {
        "name": attack,
        "y": [k / len(queries) for k in left],
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
    }
    data = {"x_label": "queries", "y_label": y_label, "x": grid, "log_x": True, "series": [drawn]}
    return Figure("curve", title, data, caption)


def queries_to_success(result: AttackResult, eps: float) -> Tensor:
    """Queries spent on each example when it was first broken within eps, int64 [N]; those never broken get what they cost.

    A search for the nearest point reports its distance at a few counts of queries ("trace"): there the first count at which
    it was at most eps is taken, so that the number is rounded up.
    """
    if "trace" not in result.notes:
        return torch.where(result.success, result.cost_at_success, result.forwards)
    counts = torch.as_tensor(result.notes["trace_queries"], device=result.forwards.device)
    within = result.notes["trace"] <= eps + 1e-6
    first = counts[within.to(torch.uint8).argmax(1)]
    return torch.where(within.any(1), first, result.forwards)
