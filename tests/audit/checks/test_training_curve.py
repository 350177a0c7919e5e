"""The history of a training as a check."""

import pytest
import torch

import withstand as ws
from withstand.audit.presets import checks_of
from withstand.metrics import independent_difference
from withstand.models.record import TrainingRecord
from withstand.models.target import TorchTarget

RECIPE = "pgd_at(attack=pgd(linf(0.1), steps=2))"


def test_the_gaps_are_from_the_best_to_the_last_and_from_training_to_validation(run, plain64, digits64):
    found = run("training_curve", plain64, digits64)
    gap = found.metric("robust_overfitting_gap")
    assert gap.value == pytest.approx(0.75 - 0.55)
    assert (gap.low, gap.high) == independent_difference(11, 20, 15, 20)[1:]
    gap = found.metric("robust_generalisation_gap")
    assert gap.value == pytest.approx(0.9 - 0.55)
    assert (gap.low, gap.high) == independent_difference(11, 20, 180, 200)[1:]


def test_the_figure_shows_each_epoch_and_leaves_a_hole_where_nothing_was_measured(run, plain64, digits64):
    (figure,) = run("training_curve", plain64, digits64).findings.figures
    series = {s["name"]: s["y"] for s in figure.data["series"]}
    assert figure.data["x"] == [1, 2, 3, 4]
    assert series == {
        "clean, validation": [0.5, None, 0.8, 0.9],
        "robust, validation": [0.25, None, 0.75, 0.55],
        "robust, training": [0.3, 0.6, 0.7, 0.9],
    }
    assert "best at epoch 3 of 4" in figure.caption
    assert "pgd(linf(0.1))" in figure.caption


def test_without_robust_accuracy_only_the_curve_is_left(run, plain64, digits64):
    target = TorchTarget(plain64.model, "clean", plain64.space)
    target.record = TrainingRecord([{"epoch": 1, "accuracy": 0.5}], held=10)
    found = run("training_curve", target, digits64).findings
    assert found.metrics == []
    assert [s["name"] for s in found.figures[0].data["series"]] == ["clean, validation"]


def test_an_artefact_tells_what_its_training_was(tmp_path):
    digits = ws.load_data("digits", split="train", limit=80, seed=0)
    after = ws.harden("zoo:digits_bn_cnn", digits, RECIPE, out=tmp_path / "run", epochs=2, batch=16)
    read = ws.load_model(f"artefact:{tmp_path / 'run'}")
    assert after.record.held == 8
    assert after.record.learned == 72
    assert read.record == after.record
    before = TorchTarget(after.before.module, "before", after.before.space)
    card = ws.audit({"before": before, "after": read}, digits, checks=["training_curve"], out=tmp_path / "audit")
    missing, done = card.of("training_curve")
    assert (missing.status, missing.reason) == ("not applicable", "needs access to training history")
    assert done.status == "done"
    assert card.metric("robust_overfitting_gap", "after").value == after.fitted.overfitting_gap


def test_a_folder_without_a_readable_training_is_no_record(tmp_path):
    assert TrainingRecord.read(tmp_path) is None
    (tmp_path / "training.json").write_text('{"recipe": 1}')
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    assert TrainingRecord.read(tmp_path) is None


def test_presets_run_it_where_a_model_has_a_history():
    for preset in ("quick", "standard", "full"):
        assert "training_curve" in checks_of(preset, access={"gradients", "scores", "training history"})
        assert "training_curve" not in checks_of(preset, access={"gradients", "scores"})


def test_models_without_validation_have_no_history_to_show():
    target = TorchTarget(torch.nn.Identity())
    target.record = TrainingRecord([{"epoch": 1, "loss": 0.5}])
    assert "training history" not in target.access
