import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import withstand as ws
from withstand.attacks.hyperplane import to_hyperplane

NORMS = [ws.Linf(), ws.L2(), ws.L1()]


def cases(n=200, d=5, seed=0):
    """Random problems in the unit box; some weights are zero, some points stand at the box, some gaps are out of reach."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(size=(n, d)).round(rng.integers(1, 4))
    w = rng.normal(size=(n, d)) * (rng.uniform(size=(n, d)) < 0.85) * 10.0 ** rng.integers(-2, 3, size=(n, 1))
    reach = np.where(w > 0, w * (1 - u), -w * u).sum(1), np.where(w > 0, -w * u, w * (1 - u)).sum(1)
    gap = reach[1] + (reach[0] - reach[1]) * rng.uniform(-0.3, 1.3, size=n)
    return u, w, gap, (gap <= reach[0]) & (gap >= reach[1])


def solve(u, w, gap, norm):
    return to_hyperplane(*(torch.tensor(a) for a in (u, w, gap)), norm, (0.0, 1.0)).numpy()


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_every_solution_lies_in_the_box_and_on_the_plane_where_that_is_possible(norm):
    u, w, gap, possible = cases()
    d = solve(u, w, gap, norm)
    assert ((u + d >= -1e-12) & (u + d <= 1 + 1e-12)).all()
    assert 0.2 < possible.mean() < 0.9
    np.testing.assert_allclose((w * d).sum(1)[possible], gap[possible], rtol=1e-9, atol=1e-9)
    bound = np.where(gap[:, None] * w > 0, 1 - u, np.where(w == 0, 0, -u))
    np.testing.assert_allclose(d[~possible], bound[~possible], atol=1e-12)
    assert (d[w == 0] == 0).all()


@pytest.mark.parametrize(("norm", "order"), [(ws.Linf(), np.inf), (ws.L1(), 1)], ids=["linf", "l1"])
def test_linear_programming_finds_nothing_shorter(norm, order):
    u, w, gap, possible = cases(60)
    found = np.linalg.norm(solve(u, w, gap, norm), ord=order, axis=1)
    for i in possible.nonzero()[0]:
        k = u.shape[1]
        eye = np.eye(k)
        if order == 1:  # d = a - b with a, b >= 0
            best = linprog(
                np.ones(2 * k),
                A_eq=[[*w[i], *-w[i]]],
                b_eq=[gap[i]],
                bounds=[(0, 1 - v) for v in u[i]] + [(0, v) for v in u[i]],
            )
        else:  # minimise t with |d| <= t
            best = linprog(
                [0] * k + [1],
                A_ub=np.block([[eye, -np.ones((k, 1))], [-eye, -np.ones((k, 1))]]),
                b_ub=np.zeros(2 * k),
                A_eq=[[*w[i], 0]],
                b_eq=[gap[i]],
                bounds=[(-v, 1 - v) for v in u[i]] + [(0, None)],
            )
        assert best.status == 0
        assert found[i] == pytest.approx(best.fun, abs=1e-7)


def test_bisection_on_the_multiplier_finds_the_same_l2_solution():
    u, w, gap, possible = cases()
    d = solve(u, w, gap, ws.L2())
    low, high = np.full(len(u), -1e7), np.full(len(u), 1e7)
    for _ in range(200):
        m = (low + high) / 2
        over = (w * (np.clip(u + m[:, None] * w, 0, 1) - u)).sum(1) > gap
        low, high = np.where(over, low, m), np.where(over, m, high)
    np.testing.assert_allclose(d[possible], (np.clip(u + m[:, None] * w, 0, 1) - u)[possible], atol=1e-7)


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_without_a_box_the_size_is_the_gap_over_the_dual_norm(norm):
    u, w, gap, _ = cases()
    some = np.abs(w).sum(1) > 0
    d = to_hyperplane(*(torch.tensor(a[some]) for a in (u, w, gap)), norm, None)
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm.component_name]
    expected = np.abs(gap[some]) / np.linalg.norm(w[some], ord=dual, axis=1)
    np.testing.assert_allclose(norm.norm(d).numpy(), expected, rtol=1e-12)


def test_values_that_reach_the_box_one_after_the_other_cost_one_newton_step_each():
    n = 40
    u = 1 - torch.tensor([[2.0**-i for i in range(n)]], dtype=torch.float64)
    w = torch.tensor([[2.0 ** (i / 2) for i in range(n)]], dtype=torch.float64)
    for share in (0.1, 0.5, 0.9, 0.999):
        gap = share * (w * (1 - u)).sum(1)
        for norm in (ws.Linf(), ws.L2()):
            d = to_hyperplane(u, w, gap, norm, (0.0, 1.0))
            assert torch.allclose((w * d).sum(1), gap, rtol=1e-12)
