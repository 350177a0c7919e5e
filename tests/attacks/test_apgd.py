import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks.apgd import _ascend, _sparse_signs, checkpoints
from withstand.attacks.engine import Problem
from withstand.errors import BadInput
from withstand.objectives import CrossEntropy, TargetedCrossEntropy, TargetedDLR
from withstand.random import Rows

THREATS = [ws.Linf(0.1), ws.L2(0.5), ws.L1(3.0)]


def test_the_checkpoints_of_a_hundred_steps_are_the_official_ones():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


@pytest.mark.parametrize("eps", [0.02, 0.06, 0.15])
def test_apgd_t_reaches_the_exact_robust_accuracy_of_linear_models(eps, linear_problem, withstands):
    for seed in range(4):
        model, x, y = linear_problem(seed)
        exact = withstands(model, x, y, eps)
        found = ws.attacks.APGDT(ws.Linf(eps), steps=20).run(model, x, y)
        assert torch.equal(~found.success, exact)
        one = ws.attacks.APGD(ws.Linf(eps), steps=20).run(model, x, y)
        assert not (one.success & exact).any()


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_more_is_lost_than_under_noise_and_every_start_is_in_the_set(threat, net, points):
    x, y = points
    r = ws.attacks.APGD(threat, steps=20, keep="last", active=False).run(net, x, y)
    noisy = threat.random_start(x, Rows.count(0, len(x)), box=(0, 1))
    loss = nn.CrossEntropyLoss(reduction="none")
    with torch.no_grad():
        assert (loss(net(r.x_adv), y) > loss(net(noisy), y)).all()


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_the_best_value_is_that_of_the_returned_point(threat, net, points):
    x, y = points
    r = ws.attacks.APGD(replace_eps(threat, 0.2), steps=12).run(net, x, y)
    with torch.no_grad():
        value = nn.functional.cross_entropy(net(r.x_adv), y, reduction="none")
        clean = nn.functional.cross_entropy(net(x), y, reduction="none")
    assert (~r.success).any()
    assert torch.allclose(r.value.double(), value, atol=1e-6)
    assert (value >= clean).all()


def replace_eps(threat, share):
    return type(threat)(threat.eps * share)


def test_an_example_that_stops_rising_halves_its_step_and_goes_back_to_its_best_point():
    """f(z) = -|z - 0.6| in one dimension: full steps jump over the top for ever, halved steps close in on it."""

    def hat(logits, y):
        return -(logits[:, 0] - 0.6).abs()

    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    p = Problem(
        lambda z: torch.cat([z, z], 1), x, torch.zeros(1).long(), Rows.count(0, 1), threat=ws.Linf(0.5), objective=hat
    )
    seen = []
    inner = p.value_and_gradient
    p.value_and_gradient = lambda z, remember="best": (seen.append(float(z)), inner(z, remember))[1]
    _ascend(p, x.clone(), 100, 0.75)
    assert len(seen) == 101
    assert max(abs(a - b) for a, b in zip(seen[2:22], seen[1:21])) > 0.4  # before the first checkpoint: eta = 1
    assert seen[22] != seen[21]
    assert abs(seen[-1] - 0.6) < 0.05
    assert float(p.best) == pytest.approx(min(seen, key=lambda z: abs(z - 0.6)))


def written_out(net, x, y, start, eps, norm, steps, rho=0.75):
    """Every iterate of APGD for one example, step by step as the paper and the official code have it."""

    def project(z):
        delta = z - x
        if norm == "linf":
            return (x + delta.clamp(-eps, eps)).clamp(0, 1)
        return (x + delta * min(eps, float(delta.norm())) / float(delta.norm())).clamp(0, 1)

    def look(z):
        point = z.clone().requires_grad_()
        value = nn.functional.cross_entropy(net(point), y)
        return float(value.detach()), torch.autograd.grad(value, point)[0]

    z = before = best = start
    f_best, g = look(z)
    g_best, values, bests, eta, halved = g, [], [f_best], 2 * eps, True
    marks, last, f_mark, iterates = checkpoints(steps), 0, f_best, [start]
    for i in range(steps):
        u = project(z + eta * (g.sign() if norm == "linf" else g / g.norm()))
        new = project(z + 0.75 * (u - z) + 0.25 * (z - before)) if i else project(u)
        before, z = z, new
        f, g = look(z)
        values.append(f)
        iterates.append(z)
        if f > f_best:
            best, f_best, g_best = z, f, g
        bests.append(f_best)
        if i + 1 in marks:
            rises = sum(values[j] > (values[j - 1] if j else 0) for j in range(last, i + 1))
            halved = rises <= rho * (i + 1 - last) or (not halved and f_mark >= f_best)
            f_mark, last = f_best, i + 1
            if halved:
                eta, z, g = eta / 2, best, g_best
    return iterates


