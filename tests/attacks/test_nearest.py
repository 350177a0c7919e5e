"""Minimum-distance attacks that use gradients."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

import withstand as ws
from withstand.attacks.jsma import best_pair
from withstand.attacks.lbfgs import minimise
from withstand.attacks.trade_off import TradeOff
from withstand.errors import BadInput
from withstand.objectives import Confident, Margin, TargetedMargin

from .lines import Line, inside

A = ws.attacks
MODEL = Line()
X = inside()
Y = MODEL(X).argmax(1)
EXACT = {"l2": MODEL.side(X).abs() / MODEL.w.norm(), "linf": MODEL.side(X).abs() / MODEL.w.abs().sum()}


def small(classes: int = 5, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, classes)).double()
    for parameter in net.parameters():
        parameter.data.mul_(3)
    return net.eval()


def images(n: int = 16) -> torch.Tensor:
    return ws.Rows.count(1, n).uniform((1, 4, 4), "x", dtype=torch.float64)


# Known distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threat", "name"), [(ws.L2(), "l2"), (ws.Linf(), "linf")])
@pytest.mark.parametrize("overshoot", [0.02, 0.3])
def test_deepfool_crosses_a_plane_in_one_step_of_its_overshoot(threat, name, overshoot):
    r = A.DeepFool(threat, steps=1, overshoot=overshoot).run(MODEL, X, Y)
    assert r.success.all()
    assert torch.allclose(r.distance, (1 + overshoot) * EXACT[name], rtol=0, atol=1e-4)


def test_deepfool_steps_to_the_nearest_of_several_planes():
    w = ws.Rows.count(0, 4).normal((8,), "w", dtype=torch.float64)
    model = nn.Linear(8, 4).double()
    model.weight.data, model.bias.data = w, -w.sum(1) / 2
    y = model(X).argmax(1)
    gap = model(X).gather(1, y[:, None]) - model(X)
    for threat, order in ((ws.L2(), 2), (ws.Linf(), 1)):
        slope = torch.stack([(w[k] - w).norm(dim=1, p=order) for k in y.tolist()])
        exact = (gap / slope).scatter(1, y[:, None], torch.inf).min(1).values
        r = A.DeepFool(threat, overshoot=0.001).run(model, X, y)
        assert torch.allclose(r.distance, 1.001 * exact, rtol=1e-3, atol=1e-4)


def test_deepfool_compares_only_the_candidates():
    model, x = small(), images()
    y = model(x).argmax(1)
    runner_up = model(x).topk(2).indices[:, 1]
    all_classes, two = A.DeepFool(candidates=None).run(model, x, y), A.DeepFool(candidates=2).run(model, x, y)
    hit = model(two.x_adv).argmax(1)
    assert two.success.all()
    assert (hit == runner_up).float().mean() > 0.8
    assert all_classes.distance.mean() < two.distance.mean()
    assert (all_classes.backwards > 2 * two.backwards).float().mean() > 0.5


def test_carlini_wagner_finds_the_exact_distance():
    r = A.CarliniWagner(steps=500).run(MODEL, X, Y)
    assert r.success.all()
    assert (r.distance >= EXACT["l2"] - 1e-9).all()
    assert r.distance.mean() <= 1.01 * EXACT["l2"].mean()
    assert (r.distance <= 1.02 * EXACT["l2"] + 5e-4).all()


def test_lbfgs_finds_the_exact_distance():
    r = A.LBFGS(searches=16).run(MODEL, X, Y)
    assert r.success.all()
    assert (r.distance >= EXACT["l2"] - 1e-9).all()
    assert torch.allclose(r.distance, EXACT["l2"], rtol=2e-3)


# Carlini and Wagner -----------------------------------------------------------------------------------------------------


def test_carlini_wagner_with_a_large_weight_succeeds_at_once_and_with_none_never():
    model, x = small(), images()
    y = model(x).argmax(1)
    assert A.CarliniWagner(c=1e4, lr=0.1, steps=60, searches=1).run(model, x, y).success.all()
    assert not A.CarliniWagner(c=1e-9, lr=0.001, steps=60, searches=1).run(model, x, y).success.any()


def test_more_searches_come_closer():
    model, x = small(), images()
    y = model(x).argmax(1)
    found = [A.CarliniWagner(steps=100, searches=n, c=10.0, lr=0.05).run(model, x, y).distance for n in (1, 4)]
    assert (found[1] <= found[0]).all()
    assert found[1].mean() < 0.95 * found[0].mean()


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_points_reach_the_margin_kappa(kappa):
    model, x = small(), images()
    y = model(x).argmax(1)
    r = A.CarliniWagner(steps=100, searches=4, c=1.0, lr=0.05, objective=Margin(kappa)).run(model, x, y)
    logits = model(r.x_adv)
    other = logits.scatter(1, y[:, None], -torch.inf).max(1).values
    margin = other - logits.gather(1, y[:, None])[:, 0]
    assert r.success.all()
    assert (margin >= kappa).all()
    assert (margin < kappa + 1).all()


def test_confident_wants_the_goal_and_the_margin():
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    seen = ws.protocols.Seen(logits, logits)
    assert Confident(Margin(2.0))(seen, torch.zeros(3).long(), {}).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "attack",
    [
        A.CarliniWagner(steps=150, searches=3, c=10.0, lr=0.05, objective=TargetedMargin(target=3, kappa=0.0)),
        A.LBFGS(objective="targeted_cross_entropy(target=3)"),
        A.JSMA(gamma=1.0, objective="targeted_margin(target=3)"),
    ],
)
def test_targets_are_reached(attack):
    model, x = small(), images()
    r = attack.run(model, x, model(x).argmax(1))
    reached = model(r.x_adv).argmax(1) == 3
    assert torch.equal(reached, r.success)
    assert r.success.float().mean() > (0.25 if isinstance(attack, A.JSMA) else 0.6), (
        "raising values cannot do everything"
    )


def test_each_example_may_have_its_own_target_whatever_the_blocks():
    model, x = small(), images()
    target = torch.arange(16) % 5
    attack = A.LBFGS(objective=ws.objectives.TargetedCrossEntropy(target=target))
    r = attack.run(model, x, model(x).argmax(1), block=5)
    assert torch.equal(model(r.x_adv).argmax(1) == target, r.success)
    assert r.success.float().mean() > 0.8


def test_aborting_early_saves_passes_and_little_distance():
    model, x = small(), images()
    y = model(x).argmax(1)
    runs = [A.CarliniWagner(steps=200, searches=3, c=1.0, abort_early=a).run(model, x, y) for a in (True, False)]
    assert runs[0].backwards.sum() < 0.8 * runs[1].backwards.sum()
    assert runs[1].backwards.max() == 600
    assert runs[0].distance.mean() < 1.05 * runs[1].distance.mean()


def test_pixels_at_the_bounds_can_move():
    x = images().round()
    model = small()
    r = A.CarliniWagner(steps=200, searches=4, c=10.0, lr=0.1).run(model, x, model(x).argmax(1))
    assert r.success.all()
    assert r.x_adv.isfinite().all()


def test_without_a_box_nothing_is_squeezed():
    x = 5 + inside()
    shifted = nn.Sequential(_Shift(5.0), MODEL)
    for attack in (A.CarliniWagner(steps=300, lr=0.002), A.LBFGS(searches=16), A.DeepFool()):
        r = attack.run(shifted, x, shifted(x).argmax(1), box=None)
        assert torch.allclose(r.distance, EXACT["l2"], rtol=0.03, atol=5e-4)


class _Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x):
        return x - self.by


def test_the_weight_grows_tenfold_and_is_halved_between_failure_and_success():
    trade = TradeOff(1.0, torch.zeros(2, 3))
    for hits, weights in (((0, 1), (10, 0.5)), ((0, 0), (100, 0.75)), ((1, 1), (55, 0.625)), ((0, 1), (77.5, 0.5625))):
        trade.update(torch.tensor(hits).bool())
        assert trade.c.tolist() == list(weights)


# L-BFGS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
def test_the_minimiser_agrees_with_scipy(box):
    """Convex, curved and box-bound; the rows differ, so that they converge at different times."""
    n, d = 6, 7
    rows = ws.Rows.count(0, n)
    m = rows.normal((d, d), "m", dtype=torch.float64)
    hessian = m @ m.transpose(1, 2) + torch.arange(1, n + 1)[:, None, None] * torch.eye(d).double()
    centre = rows.normal((d,), "c", dtype=torch.float64)
    start = torch.full((n, d), 0.5, dtype=torch.float64)
    alive = torch.arange(n)
    solved = start.clone()

    def loss(z):
        point = z.detach().requires_grad_(True)
        delta = point - centre[alive]
        value = (torch.einsum("ni,nij,nj->n", delta, hessian[alive], delta) / 2) + delta.pow(4).sum(1)
        return value.detach(), torch.autograd.grad(value.sum(), point)[0]

    def keep_only(stay, z, *held):
        nonlocal alive
        solved[alive] = z
        alive = alive[stay]
        return [h[stay] for h in (z, *held)]

    solved[alive] = minimise(loss, start, box, 300, keep_only, tolerance=1e-7)
    assert len(alive) == 0, "all rows converge"
    for i in range(n):

        def one(v, i=i):
            delta = v - centre[i].numpy()
            return delta @ hessian[i].numpy() @ delta / 2 + (delta**4).sum()

        bounds = None if box is None else [box] * d
        best = scipy.optimize.minimize(one, start[i], method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15})
        assert np.allclose(solved[i], best.x, atol=1e-4)


def test_the_minimiser_goes_down_a_bent_valley():
    """Rosenbrock's function: full quasi-Newton steps alone would leave the valley."""
    looks, ends = [], []

    def loss(z):
        point = z.detach().requires_grad_(True)
        value = (1 - point[:, 0]) ** 2 + 100 * (point[:, 1] - point[:, 0] ** 2) ** 2
        looks.append(value.detach())
        return value.detach(), torch.autograd.grad(value.sum(), point)[0]

    def keep_only(stay, z, *held):
        ends.append(z[~stay])
        return [h[stay] for h in (z, *held)]

    left = minimise(loss, torch.tensor([[-1.2, 1.0]]).double(), None, 300, keep_only, tolerance=1e-8)
    assert len(left) == 0
    assert torch.allclose(ends[0], torch.ones(1, 2).double(), atol=1e-5)
    assert len(looks) < 100


