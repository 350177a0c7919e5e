import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks import APGD, APGDT, FAB, FABT, AutoAttack, Square
from withstand.errors import BadInput
from withstand.models.counting import count_passes

FAST = {"steps": 8, "queries": 40}


def names(flags):
    return {f.name.removeprefix("autoattack/") for f in flags}


@pytest.mark.parametrize("eps", [0.02, 0.06, 0.15])
def test_linear_models_get_their_exact_robust_accuracy(eps, linear_problem, withstands):
    for seed in range(3):
        model, x, y = linear_problem(seed, n=40)
        r = AutoAttack(ws.Linf(eps), steps=20, queries=40).run(model, x, y)
        exact = withstands(model, x, y, eps)
        assert torch.equal(~r.success, exact)
        accuracy = list(r.notes["robust_accuracy"].values())
        assert accuracy[-1] == pytest.approx(float(exact.double().mean()))
        assert accuracy == sorted(accuracy, reverse=True)


def test_the_versions_are_the_released_ones():
    made = AutoAttack(ws.L2(0.5)).attacks(10)
    assert list(made) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert made["square"] == Square(ws.L2(0.5), 5000, rescale=False)
    assert made["apgd-t"] == APGDT(ws.L2(0.5), targets=9, steps=100)
    assert made["fab-t"] == FABT(ws.L2(0.5), targets=9, steps=100)
    plus = AutoAttack(version="plus").attacks(10)
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [plus[k].restarts for k in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    assert isinstance(plus["fab"], FAB)
    rand = AutoAttack(version="rand").attacks(10)
    assert list(rand) == ["apgd-ce", "apgd-dlr"]
    assert all(a.views[0].samples == 20 and isinstance(a, APGD) for a in rand.values())
    sparse = AutoAttack(ws.L1(12)).attacks(10)
    assert list(sparse) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert sparse["square"] == Square(ws.L1(12), 5000, rescale=False)
    assert (sparse["apgd-ce"].restarts, sparse["apgd-ce"].larger_eps, sparse["apgd-t"].targets) == (5, True, 5)


@pytest.mark.parametrize("version", ["standard", "plus"])
@pytest.mark.parametrize("threat", [ws.Linf(0.05), ws.L2(0.2), ws.L1(0.8)], ids=repr)
def test_each_attack_sees_only_what_still_stands(version, threat, net, points, monkeypatch):
    x, y = points
    seen, inner = [], ws.attacks.Attack.run

    def run(attack, model, x, y=None, **context):
        found = inner(attack, model, x, y, **context)
        if attack.component_name != "look":
            seen.append((len(x), int(found.success.sum())))
        return found

    monkeypatch.setattr(ws.attacks.Attack, "run", run)
    monkeypatch.setattr("withstand.attacks.autoattack._Look.component_name", "look", raising=False)
    r = AutoAttack(threat, version=version, **FAST).run(net, x, y)
    left = len(x)
    for size, broken in seen:
        assert size == left
        left -= broken
    assert left == int((~r.success).sum())
    with torch.no_grad():
        assert torch.equal(net(r.x_adv).argmax(1) != y, r.success)
    assert torch.equal(r.x_adv[~r.success], x[~r.success])
    assert threat.contains(x, r.x_adv).all()
    assert torch.equal(r.notes["broken_by"] >= 0, r.success)


def test_passes_are_counted_to_the_last_one(net, points):
    x, y = points
    y = y.clone()
    y[0] = (y[0] + 1) % 5
    with count_passes(net) as counted:
        r = AutoAttack(ws.Linf(0.05), **FAST).run(net, x, y)
    looks = 4 * len(x)  # the check for randomised models
    assert int(r.forwards.sum()) + looks == counted.forward_examples
    assert int(r.backwards.sum()) == counted.backward_examples
    assert r.cost_at_success[0] == 1
    assert (r.cost_at_success[r.success] <= (r.forwards + r.backwards)[r.success]).all()


def test_fewer_classes_mean_fewer_targets_and_two_classes_the_margin(linear_problem, withstands):
    for classes in (2, 3, 4, 10):
        model, x, y = linear_problem(1, n=30, classes=classes)
        r = AutoAttack(ws.Linf(0.1), **FAST).run(model, x, y)
        assert r.notes["targets"] == classes - 1
        assert ("few_classes" in names(r.notes["flags"])) == (classes < 10)
        assert torch.equal(~r.success, withstands(model, x, y, 0.1))


class Odd(nn.Module):
    """A network with one property that makes robust accuracy doubtful."""

    def __init__(self, net, kind):
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, x):
        if self.kind == "dynamic":
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.net(point).sum(), point)
            return self.net(x - 0.001 * gradient)
        z = self.net(x)
        if self.kind == "probabilities":
            return z.softmax(1)
        if self.kind == "randomised":
            return z + 0.1 * torch.randn_like(z)
        if self.kind in ("zero_gradient", "square_wins"):
            return (z * 4).round() + 0 * z
        return z


@pytest.mark.parametrize("kind", ["dynamic", "probabilities", "randomised", "zero_gradient", "square_wins"])
def test_the_official_checks_raise_their_flags(kind, net, points):
    x, _ = points
    odd = Odd(net, kind)
    y = net(x).argmax(1)
    r = AutoAttack(ws.Linf(0.06), steps=4, queries=200).run(odd, x, y)
    assert kind in names(r.notes["flags"])
    assert names(AutoAttack(ws.Linf(0.06), steps=20, queries=40).run(net, x, y).notes["flags"]) <= {"few_classes"}


def test_randomised_models_are_attacked_through_their_mean_gradient(net, points):
    x, y = points
    r = AutoAttack(ws.Linf(0.05), version="rand", steps=4).run(Odd(net, "randomised"), x, y)
    assert "randomised" not in names(r.notes["flags"])
    alive = r.notes["broken_by"] == -1
    assert alive.any()
    assert r.backwards[alive].max() == 2 * 5 * 20


def test_the_model_itself_has_the_last_word(net, points, monkeypatch):
    """On a copy that is wrong about everything every point is a find, and the model confirms none of them."""
    x, y = points
    monkeypatch.setattr("withstand.attacks.autoattack.prepared", lambda call, module, x: lambda z: -net(z))
    r = AutoAttack(ws.Linf(1e-6), **FAST).run(net, x, y)
    assert not r.success.any()
    assert set(r.notes["robust_accuracy"].values()) == {1.0}


def test_radii_may_differ_by_example(net, points):
    x, y = points
    eps = torch.linspace(0.001, 0.1, len(x), dtype=torch.float64)
    r = AutoAttack(ws.Linf(eps), **FAST).run(net, x, y)
    assert ws.Linf(eps).contains(x, r.x_adv).all()
    assert r.success[-4:].all()
    assert not r.success[:4].any()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: AutoAttack(ws.Linf()), "radius"),
        (lambda: AutoAttack(ws.L0(3)), "linf, l2 or l1"),
        (lambda: AutoAttack(version="fast"), "standard"),
        (lambda: AutoAttack(keep="last", active=False), "keep"),
        (lambda: AutoAttack(steps=0), "steps"),
        (lambda: AutoAttack(queries=-1), "queries"),
    ],
)
def test_bad_settings_are_refused(build, said):
    with pytest.raises(BadInput, match=said):
        build()
