"""The verb in Python and on the command line."""

import csv
import json

import pytest
import torch

import withstand as ws
from tests.hardening.conftest import cnn
from tests.training.conftest import same
from withstand.attacks import PGD
from withstand.cli.main import app
from withstand.errors import BadInput
from withstand.hardening.harden import judge_of
from withstand.hardening.pgd_at import PGDAT
from withstand.hardening.standard import Standard
from withstand.training.materials import split

QUICK = {"epochs": 2, "batch": 8, "optimizer": "sgd(0.05)", "schedule": "cosine"}
RECIPE = "pgd_at(attack=pgd(linf(0.1), steps=2))"


def test_a_hardened_model_is_a_target_and_its_folder_a_model(tmp_path):
    digits = ws.load_data("digits", split="train", limit=80, seed=0)
    after = ws.harden("zoo:digits_bn_cnn", digits, RECIPE, out=tmp_path, **QUICK)
    assert after.name == "zoo:digits_bn_cnn + pgd_at"
    assert {"loss", "accuracy", "robust_accuracy"} <= after.history[0].keys()
    read = ws.load_model(f"artefact:{tmp_path}")
    assert read.name == after.name
    assert read.fingerprint() == after.fingerprint()
    assert read.space == after.before.space
    again = ws.harden("zoo:digits_bn_cnn", digits, RECIPE, out=tmp_path, **QUICK)
    assert again.fingerprint() == after.fingerprint()


def test_the_weights_fit_the_architecture_without_wrappers(tmp_path):
    from withstand.models import Normalised

    model = Normalised(cnn(), (0.5,), (0.25,))
    x, y = torch.rand(24, 1, 8, 8), torch.arange(24) % 3
    after = ws.harden(model, (x.numpy(), y.numpy()), Standard(), out=tmp_path, validation=None, **QUICK)
    bare = cnn()
    ws.models.load_weights(bare, ws.models.read_weights(tmp_path / "last.safetensors"))
    assert torch.equal(Normalised(bare, (0.5,), (0.25,)).eval()(x), after(x))
    assert after.fitted.best_epoch is None
    assert not (tmp_path / "artefact.json").exists()  # nobody said how to build the architecture


def test_the_held_out_share_is_apart_and_of_every_class(shapes):
    learned, held = split(shapes, 0.25, seed=1)
    assert held is not None
    assert len(held) == 6
    ids = [set(part.batch(range(len(part))).ids.tolist()) for part in (learned, held)]
    assert ids[0].isdisjoint(ids[1])
    assert len(ids[0] | ids[1]) == 24
    assert sorted(held.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert split(shapes, None, 0) == (shapes, None)
    assert split(shapes, shapes, 0) == (shapes, shapes)


def test_the_judge_is_of_the_threat_that_the_recipe_trains_for():
    assert judge_of("auto", PGDAT(attack="pgd(l2(0.5), steps=3)")) == PGD(ws.L2(0.5), steps=10)
    assert judge_of("auto", Standard()) is None
    assert judge_of("none", PGDAT()) is None
    assert judge_of("fgsm(linf(0.1))", Standard()).threat == ws.Linf(0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"recipe": "pgdat"}, "Did you mean pgd_at"),
        ({"validation": 1.5}, "validation: got 1.5"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"epoch": 3}, "there is no 'epoch'"),
        ({"trainer": ws.Trainer(), "epochs": 3}, "settings: got epochs"),
        ({"model": "zoo:mnist_cnn"}, "does not fit shapes: size"),
        ({"data": "no_such_set"}, "no_such_set"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, said, shapes, tmp_path):
    settings = {"model": cnn(), "data": shapes, "out": tmp_path / "run"} | arguments
    with pytest.raises(BadInput, match=said):
        ws.harden(**settings)
    assert not (tmp_path / "run").exists()


def test_what_only_answers_cannot_be_trained(shapes):
    class Endpoint:
        name, task, access, module = "endpoint", "classification", frozenset({"decision"}), None
        space = ws.models.as_target(cnn()).space

        def __call__(self, x):
            return torch.zeros(len(x), 3)

        def fingerprint(self):
            return "e"

    with pytest.raises(BadInput, match="a torch model"):
        ws.harden(Endpoint(), shapes)


def test_the_given_model_stays_as_it_is(shapes):
    model = cnn().train()
    after = ws.harden(model, shapes, RECIPE, **QUICK)
    assert same(model, cnn())
    assert model.training
    assert not after.module.training


def test_artefacts_that_are_none_or_damaged_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"a folder with artefact.json"):
        ws.load_model(f"artefact:{tmp_path}")
    (tmp_path / "artefact.json").write_text("{")
    with pytest.raises(BadInput, match="is damaged"):
        ws.load_model(f"artefact:{tmp_path}")
    with pytest.raises(BadInput, match="holds its own"):
        ws.load_model(f"artefact:{tmp_path}", weights="x.pt")


# On the command line ---------------------------------------------------------------------------------------------------


def invoke(*arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["harden", *map(str, arguments)], catch_exceptions=False)


def test_the_command_trains_writes_and_audits(tmp_path):
    command = [
        "net=zoo:digits_bn_cnn", "--data", "digits", "--limit", 80, "--recipe", RECIPE, "--epochs", 2, "--batch", 16,
        "--optimizer", "sgd(0.05)", "--schedule", "cosine", "--out", tmp_path, "--audit", "quick",
    ]  # fmt: skip
    done = invoke(*command)
    assert done.exit_code == 0
    assert "(best)" in done.stdout
    assert "robust accuracy" in done.stdout
    assert (tmp_path / "audit" / "report.html").exists()
    with open(tmp_path / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    config = json.loads((tmp_path / "training.json").read_text())
    assert config["trainer"]["optimizer"] == "sgd(0.05)"
    assert config["recipe"].startswith("pgd_at")


def test_the_command_says_what_is_wrong():
    with pytest.raises(BadInput, match="there is no 'cosin'"):
        invoke("zoo:digits_bn_cnn", "--data", "digits", "--schedule", "cosin")
    with pytest.raises(BadInput, match="one of the two"):
        invoke("zoo:digits_bn_cnn", "--data", "digits", "--scratch", "--weights", "w.pt")
