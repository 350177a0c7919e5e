"""Random self-ensembles."""

import pytest
import torch
from torch import nn

import withstand as ws
from tests.hardening.by_hand import plain, ready
from tests.hardening.conftest import images
from withstand.data import load_data
from withstand.errors import BadInput
from withstand.hardening.harden import harden
from withstand.hardening.rse import RSE, Ensemble
from withstand.hardening.standard import Standard
from withstand.models import TorchTarget, load_model
from withstand.random import Rows

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
    logits = model.noisy(X[:1].expand(2, -1, -1, -1), Rows.count(0, 2))
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("wrong", [{"first": -0.1}, {"inner": float("nan")}, {"draws": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        RSE(**wrong)


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(BadInput, match="convolutions"):
        RSE().setup(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images(), Rows.count(0, 24))


def test_an_artefact_of_another_architecture_is_refused_by_name(tmp_path):
    harden(
        "zoo:digits_cnn",
        "digits",
        "rse(draws=2)",
        out=tmp_path / "run",
        validation=None,
        epochs=1,
        batch=512,
        accelerator="cpu",
    )
    with pytest.raises(BadInput, match="rse"):
        load_model(f"artefact:{tmp_path / 'run'}")


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
