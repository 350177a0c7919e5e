"""The certificate on a linear classifier, whose smoothed prediction is known in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import withstand as ws
from withstand.errors import BadInput
from withstand.hardening.mean_shift import (
    ABSTAIN,
    bounds,
    certify_mean_shift,
    mean_shift_radius,
    released_radius,
    renyi_radius,
)

S = np.array([[0.2, 0.05], [0.05, 0.1]])
T = 15


@pytest.mark.parametrize(
    ("p1", "p2", "r"),
    [(0.9, 0.1, 1.03193), (0.8, 0.15, 0.77922), (0.6, 0.4, 0.20222), (0.99, 0.01, 1.90801), (0.5, 0.5, 0.0)],
)
def test_the_radius_of_known_probabilities(p1, p2, r):
    assert renyi_radius(p1, p2) == pytest.approx(r, abs=1e-5)
    assert r <= (norm.ppf(p1) - norm.ppf(p2)) / 2


def naive_radius(p1, p2):
    best = 0.0
    for alpha in np.linspace(1.0001, 20, 20_000):
        mean = ((p1 ** (1 - alpha) + p2 ** (1 - alpha)) / 2) ** (1 / (1 - alpha))
        best = max(best, -2 / alpha * math.log(1 - p1 - p2 + 2 * mean))
    return math.sqrt(best)


def test_the_radius_is_that_of_the_formula_and_below_the_gaussian_optimum():
    draws = ws.Rows.count(0, 30).uniform((2,), "p", dtype=torch.float64)
    for p1, share in draws.tolist():
        p2 = min(p1, 1 - p1) * share
        assert renyi_radius(p1, p2) == pytest.approx(naive_radius(p1, p2), rel=1e-4)
        assert renyi_radius(p1, p2) <= (norm.ppf(p1) - norm.ppf(p2)) / 2 + 1e-9
        assert renyi_radius(p1, p2 * 0.9) >= renyi_radius(p1, p2)
    assert renyi_radius(0.2, 0.3) == 0


def test_the_released_radius_claims_seventy_times_more():
    assert released_radius(0.9, 0.1, 0.1) == pytest.approx(3.263, abs=1e-3)
    assert mean_shift_radius(0.9, 0.1, 0.1, 60) == pytest.approx(0.0421, abs=1e-4)


def problem():
    """Linear classifiers of two classes: weights [N, 2, T], series, and logits of class 1 without noise."""
    rows = ws.Rows.count(0, 50)
    w, x = rows.normal((2, T), "w", dtype=torch.float64), rows.normal((2, T), "x", dtype=torch.float64)
    w[:25] = w[:25].abs()  # those that a constant shift moves fastest
    return w, x, (w * x).flatten(1).sum(1)


def deviation(w):
    """The standard deviation of the logit under the noise, [N]."""
    return torch.einsum("nct,cd,ndt->n", w, torch.from_numpy(S), w).sqrt()


def test_ten_thousand_shifts_below_the_bound_change_nothing():
    w, _, logit = problem()
    share = torch.special.ndtr(logit.abs() / deviation(w))
    radius = torch.tensor([mean_shift_radius(float(p), 1 - float(p), S, T) for p in share])
    mu = ws.Rows.count(1, 50).uniform((200,), "mu", 0, -1.0, 1.0, torch.float64) * radius[:, None]
    mu[:, :2] = torch.tensor([-1.0, 1.0]) * radius[:, None] * (1 - 1e-9)
    assert mu.numel() == 10_000
    moved = logit[:, None] + mu * w.sum((1, 2))[:, None]
    assert bool((moved.sign() == logit.sign()[:, None]).all())
    beyond = logit[:, None] + 3 * radius[:, None] * torch.tensor([-1.0, 1.0]) * w.sum((1, 2))[:, None]
    assert bool((beyond.sign() != logit.sign()[:, None]).any(1).any())  # the bound is not idle


def test_any_shift_below_the_distance_of_the_noise_changes_nothing():
    w, _, logit = problem()
    share = torch.special.ndtr(logit.abs() / deviation(w))
    inverse = torch.from_numpy(np.linalg.inv(S))
    shifts = ws.Rows.count(2, 50).normal((100, 2, T), "shift", dtype=torch.float64)
    worst = -torch.einsum("cd,ndt->nct", torch.from_numpy(S), w) * logit.sign()[:, None, None]
    shifts[:, 0] = worst  # the direction that lowers the logit fastest
    size = torch.einsum("nsct,cd,nsdt->ns", shifts, inverse, shifts).sqrt()
    r = torch.tensor([renyi_radius(float(p), 1 - float(p)) for p in share])
    shifts = shifts * (r[:, None] / size * (1 - 1e-9))[..., None, None]
    moved = logit[:, None] + (shifts * w[:, None]).flatten(2).sum(2)
    assert bool((moved.sign() == logit.sign()[:, None]).all())
    assert float((moved[:, 0] / logit).min()) < 0.3  # nearly tight along the worst direction


def test_sampled_certificates_hold_and_the_released_ones_do_not():
    w, x, logit = problem()
    broken = certified = 0
    for i in range(25):

        def model(z, i=i):
            value = (z.double() * w[i]).flatten(1).sum(1)
            return torch.stack([-value, value], 1)

        sound = certify_mean_shift(model, x[i : i + 1], S, n=400, seed=i)
        if sound.prediction[0] != ABSTAIN:
            certified += 1
            assert int(sound.prediction[0]) == int(logit[i] > 0)
            assert float(sound.radius[0]) * abs(float(w[i].sum())) < abs(float(logit[i]))
        released = certify_mean_shift(model, x[i : i + 1], S, n=400, seed=i, bound="released")
        if math.isfinite(released.radius[0]):
            broken += float(released.radius[0]) * abs(float(w[i].sum())) > abs(float(logit[i]))
    assert certified >= 10
    assert broken >= 1


def test_bounds_are_jointly_valid():
    truth, trials, misses = np.array([0.6, 0.3, 0.1]), 2000, 0
    generator = np.random.default_rng(ws.random.derive(0, "bounds"))
    for counts in generator.multinomial(200, truth, trials):
        p1, p2 = bounds(counts, 0, 0.95)
        misses += p1 > 0.6 or p2 < 0.3
    assert misses / trials <= 0.05
    assert misses > 0
    p1, p2 = bounds(np.array([200, 0]), 0, 0.95)
    assert p1 < 1
    assert p2 == pytest.approx(1 - p1)


def test_a_toss_up_abstains_and_draws_depend_on_seed_and_id():
    def coin(z):
        return torch.stack([z.sum((1, 2)), -z.sum((1, 2))], 1)

    x = torch.zeros(3, 2, T)
    found = certify_mean_shift(coin, x)
    assert found.prediction.tolist() == [ABSTAIN] * 3
    assert found.radius.tolist() == [0.0] * 3
    x = x + 0.05
    whole = certify_mean_shift(coin, x, n=300)
    part = certify_mean_shift(coin, x[2:], n=300, ids=torch.tensor([2]))
    assert whole.radius[2] == part.radius[0]


def test_bad_settings_are_refused():
    x = torch.zeros(1, 2, T)
    for more, said in (
        ({"covariance": -0.1}, "covariance"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "positive definite"),
        ({"covariance": np.eye(3)}, "covariance"),
        ({"confidence": 1.0}, "confidence"),
        ({"n": 0}, "n: got 0"),
        ({"bound": "gauss"}, "bound"),
    ):
        with pytest.raises(BadInput, match=said):
            certify_mean_shift(lambda z: z[:, 0], x, **more)
    with pytest.raises(BadInput, match="p1"):
        renyi_radius(0.9, 0.2)
    with pytest.raises(BadInput, match="series"):
        certify_mean_shift(lambda z: z, torch.zeros(1, 8))
