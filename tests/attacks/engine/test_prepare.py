import copy

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks.engine.prepare import _agree, prepared
from withstand.random import Rows


class Net(nn.Module):
    """Two normalised convolutions, one of them without a norm of its own in between; `twist` breaks what folding assumes."""

    def __init__(self, twist: str = "") -> None:
        super().__init__()
        self.twist = twist
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        for norm in (self.norm1, self.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        if x.shape[1] != 3:  # control flow that a tracer could not follow
            raise ValueError
        first = self.conv1(x)
        z = self.norm1(first).relu()
        if self.twist == "used twice":
            z = z + first
        second = self.conv2(z)
        z = self.norm2(second).relu()
        if self.twist == "called twice":
            z = self.norm2(self.conv2(z)).relu()
        if self.twist == "random":
            z = z + 1e-3 * torch.randn_like(z)
        return self.head(z.mean((2, 3)))


def made(twist: str = "") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(twist).eval()


X = Rows.count(0, 6).uniform((3, 10, 10), "x")


def test_the_copy_has_no_norms_and_the_same_logits_and_gradients():
    net = made()
    twin = prepared(net, net, X)
    assert twin is not None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    found = []
    for model in (net, twin):
        point = X.clone().requires_grad_()
        logits = model(point)
        found.append((logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), point)[0]))
    for a, b in zip(*found):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()


@pytest.mark.parametrize("twist", ["used twice", "called twice", "random"])
def test_a_model_that_uses_its_parts_otherwise_is_never_folded_wrongly(twist):
    net = made(twist)
    twin = prepared(net, net, X)
    if twin is not None:
        assert torch.allclose(twin(X), net(X), atol=1e-5)
    assert twin is None or twist == "called twice"


def test_models_with_hooks_without_norms_or_that_cannot_be_copied_are_left_alone():
    net = made()
    net.conv1.register_forward_hook(lambda *_: None)
    assert prepared(net, net, X) is None
    assert prepared(nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3), X) is None
    assert prepared(lambda z: z, None, X) is None

    class Locked(Net):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    locked = Locked().eval()
    assert prepared(locked, locked, X) is None


def test_the_call_counts_not_the_module_behind_it():
    net = made()
    assert prepared(lambda z: net(z) * 2, net, X) is None


@pytest.mark.parametrize(("weight", "agree"), [(1e-3, True), (0.1, False)])
def test_a_unit_within_rounding_of_its_kink_is_no_reason_to_refuse_a_copy(weight, agree):
    """The two agree on the logits to 1e-8, and differ in the gradient by the weight of one unit that turns on."""
    x = Rows.count(0, 4).uniform((3,), "x")

    def at(shift):
        return lambda z: torch.cat([z, weight * torch.relu(z[:, :1] - x[:, :1] + shift)], 1)

    assert _agree(at(0.0), at(1e-8), x) is agree  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({}, True),
        ({"steps": 9}, False),
        ({"steps": 5, "restarts": 2}, True),
        ({"keep": "last", "active": False}, False),
    ],
)
def test_pgd_searches_a_copy_where_it_pays(settings, copies, monkeypatch):
    from withstand.attacks.engine import run

    asked, net = [], made()
    monkeypatch.setattr(run, "prepared", lambda call, module, x: asked.append(1) or prepared(call, module, x))
    attack = ws.attacks.PGD(ws.Linf(0.02), random_start=False, **settings)
    found = attack.run(net, X, net(X).argmax(1))
    assert bool(asked) is copies
    monkeypatch.setattr(run, "prepared", lambda call, module, x: None)
    alone = attack.run(net, X, net(X).argmax(1))
    assert torch.equal(found.success, alone.success)
    assert torch.allclose(found.x_adv, alone.x_adv, atol=1e-5)


def test_later_changes_of_the_model_are_seen():
    net = made()
    attack = ws.attacks.APGD(ws.Linf(0.02), steps=5)
    y = net(X).argmax(1)
    before = attack(net, X, y)
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-1)
    other = attack(net, X, net(X).argmax(1))
    net.load_state_dict(state)
    assert not torch.equal(before, other)
    assert torch.equal(before, attack(net, X, y))


def test_the_model_itself_judges_what_was_found_on_its_copy(monkeypatch):
    """A copy that is wrong about everything leads to no success."""
    from withstand.attacks.engine import run

    net = made()
    y = net(X).argmax(1)
    monkeypatch.setattr(run, "prepared", lambda call, module, x: lambda z: -net(z))
    r = ws.attacks.APGD(ws.Linf(1e-6), steps=2).run(net, X, y)
    assert not r.success.any()


def test_a_call_that_rounds_to_8_bits_before_the_module_is_seen_even_on_8_bit_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3)).eval()
    images = (X * 255).round() / 255
    assert prepared(net, net, images) is not None

    def rounding(z):
        return net(z + ((z * 255).round() / 255 - z).detach())

    assert prepared(rounding, net, images) is None


class Shifted(nn.Module):
    """A copy that finds one class likelier than the model does, so that what breaks it does not yet break the model."""

    def __init__(self, net, y, shift):
        super().__init__()
        self.net, self.shift = net, shift * nn.functional.one_hot(y[0], 5)

    def forward(self, z):
        return self.net(z) - self.shift


@pytest.mark.parametrize(
    "attack", [ws.attacks.APGD(ws.Linf(0.1), steps=20), ws.attacks.FAB(ws.L2(), steps=10)], ids=repr
)
def test_a_point_that_the_model_does_not_confirm_is_searched_again_on_the_model(attack, net, points, monkeypatch):
    from withstand.attacks.engine import run

    x, y = points
    monkeypatch.setattr(run, "prepared", lambda call, module, x: None)
    alone = attack.run(net, x, y)
    twin = Shifted(net, y, 50.0)  # breaks on the clean point itself: no point of it holds
    monkeypatch.setattr(run, "prepared", lambda call, module, x: twin)
    found = attack.run(net, x, y)
    same = y == y[0]
    assert alone.success[same].any()
    assert torch.equal(found.success[same], alone.success[same])
    assert torch.allclose(found.x_adv[same], alone.x_adv[same], atol=1e-9)
    assert (found.forwards[same] > alone.forwards[same]).all()
    with torch.no_grad():
        assert torch.equal((net(found.x_adv).argmax(1) != y) & found.success, found.success)


def test_autoattack_searches_the_model_itself_where_the_copy_deceived(net, points, monkeypatch):
    from withstand.attacks import autoattack
    from withstand.attacks.engine import run

    x, y = points
    attack = ws.attacks.AutoAttack(ws.Linf(0.05), steps=10, queries=20)
    monkeypatch.setattr(run, "prepared", lambda *_: None)
    monkeypatch.setattr(autoattack, "prepared", lambda *_: None)
    alone = attack.run(net, x, y)
    monkeypatch.setattr(autoattack, "prepared", lambda *_: Shifted(net, y, 50.0))
    found = attack.run(net, x, y)
    same = y == y[0]
    assert alone.success[same].any()
    assert torch.equal(found.success[same], alone.success[same])
    assert torch.allclose(found.x_adv[same], alone.x_adv[same], atol=1e-9)
