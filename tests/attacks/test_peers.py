"""Agreement with other libraries where both do the same by definition."""

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.random import Rows

LAST = {"keep": "last", "active": False}


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
        )
    x = Rows.count(0, 20).uniform((3, 16, 16), "x")
    return net.eval(), x, torch.arange(20) % 10


@pytest.mark.peers
def test_fgsm_and_pgd_agree_with_torchattacks_to_the_last_pixel(case):
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = case
    eps = 8 / 255
    theirs = torchattacks.FGSM(net, eps=eps)(x, y)
    assert (ws.attacks.FGSM(ws.Linf(eps), **LAST)(net, x, y) - theirs).abs().max() < 1e-5
    for steps in (1, 7):
        theirs = torchattacks.PGD(net, eps=eps, alpha=2 / 255, steps=steps, random_start=False)(x, y)
        ours = ws.attacks.PGD(ws.Linf(eps), steps=steps, step=0.25, random_start=False, **LAST)(net, x, y)
        assert (ours - theirs).abs().max() < 1e-5
        assert (ours - x).abs().max() > 1 / 255


@pytest.mark.peers
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_apgd_breaks_what_the_original_breaks(norm, case):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    net, x, _ = case
    with torch.no_grad():
        y = net(x).argmax(1)
    eps = {"Linf": 0.004, "L2": 0.06}[norm]
    attack = base.APGDAttack(net, n_iter=30, norm=norm, eps=eps, seed=0, device="cpu")
    with torch.no_grad():
        theirs = net(attack.perturb(x, y)).argmax(1) != y
    ours = ws.attacks.APGD(getattr(ws, norm)(eps), steps=30).run(net, x, y).success
    assert 0 < int(theirs.sum()) < len(x)
    assert int((ours != theirs).sum()) <= 1


@pytest.mark.peers
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_fab_finds_the_distances_of_the_original(norm, case):
    fab = pytest.importorskip("pyautoattack.fab_pt")
    net, x, _ = case
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = fab.FABAttack_PT(net, norm=norm, n_iter=10, targeted=True, device="cpu")
    attack.target_class = 2
    theirs = attack.attack_single_run(x, y, is_targeted=True)
    threat = getattr(ws, norm)()
    with torch.no_grad():
        found = net(theirs).argmax(1) != y
    ours = ws.attacks.FABT(threat, targets=1, steps=10).run(net, x, y)
    assert torch.equal(ours.success, found)
    assert found.float().mean() > 0.8
    expected = threat.distance(x, theirs)[found]
    assert torch.allclose(ours.distance[found], expected, rtol=1e-3)
