"""How the training of a model went, and what overfitting cost."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from withstand.audit.check import Check, Table
from withstand.metrics import independent_difference, wilson
from withstand.models.record import TrainingRecord
from withstand.protocols import Batch, Context, Figure, Findings, Metric, Row, Target
from withstand.registry import component
from withstand.training.overfitting import best_and_last

CLEAN, ROBUST, TRAIN = "clean, validation", "robust, validation", "robust, training"
_COLUMNS = {CLEAN: "accuracy", ROBUST: "robust_accuracy", TRAIN: "train_accuracy_adversarial"}


@component("check", "training_curve")
class TrainingCurve(Check):
    """Clean and robust accuracy over the epochs of the training, and the gaps of robust overfitting.

    For models with a record of their training: what `harden` returns, and artefacts that it wrote. Overfitting gap: robust
    accuracy on the validation examples at the best epoch less that at the last. Generalisation gap: robust accuracy on the
    training examples in the last epoch (under the recipe's attack, while the weights move) less that on the validation
    examples. The intervals are those of independent examples, which is wide for the first gap.

    examples: nothing is asked of the model, so one is enough to start the check.

    Reference: Rice, Wong, Kolter, "Overfitting in adversarially robust deep learning", 2020, arXiv 2002.11569.
    """

    examples: int | None = field(default=1, kw_only=True)

    title = "Training"
    compared = False
    access = frozenset({"training history"})

    def passes(self, target: Target) -> float:
        return 0.0

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"measure", "examples", "judge"}, one unit for each epoch: value = accuracy, on so many examples."""
        record: TrainingRecord = target.record  # type: ignore[attr-defined]
        for measure, column in _COLUMNS.items():
            condition = {"measure": measure, "examples": record.learned if measure == TRAIN else record.held}
            if measure == ROBUST:
                condition["judge"] = record.judge
            for line in record.history:
                if column in line:
                    yield Row("epoch", int(line["epoch"]), condition, None, float(line[column]))

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        found, said = Findings(), ""
        parts = {c["measure"]: (c, rows.where(**c)) for c in rows.conditions()}
        n = {measure: c["examples"] for measure, (c, _) in parts.items()}
        epochs: dict[int, dict[str, Any]] = {}
        for measure, (_, part) in parts.items():
            for epoch, value in zip(part.id.tolist(), part.value.tolist()):
                epochs.setdefault(epoch, {"epoch": epoch})[_COLUMNS[measure]] = value
        history = [epochs[epoch] for epoch in sorted(epochs)]
        if extremes := best_and_last(history):
            best, last = extremes
            robust, train = (last.get(_COLUMNS[measure]) for measure in (ROBUST, TRAIN))
            found.metrics.append(_gap("robust_overfitting_gap", best["robust_accuracy"], n[ROBUST], robust, n[ROBUST]))
            if train is not None:
                found.metrics.append(_gap("robust_generalisation_gap", train, n[TRAIN], robust, n[ROBUST]))
            said = (
                f"Robust on validation: under {parts[ROBUST][0]['judge']}, on {n[ROBUST]:,} examples; best at epoch "
                f"{best['epoch']} of {last['epoch']}, whose weights were kept. The best of many epochs is also the "
                "luckiest: a gap whose interval holds 0 is no sign of overfitting."
            )
        found.figures.append(_figure(history, n, said))
        return found


def _gap(name: str, high: float, n: int, low: Any, m: int) -> Metric:
    """How far the second share, of m examples, lies below the first, of n."""
    _, least, most = independent_difference(round(low * m), m, round(high * n), n)
    return Metric(name, high - low, least, most, "newcombe", m, "share", "lower")


def _figure(history: list[dict[str, Any]], n: Mapping[str, int], said: str) -> Figure:
    series = []
    for measure, size in n.items():
        y = [row.get(_COLUMNS[measure]) for row in history]
        bounds = [(None, None) if v is None else wilson(round(v * size), size) for v in y]
        low, high = (list(end) for end in zip(*bounds))
        series.append({"name": measure, "y": y, "low": low, "high": high})
    data = {"x_label": "epoch", "y_label": "accuracy", "x": [row["epoch"] for row in history], "series": series}
    return Figure("curve", "Accuracy over the epochs of the training", data, said)