def test_the_minimiser_never_takes_a_step_uphill():
    """cosh(6 z) from 0.4: the first step would end at -0.6, higher up."""

    def loss(z):
        return torch.cosh(6 * z).sum(1), 6 * torch.sinh(6 * z)

    start = torch.tensor([[0.4]]).double()
    values = [float(loss(minimise(loss, start, None, n, lambda stay, *held: held))[0]) for n in range(2, 12)]
    assert values == sorted(values, reverse=True)
    assert values[0] == float(loss(start)[0])
    assert values[-1] < 1.01


# JSMA -------------------------------------------------------------------------------------------------------------------


def naive_pair(towards, away, open_):
    best = (0.0, 0, 0)
    for p in range(len(towards)):
        for q in range(p + 1, len(towards)):
            a, b = towards[p] + towards[q], away[p] + away[q]
            if open_[p] and open_[q] and a > 0 and b < 0 and -a * b > best[0]:
                best = (float(-a * b), p, q)
    return best


@pytest.mark.parametrize("part", [1, 37, 1 << 20])
def test_the_best_pair_is_that_of_a_plain_loop(part):
    rows = ws.Rows.count(0, 30)
    towards, away = rows.normal((9,), "t", dtype=torch.float64), rows.normal((9,), "a", dtype=torch.float64)
    open_ = rows.uniform((9,), "o") < 0.7
    open_[0] = False
    gain, first, second = best_pair(towards, away, open_, part)
    assert gain[0] == 0
    for i in range(30):
        assert (gain[i], first[i], second[i]) == pytest.approx(naive_pair(towards[i], away[i], open_[i]))


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.4])
def test_jsma_keeps_its_budget_and_moves_values_one_way(theta):
    model, x = small(), images(40)
    y = model(x).argmax(1)
    r = A.JSMA(gamma=0.3, theta=theta).run(model, x, y)
    moved = r.x_adv - x
    assert r.success.any()
    assert not r.success.all()
    assert ((moved != 0).flatten(1).sum(1) <= 4).all(), "a share of 0.3 of 16 values are 4"
    assert (moved * theta >= 0).all()
    if abs(theta) == 1:
        assert r.x_adv[moved != 0].eq(1.0 if theta > 0 else 0.0).all()
    assert torch.equal(r.distance, (moved != 0).flatten(1).sum(1).double())


