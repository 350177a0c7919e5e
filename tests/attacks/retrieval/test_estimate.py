from types import SimpleNamespace

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.attacks.retrieval.estimate import Estimate, mixed, optimal_lambda, unit
from withstand.threats import L2

v = unit(ws.Rows.count(0, 6).normal((1, 4, 4), "v", dtype=torch.float64))
xi = ws.Rows.count(1, 6).normal((1, 4, 4), "xi", dtype=torch.float64)


def dot(a, b):
    return (a * b).flatten(1).sum(1)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_directions_have_unit_length_and_lean_towards_the_prior(lam):
    u = mixed(v, xi, torch.full((6,), lam, dtype=torch.float64))
    assert torch.allclose(dot(u, u), torch.ones(6, dtype=torch.float64))
    assert torch.allclose(dot(u, v), torch.full((6,), lam, dtype=torch.float64).sqrt())


def test_without_a_prior_directions_are_those_of_rgf():
    none = torch.zeros_like(v)
    assert torch.allclose(mixed(none, xi, torch.full((6,), 0.5, dtype=torch.float64)), unit(xi))


@pytest.mark.parametrize(("size", "q"), [(64, 5), (784, 10), (3000, 50)])
def test_the_optimal_weight_is_the_best_of_a_grid(size, q):
    """The expected squared cosine of the estimate with the gradient, (g' C g)^2 / ((1 - 1/q) g' C^2 g + 1/q g' C g) with
    C = lam v v' + (1 - lam) / (D - 1) (I - v v') the covariance of the directions."""
    grid = np.linspace(0, 1, 20001)
    for a in (1e-9, 0.5 / size, 2 / size, 0.05, 0.3, 0.9):
        near, rest = grid * a, (1 - grid) / (size - 1)
        once, twice = near + rest * (1 - a), grid**2 * a + rest**2 * (1 - a)
        best = grid[np.argmax(once**2 / ((1 - 1 / q) * twice + once / q))]
        assert float(optimal_lambda(torch.tensor([a]), size, q)) == pytest.approx(best, abs=2e-4)


def test_the_optimal_weight_grows_with_the_prior():
    weights = optimal_lambda(torch.linspace(0, 1, 200), 64, 5)
    assert (weights.diff() >= -1e-9).all()
    assert weights[0] == 0
    assert weights[-1] == 1


# On a value that is linear -----------------------------------------------------------------------------------------

slope = 3 * unit(ws.Rows.count(2, 6).normal((1, 4, 4), "slope", dtype=torch.float64))
q = 5


def estimated(lam, prior):
    """The estimate of `slope`, and how often each row asked."""
    rows, alive = ws.Rows.count(3, 6), torch.arange(6)
    p = SimpleNamespace(
        x=v, x_alive=v, alive=alive, threat=L2(1.0), rows=rows, won=torch.zeros(6).bool(), active=True,
        project=lambda z: z,
    )  # fmt: skip
    queries = SimpleNamespace(left=torch.full((6,), 100), ask=lambda z, i: (None, dot(z, slope[i])))
    estimate, sigma = Estimate(q, lam, p), torch.full((6,), 0.4, dtype=torch.float64)  # type: ignore[arg-type]
    value = dot(v, slope)
    return estimate(p, queries, v, value, prior, sigma, torch.ones(6).bool(), 2), estimate.asked  # type: ignore[arg-type]


@pytest.mark.parametrize(("lam", "prior"), [(0.0, v), (0.3, v), (0.5, torch.zeros_like(v))])
def test_the_estimate_is_the_mean_of_slopes_along_directions(lam, prior):
    found, asked = estimated(lam, prior)
    total = torch.zeros_like(v)
    for b in range(q):
        xi = ws.Rows.count(3, 6).normal((1, 4, 4), "qair", 2 * q + b, torch.float64)
        across = xi - dot(xi, prior).view(-1, 1, 1, 1) * prior
        across /= across.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        u = lam**0.5 * prior + (1 - lam) ** 0.5 * across if prior.any() else across
        total += dot(slope, u).view(-1, 1, 1, 1) * u / q
    assert torch.allclose(found, total)
    assert (asked == q).all()


def test_the_whole_weight_is_the_prior_unasked():
    found, asked = estimated(1.0, v)
    assert torch.equal(found, v)
    assert not asked.any()


def test_a_prior_that_points_the_wrong_way_is_turned_round():
    found, asked = estimated("auto", -unit(slope))
    whole = asked == 4  # the prior and three directions: it has all the weight
    assert whole.any()
    assert torch.allclose(found[whole], unit(slope)[whole])
    assert (dot(found, slope) > 0).all()
