"""Random self-ensembles."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import withstand as ws
from tests.hardening.by_hand import plain, ready
from tests.hardening.conftest import images
from withstand.cli.main import app
from withstand.data import load_data
from withstand.errors import BadInput
from withstand.hardening.harden import harden
from withstand.hardening.rse import RSE, Ensemble, per_example
from withstand.hardening.standard import Standard
from withstand.models import TorchTarget, load_model
from withstand.random import Rows
from withstand.training.recipe import Recipe

X = images(6).batch(range(6)).x


def test_without_noise_it_is_plain_training():
    system, batch, at = ready(RSE(first=0.0, inner=0.0, draws=3), plain())
    other, _, _ = ready(Standard(), plain())
    torch.testing.assert_close(RSE().loss(system, batch, at), Standard().loss(other, batch, at), rtol=0, atol=0)
    torch.testing.assert_close(system.model(X.double()), other(X.double()).log_softmax(1))


def test_it_is_the_mean_of_the_softmax_of_noisy_passes():
    model = plain().eval()
    same = Rows(0, torch.zeros(1, dtype=torch.long))
    total = torch.zeros(6, 3)
    for i in range(4):
        noisy = X + 0.3 * same.normal((1, 8, 8), "rse 1", i)
        inner = model[2](model[1](model[0](noisy)))
        inner = inner + 0.2 * same.normal(tuple(inner.shape[1:]), "rse 2", i)
        total += model[3:](inner).softmax(1)
    torch.testing.assert_close(Ensemble(model, 0.3, 0.2, 4)(X).exp(), total / 4)


def test_it_is_a_function_until_it_is_asked_for_fresh_noise():
    model = Ensemble(plain().eval(), 0.3, 0.2, 4)
    assert torch.equal(model(X), model(X))
    torch.testing.assert_close(model(X)[2:], model(X[2:]))
    model.fresh = True
    assert not torch.equal(model(X), model(X))


def test_training_noise_differs_between_examples():
    model = Ensemble(plain().eval(), 0.3, 0.2, 4)
    logits = model.noisy(X[:1].expand(2, -1, -1, -1), per_example(Rows.count(0, 2), 0))
    assert not torch.allclose(logits[0], logits[1])


def test_training_noise_is_drawn_per_step_from_the_seed():
    system, batch, at = ready(RSE(), plain())
    first, again = RSE().loss(system, batch, at), RSE().loss(system, batch, at)
    assert torch.equal(first, again)
    assert not torch.equal(first, RSE().loss(system, batch, replace(at, step=at.step + 1)))
    assert not torch.equal(first, RSE().loss(system, batch, replace(at, seed=at.seed + 1)))
    x = batch.x[:1].expand_as(batch.x)
    seen = []
    system.model.model.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    RSE().loss(system, replace(batch, x=x), at)
    noise = seen[-1] - x
    assert not torch.allclose(noise[0], noise[1])
    assert abs(float(noise.std()) - RSE().first) < 0.1 * RSE().first


@pytest.mark.parametrize("wrong", [{"first": -0.1}, {"inner": float("nan")}, {"draws": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        RSE(**wrong)


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(BadInput, match="convolutions"):
        RSE().setup(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images(), Rows.count(0, 24))


def trained(folder, recipe, model: Any = "zoo:digits_cnn"):
    data = load_data("digits", split="train", limit=64, seed=0)
    return harden(model, data, recipe, out=folder, validation=None, epochs=1, batch=32, accelerator="cpu")


@pytest.mark.parametrize("recipe", ["rse(draws=2)", "awp(rse(draws=2))", "gaussian_noise", "distillation(2.0)"])
def test_an_artefact_is_the_model_that_was_shipped(recipe, tmp_path):
    after = trained(tmp_path, recipe)
    read = load_model(f"artefact:{tmp_path}")
    x = load_data("digits").batch(range(8)).x
    assert torch.equal(read(x), after(x))
    assert read.fingerprint() == after.fingerprint()
    assert (read.name, read.space) == (after.name, after.before.space)


def test_noise_and_normalisation_come_back_together(tmp_path):
    after = trained(
        tmp_path, "rse(draws=3, fresh=True)", load_model("zoo:digits_cnn", mean=0.4, std=0.3, pretrained=False)
    )
    read = load_model(f"artefact:{tmp_path}")
    assert read.module is not None
    assert read.module.model.fresh
    x = load_data("digits").batch(range(8)).x
    first = read(x)
    assert torch.equal(first, after(x))
    second = read(x)
    assert torch.equal(second, after(x))  # the same draws, call by call
    assert not torch.equal(first, second)


def test_an_artefact_that_cannot_be_built_is_refused_with_the_reason(tmp_path):
    trained(tmp_path, "rse(draws=2)")
    path = tmp_path / "artefact.json"
    whole = path.read_text()
    path.write_text(whole.replace('"rse(', '"no_such_recipe('))
    with pytest.raises(BadInput, match=r"no_such_recipe.*Import the module"):
        load_model(f"artefact:{tmp_path}")
    path.write_text(whole.replace("digits_cnn", "digits_bn_cnn"))
    with pytest.raises(BadInput, match="keys do not fit"):
        load_model(f"artefact:{tmp_path}")
    path.write_text(whole)


def test_a_recipe_that_does_not_say_what_it_ships_is_refused():
    class Silent(Recipe):
        wraps = True

    with pytest.raises(BadInput, match=r"deploy\(model, space\)"):
        Silent().deploy(plain(), images().space)
    assert isinstance(Standard().deploy(model := plain(), images().space), type(model))


def test_the_command_line_audits_a_randomised_artefact_and_says_so(tmp_path):
    trained(tmp_path / "run", "rse(first=0.5, inner=0.5, draws=2, fresh=True)")
    command = [f"m=artefact:{tmp_path / 'run'}", "--data", "digits", "--limit", 40, "--out", tmp_path / "audit"]
    checks = ["--checks", "clean", "--checks", "trust(linf(0.15), examples=40)"]
    done = CliRunner().invoke(app, ["audit", *map(str, command), *checks, "--format", "json"])
    assert done.exit_code == 0, done.output
    assert "non deterministic model" in done.stdout
    assert "eot(20)" in done.stdout


def test_fresh_noise_shows_in_the_trust_check():
    batch = load_data("digits").batch(range(40))
    levels = {}
    for fresh in (False, True):
        model = Ensemble(load_model("zoo:digits_cnn", pretrained=False).module, 0.5, 0.5, 2).eval()
        model.fresh = fresh
        target = TorchTarget(model, "m", load_model("zoo:digits_cnn", pretrained=False).space)
        card = ws.audit({"m": target}, (batch.x, batch.y), checks=["clean", "trust(linf(0.15), examples=40)"])
        levels[fresh] = {flag.name: flag.level for flag in card.of("trust", "m")[0].flags}["non deterministic model"]
    assert levels[False] == "pass"
    assert levels[True] != "pass"