def test_a_larger_budget_fools_more_and_the_smaller_bound_holds():
    model, x = small(), images(40)
    y = model(x).argmax(1)
    found = [A.JSMA(ws.L0(k), gamma=g).run(model, x, y) for k, g in ((2, 1.0), (16, 1.0), (16, 0.125))]
    assert found[0].success.sum() < found[1].success.sum()
    assert torch.equal(found[0].x_adv, found[2].x_adv)
    for r in found:
        assert (r.forwards <= 2 + 16 // 2 * 2).all()


def test_jsma_moves_the_pair_with_the_largest_saliency_first():
    model = nn.Linear(6, 3, bias=False).double()
    model.weight.data = torch.tensor(
        [[0.0, 0, 0, 0, 0, 0], [0.1, 0.5, 0.6, 0.1, 2.0, 0.1], [0.1, -0.5, -0.4, 0.1, 5.0, 0.1]]
    ).double()
    x = torch.full((1, 6), 0.2, dtype=torch.float64)
    r = A.JSMA(gamma=0.34, objective="targeted_margin(target=1)").run(model, x, torch.tensor([2]))
    assert (r.x_adv != x).nonzero()[:, 1].tolist() == [1, 2]


# Rules for all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["deepfool", "carlini_wagner", "lbfgs"])
def test_points_beyond_a_given_radius_are_failures(attack):
    eps = float(EXACT["l2"].median())
    settings = {"carlini_wagner": {"steps": 100}}.get(attack, {})
    r = ws.parse(attack, "attack").__class__(ws.L2(eps), **settings).run(MODEL, X, Y)
    assert torch.equal(r.success, r.distance > 0)
    assert (r.distance <= eps + 1e-9).all()
    assert (r.success | (EXACT["l2"] * 1.05 > eps)).all()
    assert 0 < r.success.sum() < len(X)
    assert torch.equal(r.x_adv[~r.success], X[~r.success])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deepfool(l1())", "linf"),
        ("deepfool(steps=0)", "steps"),
        ("deepfool(overshoot=-0.1)", "overshoot"),
        ("deepfool(candidates=1)", "candidates"),
        ("carlini_wagner(linf())", "l2"),
        ("carlini_wagner(c=0.0)", "c: got"),
        ("carlini_wagner(objective=cross_entropy())", "kappa"),
        ("carlini_wagner(objective=margin())", "kappa"),
        ("lbfgs(searches=0)", "searches"),
        ("lbfgs(objective=cross_entropy())", "targeted"),
        ("jsma(l2())", "l0"),
        ("jsma(theta=0.0)", "theta"),
        ("jsma(gamma=0.0)", "gamma"),
        ("jsma(objective=margin())", "targeted"),
        ("noise(l2())", "radius"),
        ("noise(samples=0)", "samples"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text, said):
    with pytest.raises(BadInput, match=said):
        ws.parse(text, "attack")


def test_jsma_needs_a_box():
    with pytest.raises(BadInput, match="box"):
        A.JSMA().run(MODEL, X, Y, box=None)


# Reductions ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [ws.Linf(0.1), ws.L2(0.5)])
def test_pgd_with_one_full_step_from_the_clean_point_is_fgsm(threat):
    model, x = small(), images()
    y = model(x).argmax(1)
    one = A.PGD(threat, steps=1, step=1.0, random_start=False, keep="last", active=False)(model, x, y)
    assert torch.equal(one, A.FGSM(threat, keep="last", active=False)(model, x, y))


def test_fgsm_flips_just_above_the_exact_distance_and_not_below():
    for factor, flips in ((1.001, True), (0.999, False)):
        r = A.FGSM(ws.Linf(EXACT["linf"] * factor)).run(MODEL, X, Y)
        assert r.success.all() if flips else not r.success.any()


def test_random_noise_is_the_best_of_its_draws_and_weaker_than_a_gradient():
    model, x = small(), images(60)
    y = model(x).argmax(1)
    counts = [int(A.Noise(ws.Linf(0.1), samples=n).run(model, x, y).success.sum()) for n in (1, 30)]
    assert counts[0] < counts[1] < int(A.PGD(ws.Linf(0.1)).run(model, x, y).success.sum())
    r = A.Noise(ws.Linf(0.01), samples=7).run(model, x, y)
    assert (r.forwards[~r.success] == 8).all()
    value = torch.stack([Margin()(ws.protocols.Seen(x, model(x)), y, {}), r.value.double()])
    assert (value[1] >= value[0] - 1e-6).all()
