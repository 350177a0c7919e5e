"""Where PGD begins."""

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks import PGD
from withstand.attacks.engine import Problem
from withstand.errors import BadInput
from withstand.parameterisations import Pyramid
from withstand.registry import parse
from withstand.threats import L2, Linf


@pytest.fixture
def block():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    x = ws.Rows.count(0, 40).uniform((3, 8, 8), "x")
    x[:, :, 0] = 0.0
    return model, x, torch.arange(40) % 3


def problem(block, threat, **settings):
    model, x, y = block
    rows = ws.Rows.count(5, len(x))
    return Problem(model, x, y, rows, threat=threat, objective="cross_entropy", **settings)


def test_a_number_begins_at_gaussian_noise_of_that_deviation_moved_into_the_box(block):
    p = problem(block, Linf(8 / 255))
    x, z = p.x, p.start(0.001, "pgd")
    inside = (x > 0.01) & (x < 0.99)
    noise = (z - x)[inside] / 0.001
    assert abs(float(noise.std()) - 1) < 0.03
    assert abs(float(noise.mean())) < 0.03
    assert abs(float((noise**4).mean()) - 3) < 0.3  # uniform noise: 1.8
    expected = x + 0.001 * p.rows.normal((3, 8, 8), "pgd")
    torch.testing.assert_close(z, expected.clamp(0, 1))
    assert (z[:, :, 0] == 0).any()
    assert not torch.equal(z, p.start(0.001, "pgd", 1))


@pytest.mark.parametrize("threat", [Linf(0.01), L2(0.1)])
def test_noise_larger_than_the_set_is_projected_into_it(block, threat):
    p = problem(block, threat)
    z = p.start(0.5)
    assert threat.contains(p.x, z).all()
    assert (threat.distance(p.x, z) > 0.8 * threat.eps).all()  # the box takes some of it


def test_true_and_false_begin_where_they_always_did(block):
    p = problem(block, Linf(0.1))
    assert torch.equal(p.start(False), p.x)
    assert torch.equal(p.start(True, "pgd"), Linf(0.1).random_start(p.x, p.rows, "pgd", 0, (0.0, 1.0)))


def test_what_moves_instead_of_pixels_begins_at_noise_too(block):
    p = problem(block, Linf(0.1), parameterisation=Pyramid((4, 1), (10, 1)))
    still, noisy = p.start(False), p.start(0.01)
    assert still.keys() == noisy.keys()
    for name, leaf in still.items():
        assert 0 < (noisy[name] - leaf).abs().max() <= 0.1 * 10


def test_pgd_hands_its_start_on(block):
    model, x, y = block
    settings = {"steps": 1, "step": 1e-9, "keep": "last", "active": False}
    found = PGD(Linf(0.1), random_start=0.001, **settings)(model, x, y)
    assert 0.0008 < float((found - x)[:, :, 1:].std()) < 0.0012
    assert float((PGD(Linf(0.1), **settings)(model, x, y) - x)[:, :, 1:].std()) > 0.05
    best = PGD(Linf(0.1), random_start=0.001, steps=3)(model, x, y)
    assert Linf(0.1).contains(x, best).all()
    assert 0 <= float(best.min()) <= float(best.max()) <= 1


def test_it_is_written_and_read():
    attack = parse("pgd(linf(8/255), random_start=0.001)")
    assert attack == PGD(random_start=0.001)
    assert parse(repr(attack)) == attack
    assert parse("pgd:random_start=False").random_start is False
    assert PGD().random_start is True


@pytest.mark.parametrize("start", [0, 1, 0.0, -0.1, float("nan"), float("inf"), "yes", None])
def test_other_starts_are_refused(start):
    with pytest.raises(BadInput, match=r"random_start.*standard deviation > 0"):
        PGD(random_start=start)
