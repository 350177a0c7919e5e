import pytest
import torch
from torch import nn

import withstand as ws
from withstand.reproductions import tpa as system
from withstand.reproductions.runner import judge

TINY = {"images": {"resnet20": 3, "lenet": 4, "cnn_a_adv2": 4}, "steps": 2, "samples": 1}


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10)).eval()


@pytest.fixture(scope="module")
def nets():
    with torch.random.fork_rng():
        return {name: net(i) for i, name in enumerate(system.NETWORKS)}


@pytest.fixture(scope="module")
def rows(nets):
    """The whole measurement in small, on made-up networks and images."""
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", TINY)
    patch.setattr(system, "networks", lambda: nets)
    x = ws.Rows.count(0, 4).uniform((3, 32, 32), "x")
    patch.setattr(system, "common", lambda nets, n, seed: (x[:n], torch.arange(n)))
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_transfer_success_is_the_share_of_the_other_networks_that_are_wrong(rows):
    found = {(r["arm"], r["metric"]): r["examples"] for r in rows}
    for arm in {arm for arm, _ in found}:
        surrogate = arm.partition(" ")[0]
        others = [found[arm, f"on {name}"] for name in system.NETWORKS if name != surrogate]
        assert len(others) == 6
        assert (arm, f"on {surrogate}") not in found
        expected = [sum(bit == "1" for bit in bits) / 6 for bits in zip(*others, strict=True)]
        assert found[arm, "transfer_success"] == pytest.approx(expected, abs=1e-4)


def test_arms_take_the_passes_that_their_names_say(rows):
    passes = {r["arm"]: r["passes"] for r in rows if r["metric"] == "transfer_success"}
    steps, samples = TINY["steps"], TINY["samples"]
    for arm, number in passes.items():
        name = arm.partition(" / ")[2]
        single = name in ("pgd", "mi", "di")
        expected = steps if single else steps * 3 if name == "tpa_unpenalised" else steps * (1 + 2 * samples)
        assert number == expected, arm


def test_points_are_judged_as_images_of_eight_bits(nets):
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return nets["lenet"](x)

    x = ws.Rows.count(1, 3).uniform((3, 32, 32), "x")
    attack = system.attacks("8", 2, 1, "resnet20")["mi"]
    system.judged("arm", attack, "resnet20", {**nets, "lenet": Watch()}, x, torch.arange(3), 0)
    (z,) = seen
    torch.testing.assert_close(z * 255, (z * 255).round(), atol=1e-4, rtol=0)
    assert 1 / 255 < float((z - x).abs().max()) < 2.2 / 255


def test_the_control_without_penalty_is_sign_momentum_alone(nets):
    x, y = ws.Rows.count(2, 3).uniform((3, 32, 32), "x"), torch.arange(3)
    made = system.attacks("8", 3, 2, "lenet")
    z = x.clone()
    velocity = torch.zeros_like(x)
    for _ in range(3):
        z.requires_grad_(True)
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(nets["lenet"](z), y), z)
        velocity = g.sign() + 0.9 * velocity
        z = (x + (z.detach() + 0.8 / 255 * velocity - x).clamp(-8 / 255, 8 / 255)).clamp(0, 1)
    torch.testing.assert_close(made["tpa_unpenalised"](nets["lenet"], x, y), z, atol=1e-5, rtol=0)


def test_images_are_those_that_all_get_right_and_others_for_each_seed(nets, monkeypatch):
    x = ws.Rows.count(3, 1200).uniform((3, 32, 32), "x", 0, 0.0, 1.0)
    with torch.no_grad():
        guesses = torch.stack([net(x).argmax(1) for net in nets.values()])
    y = guesses.mode(0).values
    data = ws.data.from_arrays(x, y, classes=10)
    monkeypatch.setattr(system, "load_data", lambda *_, **__: data)
    some = dict(list(nets.items())[:2])
    right = (guesses[:2] == y).all(0)
    (first, labels), (second, _) = (system.common(some, 5, seed) for seed in (0, 1))
    assert torch.equal(torch.cat([first, second]), x[right][:10])
    assert torch.equal(labels, y[right][:5])


@pytest.mark.data
def test_the_networks_load(data_root):
    if not (data_root / "weights" / "cifar10_resnet20.pth").is_file():
        pytest.skip(f"no weights in {data_root}")
    assert set(system.networks()) == set(system.NETWORKS)
