import numpy as np
import pytest
import torch

import withstand as ws
from withstand.attacks.retrieval.estimate import mixed, optimal_lambda, unit

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
