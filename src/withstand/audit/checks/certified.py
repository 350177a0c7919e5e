"""What is proven, not tried: the radius within which a smoothed classifier cannot change its mind."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from withstand.audit.check import Check, Table
from withstand.audit.measure import labelled
from withstand.errors import bad
from withstand.hardening.smoothing import certify
from withstand.metrics import wilson
from withstand.models.state import frozen
from withstand.protocols import Batch, Context, Figure, Findings, Metric, Row, Target
from withstand.registry import component

POINTS = 60
"""Radii at which the curve is drawn."""


@component("check", "certified", systems=("classic_attacks",))
class CertifiedRadius(Check):
    """Certified accuracy of the smoothed classifier: the share that is right and provably stays so within L2 radii.

    The model under Gaussian noise is another classifier than the model: it answers with the most probable class under
    noise. sigma: standard deviation of the noise, in units of [0, 1]; the model should have been trained with it (recipe
    `gaussian_noise`). n0, n: draws that choose the class and that bound its probability. alpha: how often a certificate may
    be wrong. radii: at which the accuracy is reported.

    Reference: Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, arXiv
    1902.02918.
    """

    sigma: float = 0.25
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    radii: tuple[float, ...] = (0.0, 0.25, 0.5)

    title = "Certified radius"
    access = frozenset({"decision"})

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise bad("sigma", self.sigma, "a standard deviation > 0")
        if not 0 < self.alpha < 1:
            raise bad("alpha", self.alpha, "a probability between 0 and 1")
        if self.n0 < 1 or self.n < 1:
            raise bad("n0, n", f"{self.n0}, {self.n}", "whole numbers >= 1")
        if not self.radii or min(self.radii) < 0:
            raise bad("radii", self.radii, "L2 radii >= 0")

    def passes(self, target: Target) -> float:
        return (self.n0 + self.n) / 2  # forward passes only

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"sigma"}: outcome = right and certified at some radius, value = distance = that radius (0: abstained)."""
        x, y, ids = labelled(shard)
        with frozen(target.module) if target.module is not None else nullcontext():
            for i in range(len(x)):
                one = slice(i, i + 1)
                found = certify(
                    target, x[one], self.sigma, self.n0, self.n, self.alpha, ctx.seed, ids[one], ctx.block or 500
                )
                ctx.spend(forwards=self.n0 + self.n)
                label, said, radius = int(y[i]), int(found.prediction), float(found.radius)
                condition = {"sigma": self.sigma}
                right = said == label
                yield Row("image", int(ids[i]), condition, right, radius, label, said, radius, self.n0 + self.n)
                ctx.progress(1)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        mine = rows.where(sigma=self.sigma)
        certified = np.where(mine.outcome, mine.value, -1.0)
        n, found = len(certified), Findings()
        for radius in self.radii:
            hits = int((certified >= radius).sum())
            low, high = wilson(hits, n)
            condition = {"sigma": self.sigma, "threat": "l2", "eps": radius}
            metric = Metric("certified_accuracy", hits / n, low, high, "wilson", n, "share", "higher", condition)
            found.metrics.append(metric)
        abstained = int((np.asarray(mine.prediction) < 0).sum())
        low, high = wilson(abstained, n)
        found.metrics.append(
            Metric("abstained", abstained / n, low, high, "wilson", n, "share", "lower", {"sigma": self.sigma})
        )
        found.figures.append(self._figure(certified))
        return found

    def _figure(self, certified: np.ndarray) -> Figure:
        n = len(certified)
        at = np.linspace(0, max(float(certified.max()), self.sigma) * 1.05, POINTS)
        hits = [int((certified >= radius).sum()) for radius in at]
        bounds = [wilson(h, n) for h in hits]
        data = {
            "x_label": "L2 radius",
            "y_label": "certified accuracy",
            "x": at.tolist(),
            "series": [
                {
                    "name": f"sigma {self.sigma:g}",
                    "y": [h / n for h in hits],
                    "low": [low for low, _ in bounds],
                    "high": [high for _, high in bounds],
                }
            ],
        }
        caption = (
            f"Share of examples that the smoothed classifier has right and for which no perturbation within the radius "
            f"changes that; each certificate fails with probability at most {self.alpha:g}."
        )
        return Figure("curve", "Certified accuracy", data, caption)
