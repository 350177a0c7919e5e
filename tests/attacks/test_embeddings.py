"""Attacks in the space of embeddings, against their formulas worked step by step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import withstand as ws
from withstand.attacks import APGD, FGSM, PGD
from withstand.attacks.embeddings import MultiTarget, PushAway, TowardsOwnClass
from withstand.errors import BadInput
from withstand.objectives import Confident
from withstand.protocols import Seen
from withstand.random import Rows, derive
from withstand.registry import parse
from withstand.threats import Linf


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4))

    def forward(self, x):
        return F.normalize(self.body(x))


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().double()
    for parameter in net.parameters():
        parameter.data.mul_(2)
    return net


@pytest.fixture(scope="module")
def batch():
    return Rows.count(0, 10).uniform((1, 6, 6), "x", dtype=torch.float64), torch.arange(10) % 5 + 40


def test_every_example_is_pushed_away_and_none_counts_as_broken(net, batch):
    x, y = batch
    r = PGD(Linf(0.05), steps=4, objective="push_away").run(net, x, y)
    clean, found = net.eval()(x).detach(), net(r.x_adv).detach()
    net.train()
    assert torch.allclose(r.value.double(), (found - clean).square().sum(1), atol=1e-6)
    noise = PGD(Linf(0.05), steps=1, step=1e-9, objective="push_away").run(net, x, y)
    assert (r.value > noise.value).all()
    assert not r.success.any()
    assert (r.cost_at_success == -1).all()
    unlabelled = PGD(Linf(0.05), steps=4, objective="push_away").run(net, x)
    assert torch.equal(unlabelled.x_adv, r.x_adv)
    assert torch.equal(unlabelled.forwards, r.forwards)


@pytest.mark.parametrize("attack", ["apgd(linf(0.05), objective=push_away)", "noise(linf(0.05), objective=push_away)"])
def test_other_searches_take_it_too(net, batch, attack):
    assert (parse(attack, "attack").run(net, *batch).value > 0).all()


def test_the_gradient_is_zero_and_no_nan_at_the_clean_embedding(net, batch):
    x, y = batch
    assert torch.equal(FGSM(Linf(0.05), objective="push_away")(net, x, y), x)
    own = Seen(x, torch.zeros(3, 4, requires_grad=True))
    value = MultiTarget(2)(own, y, {"targets": torch.zeros(3, 2, 4)})
    value.sum().backward()
    assert torch.equal(own.logits.grad, torch.zeros(3, 4))


def permutations(net, x, targets, seed=0):
    """The target embeddings [N, T, d] that the attack draws for ids 0..N-1."""
    with torch.no_grad():
        clean = net.eval()(x)
    rows = Rows(derive(seed, "pgd"), torch.arange(len(x)))
    return MultiTarget(targets).begin(Seen(x, clean), torch.zeros(len(x)).long(), rows)["targets"]


@pytest.mark.parametrize(("targets", "steps"), [(1, 1), (3, 1), (3, 4)])
def test_multi_target_steps_descend_the_square_of_the_mean_distance(net, batch, targets, steps):
    x, y = batch
    eps = 0.05
    attack = PGD(
        Linf(eps),
        steps=steps,
        step=1 / steps,
        random_start=False,
        objective=MultiTarget(targets),
        keep="last",
        active=False,
    )
    found = attack(net, x, y)
    aims, a = permutations(net, x, targets), x.clone()
    for _ in range(steps):
        a.requires_grad_(True)
        f = net(a)
        distance = torch.stack([(aims[:, q] - f + 1e-9).norm(dim=1).mean() for q in range(targets)])
        (g,) = torch.autograd.grad(distance.mean() ** 2, a)
        a = (a.detach() - eps / steps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    own = torch.stack([torch.isclose(aims[:, q], net(x)).all(1) for q in range(targets)], 1).any(1)  # 0 at the start
    net.train()
    assert torch.allclose(found[~own], a[~own])
    assert len(own) - own.sum() >= 5


def test_targets_are_permutations_that_do_not_depend_on_the_order_of_the_batch():
    logits = torch.arange(50.0)[:, None]
    rows = Rows.count(3, 50)
    drawn = MultiTarget(4).begin(Seen(logits, logits), logits[:, 0].long(), rows)["targets"][..., 0].long()
    assert drawn.shape == (50, 4)
    for q in range(4):
        assert sorted(drawn[:, q].tolist()) == list(range(50))
    assert len({tuple(drawn[:, q].tolist()) for q in range(4)}) == 4
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    mixed = logits[order]
    again = MultiTarget(4).begin(Seen(mixed, mixed), mixed[:, 0].long(), rows.take(order))["targets"][..., 0].long()
    assert torch.equal(again, drawn[order])


def test_multi_target_is_one_block_whatever_is_asked(net, batch):
    x, y = batch
    attack = PGD(Linf(0.05), steps=2, objective="multi_target(targets=2)")
    assert torch.equal(attack.run(net, x, y, block=3).x_adv, attack(net, x, y))


def test_the_own_class_pulls_together(net, batch):
    x, y = batch
    clean = net.eval()(x).detach()
    found = net(PGD(Linf(0.05), steps=4, objective="towards_own_class")(net, x, y)).detach()
    net.train()

    def spread(e):
        return sum(1 - (e[i] @ e[j]).item() for i in range(10) for j in range(10) if y[i] == y[j])

    assert spread(found) < spread(clean)
    state = TowardsOwnClass().begin(Seen(x, clean), y, Rows.count(0, 10))
    assert torch.allclose(state["mean"][2], F.normalize(clean[2] + clean[7], dim=0))


def test_the_model_is_left_as_it_was(net, batch):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    PGD(Linf(0.05), steps=2, objective=MultiTarget(2), keep="last", active=False)(net, *batch)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_what_makes_no_sense_is_refused(net, batch):
    x, y = batch
    with pytest.raises(BadInput, match="targets"):
        MultiTarget(0)
    with pytest.raises(BadInput, match="no labels"):
        PGD(Linf(0.05), objective="towards_own_class")(net, x)
    with pytest.raises(BadInput, match="goal"):
        Confident("push_away")
    with pytest.raises(BadInput, match="margin"):
        parse("carlini_wagner(objective=push_away)", "attack")(net, x, y)
    with pytest.raises(BadInput, match="goal"):
        parse("boundary(objective=push_away)", "attack")(net, x, y)
    with pytest.raises(BadInput, match="finite"):
        PGD(Linf(0.05), objective=PushAway())(lambda_nan(), x, y)
    with pytest.raises(BadInput, match="classes"):  # a classifier's labels are still checked
        APGD(ws.Linf(0.05))(net, x, y)


def lambda_nan() -> nn.Module:
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) * torch.nan

    return Broken()
