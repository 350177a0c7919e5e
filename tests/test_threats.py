"""Projections against brute force, steepest steps against their definition, starts inside their sets."""

import pytest
import torch
from scipy.optimize import minimize

import withstand as ws
from withstand.errors import BadInput
from withstand.registry import parse

THREATS = [ws.Linf(0.2), ws.L2(0.5), ws.L1(0.8), ws.L0(3)]


def points(n: int = 40, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rows = ws.Rows.count(0, n)
    x = rows.uniform((d,), "x", dtype=torch.float64)
    return x, x + 0.6 * rows.normal((d,), "z", dtype=torch.float64)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_projection_lands_inside_and_changes_nothing_twice(threat, box):
    x, z = points()
    p = threat.project(z, x, box)
    assert threat.contains(x, p).all()
    assert box is None or (p.min() >= 0 and p.max() <= 1)
    assert torch.allclose(threat.project(p, x, box), p, atol=1e-9)
    assert torch.allclose(threat.project(x.clone(), x, box), x)


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_l1_projection_is_the_nearest_point(box):
    x, z = points(12, 5)
    ours = ws.L1(0.8).project(z, x, box)
    for i in range(len(x)):
        a, b = x[i].numpy(), z[i].numpy()
        # split d = u - v with u, v >= 0: a smooth problem with linear constraints
        fun = lambda t: ((a + t[:5] - t[5:] - b) ** 2).sum()  # noqa: E731, B023
        limits = [{"type": "ineq", "fun": lambda t: 0.8 - t.sum()}]
        if box:
            limits += [{"type": "ineq", "fun": lambda t: 1 - (a + t[:5] - t[5:])}]  # noqa: B023
            limits += [{"type": "ineq", "fun": lambda t: a + t[:5] - t[5:]}]  # noqa: B023
        best = minimize(fun, [0.01] * 10, bounds=[(0, None)] * 10, constraints=limits, options={"ftol": 1e-14})
        assert ((ours[i] - z[i]) ** 2).sum() <= best.fun + 1e-6


def test_l0_projection_is_the_best_of_all_subsets():
    from itertools import combinations

    x, z = points(15, 5)
    ours = ws.L0(2).project(z, x, (0.0, 1.0))
    for i in range(len(x)):
        costs = []
        for kept in combinations(range(5), 2):
            trial = x[i].clone()
            trial[list(kept)] = z[i][list(kept)].clamp(0, 1)
            costs.append(((trial - z[i]) ** 2).sum())
        assert ((ours[i] - z[i]) ** 2).sum() <= min(costs) + 1e-12


def test_l2_projection_without_box_is_the_scaled_vector():
    x, z = points()
    d = z - x
    expected = x + d * (0.5 / d.norm(dim=1, keepdim=True)).clamp_max(1)
    assert torch.allclose(ws.L2(0.5).project(z, x), expected)


@pytest.mark.parametrize("threat", THREATS[:3], ids=str)
def test_steepest_maximises_a_linear_function_over_unit_steps(threat):
    gradient = ws.Rows.count(3, 8).normal((6,), "g", dtype=torch.float64)
    best = threat.steepest(gradient)
    assert torch.allclose(threat.norm(best), torch.ones(8, dtype=torch.float64))
    for k in range(200):
        other = ws.Rows.count(k, 8).normal((6,), "other", dtype=torch.float64)
        other = other / threat.norm(other)[:, None]
        assert ((best - other) * gradient).sum(1).min() >= -1e-9


@pytest.mark.parametrize(
    "threat", [*THREATS, ws.Masked(ws.L2(0.5), torch.tensor([1, 1, 0, 0, 1, 1]))], ids=lambda t: t.component_name
)
def test_random_starts_lie_inside_and_differ(threat):
    x, _ = points()
    rows = ws.Rows.count(1, len(x))
    for box in (None, (0.0, 1.0)):
        z = threat.random_start(x, rows, box=box)
        assert threat.contains(x, z).all()
        assert (z != x).any(1).all()
        assert not torch.equal(z, threat.random_start(x, rows, step=1, box=box))


@pytest.mark.parametrize(("threat", "power"), [(ws.L2(1.0), 6), (ws.L1(1.0), 6), (ws.Linf(1.0), 6)], ids=str)
def test_random_starts_are_uniform_in_the_ball(threat, power):
    """Uniform in a d-ball: (norm / eps)^d is uniform, so its mean is 1/2 and its quartiles are 1/4 and 3/4."""
    x = torch.zeros(20000, 6, dtype=torch.float64)
    z = threat.random_start(x, ws.Rows.count(0, len(x)))
    u = threat.norm(z) ** power
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(u.quantile(0.25) - 0.25) < 0.015
    assert abs((z > 0).double().mean() - 0.5) < 0.01


def test_radii_may_differ_by_example_and_follow_their_rows():
    x, z = points(4)
    threat = ws.Linf(torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64))
    sizes = threat.distance(x, threat.project(z, x))
    assert torch.allclose(sizes, torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64))
    part = threat.take(torch.tensor([3, 1]))
    assert part.eps.tolist() == pytest.approx([0.3, 0.1])


def test_a_mask_closes_values_and_counts_what_it_closes_as_outside():
    x, z = points(4)
    threat = ws.Masked(ws.Linf(0.2), torch.tensor([1, 0, 1, 0, 1, 0]))
    p = threat.project(z, x, (0.0, 1.0))
    assert torch.equal(p[:, 1::2], x[:, 1::2])
    assert (p[:, ::2] != x[:, ::2]).any()
    assert not threat.contains(x, z).any()


@pytest.mark.parametrize("eps", [-1, float("nan"), float("inf"), "big", torch.tensor([[1.0]]), torch.tensor([-1.0])])
def test_bad_radii_are_refused(eps):
    with pytest.raises(BadInput, match="eps"):
        ws.Linf(eps)


@pytest.mark.parametrize(
    "text", ["linf(8/255)", "l2(0.5)", "l1(12.0)", "l0(24.0)", "linf(0.3)", "linf()", "l2(0.5/255)"]
)
def test_threats_print_as_they_are_written(text):
    assert repr(parse(text, "threat")) == text
