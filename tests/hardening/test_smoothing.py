"""Randomised smoothing against closed forms."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from tests.hardening.conftest import cnn
from tests.training.conftest import Points
from withstand.errors import BadInput
from withstand.hardening.noise import GaussianNoise
from withstand.hardening.smoothing import certify, lower_bound, predict
from withstand.hardening.standard import Standard
from withstand.random import Rows
from withstand.training import Trainer

NORMAL = [3.0, 4.0]


@pytest.fixture
def line():
    """Class 1 right of a line, so that the smoothed classifier is the same and its radius the distance to the line."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], NORMAL]))
        model.bias.zero_()
    return model.requires_grad_(False)


def test_the_radius_of_a_linear_classifier_is_just_below_the_distance_to_its_boundary(line):
    x = torch.tensor([[0.1, 0.1], [-0.05, 0.2], [-0.2, -0.1]])
    found = certify(line, x, sigma=0.25, n=20_000)
    distance = (x @ torch.tensor(NORMAL)).abs() / 5
    assert found.prediction.tolist() == [1, 1, 0]
    assert (found.radius < distance).all()
    torch.testing.assert_close(found.radius, distance.double(), rtol=0, atol=0.015)


def test_on_the_boundary_it_abstains(line):
    x = torch.zeros(1, 2)
    assert certify(line, x, n=1000).prediction.item() == -1
    assert certify(line, x, n=1000).radius.item() == 0
    assert predict(line, x, n=500).item() == -1
    assert predict(line, torch.tensor([[0.5, 0.5]]), n=500).item() == 1


@pytest.mark.parametrize(("k", "n"), [(1, 10), (7, 10), (990, 1000), (1000, 1000)])
def test_the_bound_is_the_share_at_which_as_many_hits_become_improbable(k, n):
    alpha = 0.001
    p = lower_bound(k, n, alpha)
    assert stats.binom.sf(k - 1, n, p) == pytest.approx(alpha, rel=1e-6)
    if k == n:
        assert p == pytest.approx(alpha ** (1 / n))


def test_the_largest_radius_is_that_of_unanimous_draws():
    certain = nn.Sequential(nn.Linear(1, 2)).requires_grad_(False)
    with torch.no_grad():
        certain[0].weight.zero_()
        certain[0].bias.copy_(torch.tensor([0.0, 1.0]))
    found = certify(certain, torch.zeros(1, 1), sigma=0.5, n=1000, alpha=0.01)
    assert found.radius.item() == pytest.approx(0.5 * stats.norm.ppf(0.01 ** (1 / 1000)))
    assert lower_bound(0, 10, 0.01) == 0.0


def test_draws_depend_on_the_example_alone(line):
    x = Rows.count(0, 6).normal((2,), "x") * 0.2
    whole = certify(line, x, n=700, ids=torch.arange(6), block=700)
    turned = certify(line, x.flip(0), n=700, ids=torch.arange(6).flip(0), block=100)
    assert torch.equal(whole.prediction, turned.prediction.flip(0))
    assert torch.equal(whole.radius, turned.radius.flip(0))
    other = certify(line, x, n=700, seed=1)
    assert not torch.equal(whole.radius, other.radius)


@pytest.mark.parametrize("settings", [{"sigma": 0.0}, {"alpha": 0.0}, {"alpha": 1.0}, {"n": 0}, {"n0": 0}])
def test_bad_settings_are_refused(line, settings):
    with pytest.raises(BadInput, match=next(iter(settings))):
        certify(line, torch.zeros(1, 2), **settings)


def test_training_adds_noise_of_the_given_size_anew_in_each_epoch():
    seen = {}

    class Watch(GaussianNoise):
        def loss(self, system, batch, step):
            clean = Points(1000).batch(batch.ids.tolist()).x
            seen[step.epoch] = (batch.x - clean)[batch.ids.argsort()]
            return super().loss(system, batch, step)

    model = nn.Linear(2, 2)
    Trainer(epochs=2, batch=1000, accelerator="cpu").fit(Watch(sigma=0.3), model, Points(1000))
    for noise in seen.values():
        assert noise.std().item() == pytest.approx(0.3, rel=0.05)
        assert abs(noise.mean().item()) < 0.03
    correlation = torch.corrcoef(torch.stack([seen[0].flatten(), seen[1].flatten()]))[0, 1]
    assert abs(correlation.item()) < 4 / math.sqrt(2000)


def test_without_noise_it_is_plain_training(shapes):
    plain, silent = (
        Trainer(epochs=1, batch=8, accelerator="cpu").fit(r, cnn(), shapes).last
        for r in (Standard(), GaussianNoise(0.0))
    )
    for a, b in zip(plain.parameters(), silent.parameters(), strict=True):
        torch.testing.assert_close(a, b)
