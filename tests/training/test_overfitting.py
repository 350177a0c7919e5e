"""The gaps of robust overfitting, by hand."""

import json

import pytest

from tests.training.conftest import net
from tests.training.test_trainer import QUICK, Judge
from withstand.errors import BadInput
from withstand.hardening.standard import Standard
from withstand.training import Trainer
from withstand.training.overfitting import best_and_last, robust_generalisation_gap, robust_overfitting_gap

HISTORY = [
    {"epoch": 1, "robust_accuracy": 0.5, "train_accuracy_adversarial": 0.4},
    {"epoch": 2, "robust_accuracy": 0.75, "train_accuracy_adversarial": 0.7},
    {"epoch": 3, "robust_accuracy": 0.75, "train_accuracy_adversarial": 0.8},
    {"epoch": 4, "robust_accuracy": 0.25, "train_accuracy_adversarial": 1.0},
    {"epoch": 5, "train_accuracy_adversarial": 0.9},
]


def test_the_gaps():
    assert best_and_last(HISTORY) == (HISTORY[1], HISTORY[3])
    assert robust_overfitting_gap(HISTORY) == 0.5
    assert robust_generalisation_gap(HISTORY) == 0.75


def test_what_was_not_measured_is_none():
    assert best_and_last([{"epoch": 1, "accuracy": 1.0}]) is None
    assert robust_overfitting_gap([]) is None
    assert robust_generalisation_gap([]) is None
    assert robust_generalisation_gap([{"epoch": 1, "robust_accuracy": 0.5}]) is None


def test_a_finished_training_says_what_came_of_it_and_still_resumes(points, tmp_path):
    trainer = Trainer(**QUICK | {"epochs": 3})
    trainer.fit(Standard(), net(), points, points, Judge(1, 9, 3), out=tmp_path)
    result = json.loads((tmp_path / "training.json").read_text())["result"]
    assert (result["best_epoch"], result["epochs"], result["stopped"]) == (2, 3, "")
    assert result["robust_accuracy_best"] == 9 / 48
    assert result["robust_accuracy_last"] == 3 / 48
    assert result["robust_overfitting_gap"] == 6 / 48
    assert result["robust_generalisation_gap"] is None
    with pytest.raises(BadInput, match="attack"):
        trainer.fit(Standard(), net(), points, points, None, out=tmp_path)
