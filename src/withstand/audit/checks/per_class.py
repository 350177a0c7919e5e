"""Clean and robust accuracy class by class."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from withstand.audit.check import Check, Table
from withstand.audit.measure import threat_text
from withstand.metrics import wilson
from withstand.protocols import Context, Figure, Findings, Metric, Target
from withstand.registry import component

SHOWN = 30
"""Classes in the figure: the worst ones where there are more."""


@component("check", "per_class")
class PerClass(Check):
    """Accuracy of every class, clean and under attack, and of the worst class.

    Reads the rows of the checks `clean` and `robust`; asks the model nothing. The interval of the worst class is that of
    the smallest accuracy: all K classes get Wilson intervals at level 1 - 0.05 / K, which hold together with 95 %.

    Reference: Benz, Zhang, Karjauv, Kweon, "Robustness May Be at Odds with Fairness", 2021, arXiv 2010.13365.
    """

    title = "Class by class"
    own_rows = False
    after = ("clean", "robust")

    def passes(self, target: Target) -> float:
        return 0.0

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        found = Findings()
        series: list[tuple[str, np.ndarray, np.ndarray]] = []
        for table in others.values():
            for condition in table.conditions():
                part = table.where(**condition)
                if condition == {"measure": "confidence"}:
                    series.append(self._measure(part, "worst_class_accuracy", "clean", {}, ctx, found))
                elif "threat" in condition:
                    said = threat_text(condition["threat"], condition["eps"])
                    name = "worst_class_robust_accuracy"
                    series.append(self._measure(part, name, f"under {said}", condition, ctx, found))
        found.figures.append(self._figure(series, ctx))
        return found

    def _measure(
        self, part: Table, name: str, said: str, condition: dict[str, Any], ctx: Context, found: Findings
    ) -> tuple[str, np.ndarray, np.ndarray]:
        """Adds the worst class to the findings; returns (name, hits, examples), by class."""
        label, classes = part.label, len(ctx.classes) or int(part.label.max()) + 1
        n = np.bincount(label, minlength=classes)
        hits = np.bincount(label, weights=part.outcome, minlength=classes).astype(int)
        present = np.flatnonzero(n)
        bounds = [wilson(int(hits[c]), int(n[c]), 1 - 0.05 / len(present)) for c in present]
        worst = min(present, key=lambda c: (hits[c] / n[c], c))
        found.metrics.append(
            Metric(
                name,
                float(hits[worst] / n[worst]),
                min(low for low, _ in bounds),
                min(high for _, high in bounds),
                f"wilson, {len(present)} classes at once",
                int(n[worst]),
                condition={**condition, "class": _name(int(worst), ctx)},
            )
        )
        return said, hits, n

    def _figure(self, series: list[tuple[str, np.ndarray, np.ndarray]], ctx: Context) -> Figure:
        last = series[-1]
        shown = [int(c) for c in np.flatnonzero(last[2])]
        if len(shown) > SHOWN:
            shown = sorted(sorted(shown, key=lambda c: last[1][c] / last[2][c])[:SHOWN])
        data = {"labels": [_name(c, ctx) for c in shown], "y_label": "accuracy", "series": []}
        for said, hits, n in series:
            bounds = [wilson(int(hits[c]), int(n[c])) if n[c] else (None, None) for c in shown]
            data["series"].append(
                {
                    "name": said,
                    "values": [float(hits[c] / n[c]) if n[c] else None for c in shown],
                    "low": [low for low, _ in bounds],
                    "high": [high for _, high in bounds],
                }
            )
        caption = "Share of each class's examples that are right, with 95 % intervals (Wilson, each class on its own)."
        if len(shown) < np.count_nonzero(last[2]):
            caption += f" The {SHOWN} worst of {np.count_nonzero(last[2])} classes ({last[0]})."
        return Figure("bars", "Class by class", data, caption)


def _name(c: int, ctx: Context) -> str:
    return ctx.classes[c] if c < len(ctx.classes) else str(c)
