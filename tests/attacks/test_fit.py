"""What attacks have to train first: as a call, a command and a folder."""

import json
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import withstand as ws
from withstand.attacks.fit import fit_attack, load_fitted
from withstand.cli.main import app
from withstand.errors import BadInput
from withstand.registry import component
from withstand.training.recipe import Recipe, System


class Shift(nn.Module):
    """One image for all, added to every input."""

    def __init__(self, shape: tuple[int, ...], most: float) -> None:
        super().__init__()
        self.most = most
        self.by = nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return (x + self.by.clamp(-self.most, self.most)).clamp(0, 1)


@component("recipe", "shift_for_tests")
class ShiftForTests(Recipe):
    """A part: the shift that raises the loss."""

    most: float = 0.2
    verb: ClassVar[str] = "fit-attack"
    ships: ClassVar[str] = "shift"
    defaults: ClassVar[dict[str, Any]] = {"epochs": 2, "batch": 20, "optimizer": "adam(0.05)", "schedule": "constant"}

    def setup(self, model: Any, data: Any, rows: Any) -> Any:
        system = super().setup(model, data, rows)
        assert isinstance(system, System)
        system.model.requires_grad_(False)
        system.add_module("shift", self.deploy(None, data.space))
        return system

    def optimizers(self, system, main):
        return {"main": main(system.shift.parameters())}

    def loss(self, system: Any, batch: Any, step: Any) -> Any:
        system.model.eval()
        return -step.cross_entropy(system.model(system.shift(batch.x)), batch.y)

    def deploy(self, model, space):
        return Shift(cast(tuple[int, ...], space.shape), self.most)

    def finish(self, system):
        return system.shift


@component("recipe", "surrogate_for_tests")
class SurrogateForTests(Recipe):
    """A surrogate: the same architecture, trained on."""

    verb: ClassVar[str] = "fit-attack"

    def loss(self, system: Any, batch: Any, step: Any) -> Any:
        return step.cross_entropy(system(batch.x), batch.y)


@pytest.fixture(scope="module")
def digits():
    return ws.load_data("digits", split="train", limit=80, seed=0)


def test_a_part_is_fitted_kept_and_read_again(digits, tmp_path):
    model = ws.load_model("zoo:digits_cnn", pretrained=False)
    before = model.fingerprint()
    made = fit_attack("shift_for_tests(0.1)", model, digits, out=tmp_path)
    assert made.kind == "shift"
    assert len(made.history) == 2  # the recipe's own epochs
    assert "accuracy" not in made.history[0]  # nothing that could be validated
    assert model.fingerprint() == before
    assert float(next(made.module.parameters()).detach().abs().max()) > 0.05
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(load_fitted(f"artefact:{tmp_path}", "shift")(x), made.module(x))
    assert load_fitted(f"artefact:{tmp_path}", "shift") is load_fitted(f"artefact:{tmp_path}", "shift")
    assert load_fitted(made, "shift") is made.module
    assert load_fitted(made.module, "shift") is made.module
    held = json.loads((tmp_path / "artefact.json").read_text())
    assert held["wraps"] == "shift_for_tests(0.1)"
    assert held["origin"]["model"]["fingerprint"] == before
    again = fit_attack("shift_for_tests(0.1)", model, digits, out=tmp_path)
    assert torch.equal(again.module(x), made.module(x))
    with pytest.raises(BadInput, match="got a shift; allowed: a model"):
        again.target  # noqa: B018


def test_settings_override_those_of_the_paper(digits):
    made = fit_attack("shift_for_tests", "zoo:digits_cnn", digits, epochs=1)
    assert len(made.history) == 1


def test_a_surrogate_is_a_model_like_any_other(digits, tmp_path):
    made = fit_attack("surrogate_for_tests", "zoo:digits_cnn", digits, out=tmp_path, epochs=1, batch=20)
    assert made.kind == "model"
    assert "accuracy" in made.history[0]
    read = ws.load_model(f"artefact:{tmp_path}")
    assert read.fingerprint() == made.target.fingerprint()
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(load_fitted(f"artefact:{tmp_path}", "model")(x), made.module(x))


def test_what_does_not_fit_is_refused(digits, tmp_path):
    with pytest.raises(BadInput, match="belongs to fit-attack"):
        ws.harden("zoo:digits_cnn", digits, "surrogate_for_tests", epochs=1)
    with pytest.raises(BadInput, match="withstand harden runs this one"):
        fit_attack("pgd_at", "zoo:digits_cnn", digits)
    with pytest.raises(BadInput, match="none beside trainer="):
        fit_attack("shift_for_tests", "zoo:digits_cnn", digits, trainer=ws.Trainer(), epochs=1)
    made = fit_attack("shift_for_tests", "zoo:digits_cnn", digits, out=tmp_path, epochs=1)
    with pytest.raises(BadInput, match="a generator"):
        load_fitted(made, "generator")
    with pytest.raises(BadInput, match="which holds a shift"):
        load_fitted(f"artefact:{tmp_path}", "generator")
    with pytest.raises(BadInput, match="which holds a shift"):
        ws.load_model(f"artefact:{tmp_path}")
    with pytest.raises(BadInput, match=r"artefact\.json"):
        load_fitted(f"artefact:{tmp_path / 'none'}", "shift")
    with pytest.raises(BadInput, match="artefact:FOLDER"):
        load_fitted("zoo:digits_cnn", "shift")
    (tmp_path / "artefact.json").write_text('{"kind": "shift"}')
    with pytest.raises(BadInput, match="is damaged"):
        load_fitted(f"artefact:{tmp_path}", "shift")


@pytest.mark.parametrize(("model", "scratch"), [("zoo:digits_cnn", False), ("zoo:digits_cnn", True)])
def test_what_needs_a_trained_model_gets_no_fresh_one(digits, model, scratch, monkeypatch):
    monkeypatch.setattr(ShiftForTests, "learned", True)
    with pytest.raises(BadInput, match="fresh weights"):
        fit_attack("shift_for_tests", model, digits, scratch=scratch)
    done = CliRunner().invoke(app, ["fit-attack", "shift_for_tests", model, "--data", "digits"])
    assert "fresh weights" in str(done.exception)
    fit_attack("shift_for_tests", ws.load_model("zoo:digits_cnn", pretrained=False), digits, epochs=1)


def test_the_command_fits_and_says_where(tmp_path):
    command = ["fit-attack", "shift_for_tests", "zoo:digits_cnn", "--data", "digits", "--limit", "40", "--epochs", "1"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "shift")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"a shift: artefact:{tmp_path / 'shift'}" in result.stderr
    assert isinstance(load_fitted(f"artefact:{tmp_path / 'shift'}", "shift"), Shift)
