"""TPA in both forms, against its formulas and its limits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import withstand as ws
from withstand.attacks.transfer.tpa import Mix, Penalty, neighbourhood_gradient_norm
from withstand.errors import BadInput
from withstand.parameterisations import Pyramid
from withstand.random import Rows, derive

from .naive import gradient

A = ws.attacks
EPS = 0.1
BIM = A.PGD(ws.Linf(EPS), steps=6, step=0.1, random_start=False, keep="last", active=False)


@pytest.mark.parametrize("variant", ["published", "paper"])
def test_without_weight_and_momentum_it_is_the_basic_iterative_method(variant, net, points):
    attack = A.TPA(ws.Linf(EPS), steps=6, variant=variant, weight=0.0, decay=0.0, samples=2)
    assert torch.allclose(attack(net, *points), BIM(net, *points), atol=1e-12)


def test_momentum_on_signs_is_stepped_along_as_it_is(net, points):
    x, y = points
    attack = A.TPA(ws.Linf(EPS), steps=6, weight=0.0, decay=0.5, samples=1)
    z, v = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        v = 0.5 * v + gradient(net, z, y).sign()
        z = torch.max(torch.min(z + 0.1 * EPS * v, x + EPS), x - EPS).clamp(0, 1)
    assert torch.allclose(attack(net, x, y), z, atol=1e-12)
    assert not torch.allclose(attack(net, x, y), BIM(net, x, y))


def draws(seed, n):
    rows = Rows(derive(seed, "tpa"), torch.arange(n))
    return lambda t, i, samples: rows.uniform(
        (1, 6, 6), "tpa", t * (1 + 2 * samples) + 1 + 2 * i, -1, 1, dtype=torch.float64
    )


@pytest.mark.parametrize("variant", ["published", "paper"])
def test_steps_follow_the_equations(variant, net, points):
    x, y = points
    weight, radius, probe, samples = (0.4, 0.08, 0.03, 3)
    noise, z, v = draws(4, len(x)), x.clone(), torch.zeros_like(x)
    decay = 0.9 if variant == "published" else 0.0
    for t in range(4):
        g, total = gradient(net, z, y), torch.zeros_like(x)
        for i in range(samples):
            point = z + radius * noise(t, i, samples)
            near = gradient(net, point, y)
            if variant == "paper":
                unit = torch.stack([row / row.norm() for row in near])
                total += (gradient(net, point + probe * unit, y) - near) / probe / samples
            else:
                total += gradient(net, point - probe * near.sign(), y) / samples
        ascent = g - weight * total if variant == "paper" else (1 - weight) * g + weight * total
        v = decay * v + ascent.sign()
        z = torch.max(torch.min(z + 0.1 * EPS * v, x + EPS), x - EPS).clamp(0, 1)
    attack = A.TPA(ws.Linf(EPS), 4, variant=variant, weight=weight, radius=radius, probe=probe, samples=samples)
    assert torch.allclose(attack(net, x, y, seed=4), z, atol=1e-10)
    assert not torch.allclose(attack(net, x, y, seed=5), z, atol=1e-10)


def test_on_a_quadratic_the_finite_difference_is_the_hessian_along_the_gradient():
    half = Rows.count(0, 8).normal((8,), "A", dtype=torch.float64)
    hessian, c = half @ half.T, Rows.count(1, 1).normal((8,), "c", dtype=torch.float64)[0]
    x, rows = Rows.count(2, 5).normal((8,), "x", dtype=torch.float64), Rows.count(3, 5)

    def oracle(z, rows, step):
        return z @ hessian + c, 0.5 * (z @ hessian * z).sum(1) + z @ c

    for probe in (1e-3, 0.1, 2.0):
        found, value = Penalty(weight=0.7, radius=0.0, probe=probe, samples=2)(oracle)(x, rows, 0)
        g = x @ hessian + c
        exact = g - 0.7 * (g / g.norm(dim=1, keepdim=True)) @ hessian
        assert torch.allclose(found, exact, rtol=1e-4, atol=1e-8)
        assert torch.equal(value, oracle(x, rows, 0)[1])
    # E over the neighbourhood, in the mean of many draws
    many, _ = Penalty(weight=1.0, radius=0.5, probe=0.01, samples=4000)(oracle)(x[:1], rows.take(torch.tensor([0])), 0)
    noise = Rows.count(9, 40000).uniform((8,), "u", 0, -0.5, 0.5, dtype=torch.float64)
    g = (x[:1] + noise) @ hessian + c
    wanted = x[:1] @ hessian + c - ((g / g.norm(dim=1, keepdim=True)) @ hessian).mean(0)
    assert torch.allclose(many, wanted, atol=0.15)


def test_a_linear_loss_is_flat_everywhere(points):
    slope = points[0][:1] - 0.5

    def oracle(z, rows, step):
        return slope.expand_as(z), (slope * z).flatten(1).sum(1)

    x, rows = points[0], Rows.count(0, 24)
    for weight in (0.5, 50.0):
        assert torch.allclose(Penalty(weight)(oracle)(x, rows, 0)[0], slope.expand_as(x))
    assert torch.allclose(Mix(1.0)(oracle)(x, rows, 0)[0], slope.expand_as(x))


def logistic():
    w = Rows.count(0, 1).normal((12,), "w", dtype=torch.float64)[0] * 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2).double())
    model[1].weight.data, model[1].bias.data = torch.stack([w / 2, -w / 2]), torch.zeros(2, dtype=torch.float64)
    return model, w


@pytest.mark.parametrize(("factor", "sign"), [(0.95, 1), (1.05, -1)])
def test_the_paper_form_turns_round_on_a_logistic_model_where_the_penalty_outweighs_the_slope(factor, sign):
    model, w = logistic()
    x = (0.5 + 0.02 * w).reshape(1, 1, 3, 4)
    y = torch.zeros(1, dtype=torch.long)
    p = float(torch.softmax(model(x), 1)[0, 0].detach())
    weight = factor / (p * float(w.norm()))
    attack = A.TPA(ws.Linf(0.01), 1, variant="paper", weight=weight, radius=0.0, probe=1e-4, samples=1)
    moved = attack(model, x, y) - x
    assert torch.equal(moved.flatten().sign(), -sign * w.sign())


def test_the_published_form_never_turns_round_there_and_the_note_tells_who_fell():
    model, w = logistic()
    x = (0.5 + 0.02 * w).reshape(1, 1, 3, 4)
    y = torch.zeros(1, dtype=torch.long)
    for weight in (0.0, 0.5, 1.0):
        r = A.TPA(ws.Linf(0.01), 3, weight=weight, radius=0.02).run(model, x, y)
        assert torch.equal((r.x_adv - x).flatten().sign(), -w.sign())
        assert r.notes["loss_fell"].tolist() == [False]
    with pytest.warns(UserWarning, match="fell on 1 of 1"):
        r = A.TPA(ws.Linf(0.01), 3, variant="paper", radius=0.0).run(model, x, y)
    assert r.notes["loss_fell"].tolist() == [True]


def test_a_step_costs_one_gradient_and_two_for_each_draw(net, points):
    r = A.TPA(steps=3, samples=4).run(net, *points)
    assert (r.backwards == 3 * 9).all()
    assert (r.forwards == 3 * 9).all()


def test_dead_gradients_leave_the_probe_where_it_is():
    seen = []

    def oracle(z, rows, step):
        seen.append(z)
        return torch.zeros_like(z), torch.zeros(len(z))

    found, _ = Penalty(samples=1, radius=0.0)(oracle)(torch.ones(2, 3), Rows.count(0, 2), 0)
    assert torch.equal(found, torch.zeros(2, 3))
    assert torch.equal(seen[2], torch.ones(2, 3))


def test_the_neighbourhood_norm_is_a_mean_of_norms(net, points):
    x, y = points
    point = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point)
    at_point = neighbourhood_gradient_norm(net, x, y, 0.0, samples=2)
    assert torch.allclose(at_point, g.flatten(1).norm(dim=1))
    assert not torch.allclose(neighbourhood_gradient_norm(net, x, y, 0.1), at_point)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": 1.2}, "weight"),
        ({"weight": -0.1}, "weight"),
        ({"weight": -0.1, "variant": "paper"}, "weight"),
        ({"radius": -1 / 255}, "radius"),
        ({"probe": 0.0}, "probe"),
        ({"samples": 0}, "samples"),
        ({"decay": 1.0}, "decay"),
        ({"variant": "official"}, "variant"),
        ({"parameterisation": Pyramid()}, "parameterisation"),
    ],
)
def test_senseless_settings_are_refused(changes, said):
    with pytest.raises(BadInput, match=said):
        A.TPA(**changes)
    with pytest.raises(BadInput, match="samples"):
        neighbourhood_gradient_norm(nn.Identity(), torch.zeros(1, 2), torch.zeros(1), 0.1, samples=0)
