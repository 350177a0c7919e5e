"""Accuracy and calibration on the data as it is."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch.nn.functional as F

from withstand.audit.check import Check, Table
from withstand.audit.measure import labelled, predict
from withstand.errors import bad
from withstand.metrics import bootstrap, calibration_error, confidence_bins, wilson
from withstand.protocols import Batch, Context, Figure, Findings, Metric, Row, Target
from withstand.registry import component


@component("check", "clean")
class Clean(Check):
    """Clean accuracy, expected calibration error, negative log-likelihood and Brier score.

    bins: equal-width confidence bins of the calibration error, sum over bins of n_b / n * |accuracy_b - confidence_b|.
    Of a target that only decides, the accuracy alone.

    References: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599; Brier, "Verification of
    forecasts expressed in terms of probability", 1950.
    """

    bins: int = 15

    title = "Ordinary inputs"
    access = frozenset({"decision"})

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise bad("bins", self.bins, "a whole number >= 1")

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"measure": "confidence"}: outcome = right, value = the largest probability; "nll" and "brier": the value."""
        x, y, ids = labelled(shard)
        p = predict(target, x, ctx).double().softmax(1)
        sure, guess = p.max(1)
        nll = -p.gather(1, y[:, None]).squeeze(1).clamp_min(1e-300).log()
        brier = (p - F.one_hot(y, p.shape[1])).square().sum(1)
        scored = "scores" in target.access
        columns = [c.tolist() for c in (ids, y, guess, sure, nll, brier)]
        for id_, label, prediction, confidence, surprise, score in zip(*columns):
            about = {"label": label, "prediction": prediction}
            value = confidence if scored else None
            yield Row("image", id_, {"measure": "confidence"}, label == prediction, value, cost=1, **about)
            if scored:
                yield Row("image", id_, {"measure": "nll"}, None, surprise, **about)
                yield Row("image", id_, {"measure": "brier"}, None, score, **about)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        sure = rows.where(measure="confidence")
        found = Findings([sure.share("clean_accuracy")])
        if not len(rows.where(measure="nll")):
            return found
        confidence, right = sure.value, sure.outcome
        for name, values, statistic, condition in (
            ("ece", np.stack([confidence, right], 1), self._ece, {"bins": self.bins}),
            ("nll", rows.where(measure="nll").value, np.mean, {}),
            ("brier", rows.where(measure="brier").value, np.mean, {}),
        ):
            low, high = bootstrap(values, statistic, draws=500)
            unit = "share" if name == "ece" else "number"
            value = float(statistic(values))
            found.metrics.append(Metric(name, value, low, high, "bootstrap", len(values), unit, "lower", condition))
        found.figures.append(self._reliability(confidence, right))
        return found

    def _ece(self, pairs: np.ndarray) -> float:
        return calibration_error(pairs[:, 0], pairs[:, 1], self.bins)

    def _reliability(self, confidence: np.ndarray, right: np.ndarray) -> Figure:
        index = confidence_bins(confidence, self.bins)
        filled = [b for b in range(self.bins) if (index == b).any()]
        held = [right[index == b] for b in filled]
        bounds = [wilson(int(h.sum()), len(h)) for h in held]
        data = {
            "x_label": "confidence",
            "y_label": "accuracy",
            "diagonal": True,
            "x": [float(confidence[index == b].mean()) for b in filled],
            "series": [
                {
                    "name": "accuracy",
                    "y": [float(h.mean()) for h in held],
                    "low": [low for low, _ in bounds],
                    "high": [high for _, high in bounds],
                }
            ],
        }
        caption = (
            f"Mean confidence and accuracy in {self.bins} bins of equal width, with 95 % intervals (Wilson); empty bins "
            "are left out. A calibrated model lies on the dotted line, where both are equal."
        )
        return Figure("curve", "Reliability", data, caption)
