"""What overfitting cost, read from a training's history.

Reference: Rice, Wong, Kolter, "Overfitting in adversarially robust deep learning", 2020, arXiv 2002.11569.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def best_and_last(history: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The rows with the highest (the first of equals) and with the last robust validation accuracy, if it was measured."""
    judged = [row for row in history if row.get("robust_accuracy") is not None]
    return (max(judged, key=lambda row: row["robust_accuracy"]), judged[-1]) if judged else None


def robust_overfitting_gap(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Robust validation accuracy of the best epoch less that of the last, in [0, 1]; None where it was not measured."""
    found = best_and_last(history)
    return None if found is None else found[0]["robust_accuracy"] - found[1]["robust_accuracy"]


def robust_generalisation_gap(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Robust accuracy on the training examples less that on the validation examples, at the last epoch; None where either
    is unknown.

    On the training examples it is the mean over the epoch under the recipe's own attack, with the weights as they were
    at each step; what a weaker attack than the judge's leaves standing is part of the gap.
    """
    found = best_and_last(history)
    train = None if found is None else found[1].get("train_accuracy_adversarial")
    return None if found is None or train is None else train - found[1]["robust_accuracy"]


def summary(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `training.json` says of a finished training; None for what was not measured."""
    found = best_and_last(history)
    return {
        "robust_accuracy_best": None if found is None else found[0]["robust_accuracy"],
        "robust_accuracy_last": None if found is None else found[1]["robust_accuracy"],
        "robust_overfitting_gap": robust_overfitting_gap(history),
        "robust_generalisation_gap": robust_generalisation_gap(history),
    }
