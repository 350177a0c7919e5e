"""Search engines under attack."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from withstand.attacks.engine import Attack
from withstand.attacks.retrieval.substitute import stealing_cost
from withstand.audit.check import Check, Table
from withstand.audit.checks.blackbox import queries_figure
from withstand.audit.measure import (
    OptionalAttack,
    attack_on,
    attack_passes,
    bounded,
    condition_of,
    run_attack,
    threat_text,
)
from withstand.errors import bad
from withstand.metrics import bootstrap, quantile_interval, wilson
from withstand.protocols import Batch, Context, Findings, Metric, Need, Row, Target
from withstand.registry import component, replace
from withstand.threats import Linf, ThreatField

_STOLEN, _SILENT = {"of": "substitute"}, {"of": "zero differences"}


@component("check", "retrieval", systems=("qair",))
class Retrieval(Check):
    """How often, and with how many questions, an engine can be made to return other items altogether.

    An attack succeeds where no item of the clean list is in the list of the changed image. Every question counts, the clean
    one included; those that a given substitute was stolen with are reported apart, and once spread over the images:
    (questions of the attack, failures at the budget, + questions of stealing) / images.

    threat: what the adversary may do. attack: None takes QAIR, with the substitute that is given (`--given
    substitute=artefact:DIR`), or without one.

    Reference: Li et al., "QAIR: Practical Query-efficient Black-Box Attacks for Image Retrieval", 2021, arXiv 2103.02927.
    """

    threat: ThreatField = Linf(8 / 255)
    attack: OptionalAttack = None

    title = "Image retrieval"
    task = "retrieval"
    access = frozenset({"top_k"})
    needs = (Need("substitute", "model", optional=True),)

    def __post_init__(self) -> None:
        bounded(self)
        if self.attack is not None and self.attack.access != "top_k":
            raise bad("attack", repr(self.attack), "an attack on ranked lists, e.g. qair(queries=200)")

    @property
    def chosen(self) -> Attack:
        """The attack that runs, but for a substitute that is given."""
        return attack_on(self.threat, self.attack, "qair")

    def passes(self, target: Target) -> float:
        return 1 + attack_passes(self.chosen, target)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack", "threat", "eps"}: outcome, value = questions until success (missing: no success), distance = of the
        point found, cost = questions spent; {"of": "zero differences"}: value = share of directions that changed nothing
        (missing: none was asked for);
        {"of": "substitute"}: value = questions that it was stolen with."""
        assert shard.ids is not None
        attack: Any = self.chosen
        if "substitute" in given:
            attack = replace(attack, substitute=given["substitute"])
        result = run_attack(attack, target, shard.x, None, shard.ids, ctx)
        if (stolen := stealing_cost(getattr(attack, "substitute", None))) is not None:
            yield Row("model", 0, _STOLEN, None, stolen)
        silent = result.notes.get("zero_differences", result.distance * torch.nan)
        condition = condition_of(attack, self.threat)
        columns = (shard.ids, result.success, result.cost_at_success, result.distance, result.forwards, silent)
        for id_, won, asked, distance, spent, share in zip(*(c.tolist() for c in columns)):
            yield Row("image", id_, condition, not won, asked if won else None, distance=distance, cost=spent)
            yield Row("image", id_, _SILENT, None, None if np.isnan(share) else share)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        attack = self.chosen
        budget = int(attack.queries)  # type: ignore[attr-defined]
        condition = condition_of(attack, self.threat)
        named = {**condition, "queries": budget}
        mine = rows.where(**condition)
        queries = np.where(mine.outcome, np.inf, mine.value)
        won, n = queries[np.isfinite(queries)], len(queries)
        low, high = wilson(len(won), n)
        found = Findings([Metric("lists_replaced", len(won) / n, low, high, "wilson", n, "share", "lower", named)])
        capped = np.minimum(queries, budget)
        for name, values in (("mean_queries", won), ("mean_queries_all", capped)):
            if len(values):
                low, high = bootstrap(values)
                found.metrics.append(
                    Metric(name, float(values.mean()), low, high, "bootstrap", len(values), "queries", "higher", named)
                )
        for name, values in (("median_queries", won), ("median_queries_all", capped)):
            if len(values):
                value, *ends = quantile_interval(values)
                low, high = (v if np.isfinite(v) else None for v in ends)
                found.metrics.append(Metric(name, value, low, high, "exact", len(values), "queries", "higher", named))
        stolen = rows.where(**_STOLEN).value
        if len(stolen):
            spent = float(stolen[0])
            found.metrics.append(Metric("stealing_queries", spent, spent, spent, "exact", n, "queries", ""))
            low, high = bootstrap(capped + spent / n)
            value = float(capped.mean()) + spent / n
            found.metrics.append(
                Metric("amortised_queries", value, low, high, "bootstrap", n, "queries", "higher", named)
            )
        silent = rows.where(**_SILENT).value
        silent = silent[np.isfinite(silent)]
        if len(silent):
            low, high = bootstrap(silent)
            found.metrics.append(
                Metric(
                    "zero_differences", float(silent.mean()), low, high, "bootstrap", len(silent), "share", "", named
                )
            )
        said = threat_text(condition["threat"], condition["eps"])
        apart = f", and {int(stolen[0])} that the substitute was stolen with" if len(stolen) else ""
        caption = (
            f"Share of the images whose list keeps at least one item while {condition['attack']} asks more and more "
            f"questions ({said}){apart}. 95 % intervals (Wilson)."
        )
        title = f"Questions until the list is another, {condition['attack']}, {said}"
        found.figures.append(
            queries_figure(queries, budget, condition["attack"], title, "lists that keep an item", caption)
        )
        return found
