"""How far the nearest error is."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from withstand.attacks.engine import Attack
from withstand.audit.check import Check, Table
from withstand.audit.measure import (
    OptionalAttack,
    attack_on,
    attack_passes,
    condition_of,
    labelled,
    predict,
    run_attack,
)
from withstand.errors import bad
from withstand.metrics import quantile_interval, wilson
from withstand.protocols import Batch, Context, Figure, Findings, Flag, Metric, Row, Target
from withstand.registry import component, replace
from withstand.threats import L2, ThreatField

POINTS = 50
"""Distances at which the distribution is drawn."""


@component("check", "minimum_distance", systems=("classic_attacks",))
class MinimumDistance(Check):
    """Distance to the nearest error found: median, quantiles and distribution.

    Over all examples; the distance of one that is wrong from the start is 0, that of one for which nothing was found is
    infinite. The true distance is at most the one found.

    threat: the norm, without a radius. attack: a search for the nearest point; None takes targeted FAB. quantiles: shares
    of examples beside the median.

    Reference: Croce, Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", 2020, arXiv
    1907.02044.
    """

    threat: ThreatField = L2()
    attack: OptionalAttack = None
    quantiles: tuple[float, ...] = (0.1, 0.9)

    title = "Nearest error"

    def __post_init__(self) -> None:
        if self.threat.eps is not None:
            raise bad("threat", repr(self.threat), "a threat without a radius, e.g. l2()")
        if not all(0 < q < 1 for q in self.quantiles):
            raise bad("quantiles", self.quantiles, "shares between 0 and 1")
        if self.attack is not None:
            if not self.attack.nearest:
                raise bad(
                    "attack", repr(self.attack), "a search for the nearest point, e.g. fab_t, deepfool or boundary"
                )
            replace(self.attack, threat=self.threat)

    @property
    def chosen(self) -> Attack:
        """The attack that runs."""
        return attack_on(self.threat, self.attack, "fab_t")

    @property
    def access(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.chosen.access})

    def passes(self, target: Target) -> float:
        return 1 + attack_passes(self.chosen, target)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack", "threat"}: value = the distance found (missing: nothing found), prediction = the class there."""
        x, y, ids = labelled(shard)
        attack = self.chosen
        result = run_attack(attack, target, x, y, ids, ctx)
        guess = predict(target, result.x_adv, ctx).argmax(1)
        found = result.success & (guess != y)
        distance = torch.where(found, result.distance, torch.nan)
        cost = result.forwards + result.backwards + 1
        condition = condition_of(attack, self.threat)
        for id_, value, label, prediction, spent in zip(*(c.tolist() for c in (ids, distance, y, guess, cost))):
            known = value if value == value else None
            yield Row("image", id_, condition, None, known, label, prediction, known, spent)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        condition = condition_of(self.chosen, self.threat)
        distance = np.nan_to_num(rows.where(**condition).value, nan=np.inf)
        n, reached = len(distance), int(np.isfinite(distance).sum())
        found = Findings()
        for q in (0.5, *self.quantiles):
            value, low, high = quantile_interval(distance, q)
            if np.isfinite(value):
                name = "median_distance" if q == 0.5 else "distance_quantile"
                which = condition if q == 0.5 else {**condition, "share": q}
                bounds = (max(low, 0.0), high if np.isfinite(high) else None)
                found.metrics.append(Metric(name, value, *bounds, "exact", n, "distance", "higher", which))
        low, high = wilson(reached, n)
        found.metrics.append(
            Metric("distances_found", reached / n, low, high, "wilson", n, "share", "", dict(condition))
        )
        if reached < n:
            found.flags.append(
                Flag(
                    "nearest error not found",
                    "warn",
                    f"{condition['attack']} found no error for {n - reached} of {n} examples; without a bound there always "
                    "is one, unless the model gives one class to every input, so the search failed there.",
                    "Look at the trust panel, and try another attack, e.g. boundary, which needs no gradients.",
                    {"found": reached, "examples": n},
                )
            )
        if reached:
            found.figures.append(self._figure(distance, condition))
        return found

    def _figure(self, distance: np.ndarray, condition: dict[str, Any]) -> Figure:
        at = np.r_[0.0, np.quantile(distance[np.isfinite(distance)], np.linspace(0, 1, POINTS))]
        at = np.unique(at)
        hits = [(distance <= d).sum() for d in at]
        bounds = [wilson(int(h), len(distance)) for h in hits]
        norm = condition["threat"].capitalize()
        data = {
            "x_label": f"{norm} distance",
            "y_label": "share of examples",
            "x": at.tolist(),
            "series": [
                {
                    "name": condition["attack"],
                    "y": [float(h / len(distance)) for h in hits],
                    "low": [low for low, _ in bounds],
                    "high": [high for _, high in bounds],
                }
            ],
        }
        caption = (
            f"Share of all examples that a change of at most this size ({norm}) turns wrong, as far as "
            f"{condition['attack']} found; those wrong from the start count from 0. 95 % intervals (Wilson)."
        )
        return Figure("curve", f"Distance to the nearest error, {norm}", data, caption)
