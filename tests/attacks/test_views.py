"""Randomised and non-differentiable defences, and the views that see through them."""

import pytest
import torch
from torch import Tensor, nn

import withstand as ws
from withstand.attacks.views import BPDA
from withstand.errors import BadInput

from .lines import Line, inside

A = ws.attacks
MODEL = Line()
X = inside()
Y = MODEL(X).argmax(1)


class Noisy(nn.Module):
    """A network behind fresh input noise at every pass."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model, self.sigma, self.calls = model, sigma, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x + self.sigma * torch.randn_like(x))


class Curved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = ws.Rows.count(0, 3).normal((8,), "curved", dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.sin(3 * x.flatten(1) @ self.w.T)


def oracle_of(model):
    """The bare gradient of the first logit, as views get it."""

    def look(x, rows, step):
        point = x.detach().requires_grad_(True)
        value = model(point)[:, 0]
        return torch.autograd.grad(value.sum(), point)[0], value.detach()

    return look


def draws(view, n=200):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        oracle = oracle_of(Noisy(Curved(), 0.3))
        looks = [(view(oracle) if view else oracle)(X, ws.Rows.count(0, len(X)), 0) for _ in range(n)]
    return torch.stack([g for g, _ in looks]), torch.stack([v for _, v in looks])


def test_eot_divides_the_variance_by_its_samples_and_keeps_the_mean():
    bare, bare_value = draws(None, 400)
    mean, mean_value = draws(A.EOT(10), 200)
    assert float(bare.var(0).mean() / mean.var(0).mean()) == pytest.approx(10, rel=0.15)
    assert float(bare_value.var(0).mean() / mean_value.var(0).mean()) == pytest.approx(10, rel=0.25)
    gap = (bare.mean(0) - mean.mean(0)).abs()
    assert (gap < 5 * (bare.var(0) / 400 + mean.var(0) / 200).sqrt()).all()


def test_eot_with_one_sample_or_on_a_fixed_model_changes_nothing():
    x, y = X, Y
    plain = A.PGD(ws.Linf(0.1), steps=3)(Curved(), x, y)
    for samples in (1, 4):
        assert torch.allclose(A.PGD(ws.Linf(0.1), steps=3, views=(A.EOT(samples),))(Curved(), x, y), plain)


def test_eot_counts_all_its_passes():
    model = Noisy(Curved(), 0.3)
    attack = A.PGD(ws.Linf(0.1), steps=3, views=(A.EOT(5),), keep="last", active=False, random_start=False)
    r = attack.run(model, X, Y)
    assert (r.backwards == 15).all()
    assert model.calls == 15
    assert (r.forwards == 15).all()


def test_eot_raises_the_expected_loss_more_than_one_noisy_gradient():
    sigma, y = 0.2, Curved()(X).argmax(1)

    def expected_loss(views):
        attack = A.PGD(ws.Linf(0.15), views=views, random_start=False, keep="last", active=False)
        z = attack(Noisy(Curved(), sigma), X, y)
        noise = ws.Rows.count(9, 2000).normal((8,), "noise", dtype=torch.float64) * sigma
        logits = Curved()((z[:, None] + noise).flatten(0, 1))
        return nn.functional.cross_entropy(logits, y.repeat_interleave(2000))

    assert expected_loss((A.EOT(30),)) > expected_loss(()) + 0.05


def test_runs_on_random_models_repeat():
    attack = A.PGD(ws.Linf(0.1), steps=3, views=(A.EOT(3),))
    model = Noisy(Curved(), 0.3)
    assert torch.equal(attack(model, X, Y, seed=4), attack(model, X, Y, seed=4))
    assert not torch.equal(attack(model, X, Y, seed=4), attack(model, X, Y, seed=5))


# BPDA


def quantise(x: Tensor) -> Tensor:
    return (x * 15).round() / 15


class Quantised(nn.Module):
    """What a defender ships: rounds its input, so that its true gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return MODEL(quantise(x))


def test_plain_gradients_fail_on_quantised_input_and_bpda_breaks_it():
    y = Quantised()(X).argmax(1)
    attack = A.PGD(ws.Linf(0.15), steps=10, random_start=False)
    seen_through = nn.Sequential(BPDA(quantise), MODEL)
    assert torch.equal(seen_through(X), Quantised()(X))
    plain, through = attack.run(Quantised(), X, y), attack.run(seen_through, X, y)
    assert not plain.success.any()
    assert through.success.float().mean() > 0.9
    broken = Quantised()(through.x_adv).argmax(1) != y
    assert torch.equal(broken, through.success), "what breaks the stand-in breaks the defence itself"


def test_bpda_runs_forward_as_it_is_and_differentiates_as_its_stand_in():
    def cube(v):
        return v**3

    x = X.clone().requires_grad_(True)
    (identity,) = torch.autograd.grad((BPDA(quantise)(x) * 7).sum(), x)
    assert torch.equal(identity, torch.full_like(X, 7.0))
    step = BPDA(quantise, backward=cube)
    assert torch.equal(step(x), quantise(X))
    (through,) = torch.autograd.grad((step(x) * torch.arange(8)).sum(), x)
    assert torch.allclose(through, 3 * X**2 * torch.arange(8))


def test_bpda_does_not_track_the_step_it_replaces():
    tracked = []

    def spy(v):
        tracked.append(v.requires_grad)
        return v.round()

    BPDA(spy)(X.clone().requires_grad_(True))
    assert tracked == [False]


def test_eot_and_bpda_together_see_through_noise_in_front_of_quantisation():
    model = nn.Sequential(Noisy(BPDA(quantise), 0.05), MODEL)
    y = MODEL(X).argmax(1)
    attack = A.PGD(ws.Linf(0.15), steps=10, views=(A.EOT(10),), random_start=False, keep="last", active=False)
    assert (MODEL(attack(model, X, y)).argmax(1) != y).float().mean() > 0.8


@pytest.mark.parametrize("samples", [0, -3])
def test_eot_refuses_no_samples(samples):
    with pytest.raises(BadInput, match="samples"):
        A.EOT(samples)