@pytest.mark.parametrize("threat", [ws.Linf(0.3), ws.L2(1.5)], ids=repr)
def test_every_iterate_is_that_of_the_algorithm_written_out(threat, net, points):
    x, y = points[0][:8], points[1][:8]
    p = Problem(net, x, y, Rows.count(0, 8), threat=threat, objective=CrossEntropy(), keep="last", active=False)
    start = threat.random_start(x, Rows.count(5, 8), box=(0, 1))
    seen, inner = [], p.value_and_gradient
    p.value_and_gradient = lambda z, remember="best": (seen.append(z.clone()), inner(z, remember))[1]
    _ascend(p, start, 100, 0.75)
    for i in range(8):
        expected = written_out(
            net, x[i : i + 1], y[i : i + 1], start[i : i + 1], threat.eps, threat.component_name, 100
        )
        for found, wanted in zip(seen, expected, strict=True):
            assert (found[i] - wanted[0]).abs().max() < 1e-9


def test_sparse_steps_move_the_share_with_the_largest_gradients():
    gradient = torch.tensor([[3.0, -1.0, 0.5, -4.0, 2.0], [1.0, 1.0, -9.0, 0.0, 0.0]])
    found = _sparse_signs(gradient, torch.tensor([0.4, 0.2]))
    assert torch.allclose(found[0], torch.tensor([0.5, 0, 0, -0.5, 0]))
    assert torch.allclose(found[1], torch.tensor([0.0, 0, -1, 0, 0]))


def test_larger_balls_come_first_and_count_for_nothing(net, points):
    x, y = points
    eps = 0.2
    r = ws.attacks.APGD(ws.L1(eps), steps=10, larger_eps=True).run(net, x, y)
    assert ws.L1(eps).contains(x, r.x_adv).all()
    wider = ws.attacks.APGD(ws.L1(3 * eps), steps=10).run(net, x, y)
    assert (wider.success & ~r.success).any()  # points of the larger balls would have been wins, and were not taken


def test_fewer_classes_mean_fewer_targets(linear_problem):
    model, x, y = linear_problem(0, classes=5)
    assert ws.attacks.APGDT(ws.Linf(0.01), steps=3).run(model, x, y).notes["targets"] == 4


def test_restarts_only_take_the_examples_that_still_stand(net, points):
    x, y = points
    once = ws.attacks.APGD(ws.Linf(0.02), steps=5).run(net, x, y)
    thrice = ws.attacks.APGD(ws.Linf(0.02), steps=5, restarts=3).run(net, x, y)
    assert 0 < once.success.sum() < len(x)
    assert torch.equal(once.forwards[once.success], thrice.forwards[once.success])
    assert (thrice.backwards[~thrice.success] == 3 * 6).all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ws.attacks.APGD(ws.Linf()), "radius"),
        (lambda: ws.attacks.APGD(steps=0), "steps"),
        (lambda: ws.attacks.APGD(restarts=0), "restarts"),
        (lambda: ws.attacks.APGD(rho=0.0), "rho"),
        (lambda: ws.attacks.APGD(ws.L2(1), larger_eps=True), "l1"),
        (lambda: ws.attacks.APGDT(objective=CrossEntropy()), "rank"),
        (lambda: ws.attacks.APGDT(objective=TargetedDLR(target=3)), "rank"),
        (lambda: ws.attacks.APGDT(objective=TargetedCrossEntropy(), targets=0), "targets"),
    ],
)
def test_bad_settings_are_refused(build, said):
    with pytest.raises(BadInput, match=said):
        build()


def test_too_few_classes_for_the_targeted_dlr_are_refused(linear_problem):
    model, x, y = linear_problem(0, classes=3)
    with pytest.raises(BadInput, match="at least 4"):
        ws.attacks.APGDT(ws.Linf(0.01)).run(model, x, y)
