"""Accuracy and calibration on the data as it is."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from withstand.audit.check import Check, Table
from withstand.errors import bad
from withstand.metrics import bootstrap
from withstand.models.state import frozen
from withstand.protocols import Batch, Context, Figure, Findings, Metric, Row, Target
from withstand.registry import component


@component("check", "clean")
class Clean(Check):
    """Clean accuracy, expected calibration error, negative log-likelihood and Brier score.

    bins: equal-width confidence bins of the calibration error, sum over bins of n_b / n * |accuracy_b - confidence_b|.

    References: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599; Brier, "Verification of
    forecasts expressed in terms of probability", 1950.
    """

    bins: int = 15

    title = "Ordinary inputs"
    access = frozenset({"scores"})

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise bad("bins", self.bins, "a whole number >= 1")

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        assert shard.y is not None
        assert shard.ids is not None
        probabilities = predict(target, shard.x, ctx).double().softmax(1)
        confidence, prediction = probabilities.max(1)
        right = prediction == shard.y
        nll = -probabilities.gather(1, shard.y[:, None]).squeeze(1).clamp_min(1e-300).log()
        truth = torch.nn.functional.one_hot(shard.y, probabilities.shape[1])
        brier = (probabilities - truth).square().sum(1)
        columns = [c.tolist() for c in (shard.ids, shard.y, prediction, right, confidence, nll, brier)]
        for id_, label, guess, hit, sure, loss, score in zip(*columns):
            for measure, value in (("confidence", sure), ("nll", loss), ("brier", score)):
                outcome = bool(hit) if measure == "confidence" else None
                yield Row("image", id_, {"measure": measure}, outcome, value, label, guess, cost=1)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        sure = rows.where(measure="confidence")
        accuracy = rows.share("clean_accuracy", measure="confidence")
        accuracy.condition = {}
        confidence, right = sure.value, sure.outcome
        found = Findings([accuracy])
        pairs = np.stack([confidence, right], 1)
        for name, values, statistic in (
            ("ece", pairs, lambda v: calibration_error(v[:, 0], v[:, 1], self.bins)),
            ("nll", rows.where(measure="nll").value, np.mean),
            ("brier", rows.where(measure="brier").value, np.mean),
        ):
            low, high = bootstrap(values, statistic, draws=500)
            unit = "share" if name == "ece" else "number"
            found.metrics.append(
                Metric(name, float(statistic(values)), low, high, "bootstrap", len(values), unit, "lower")
            )
        edges = np.linspace(0, 1, self.bins + 1)
        bin_ = np.clip(np.ceil(confidence * self.bins).astype(int) - 1, 0, self.bins - 1)
        filled = [b for b in range(self.bins) if (bin_ == b).any()]
        found.figures.append(
            Figure(
                "curve",
                "Reliability",
                {
                    "x_label": "confidence",
                    "y_label": "accuracy",
                    "x": [float((edges[b] + edges[b + 1]) / 2) for b in filled],
                    "series": [{"name": "accuracy", "y": [float(right[bin_ == b].mean()) for b in filled]}],
                },
                f"A calibrated model lies on the diagonal. {self.bins} bins of equal width; empty bins are left out.",
            )
        )
        return found


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """The expected calibration error over equal-width bins (a, b]."""
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def predict(target: Target, x: torch.Tensor, ctx: Context) -> torch.Tensor:
    """Logits [N, K] of a batch, in blocks, in eval mode without gradients; counts its passes."""
    block = ctx.block or 256
    with torch.no_grad():
        if target.module is None:
            parts = [target(x[i : i + block]) for i in range(0, len(x), block)]
        else:
            with frozen(target.module):
                parts = [target(x[i : i + block]) for i in range(0, len(x), block)]
    ctx.spend(forwards=len(x))
    return torch.cat(parts)
