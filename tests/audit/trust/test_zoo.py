"""Every broken defence is flagged for the right reason, and no sound model is flagged at all."""

import pytest
import torch

from withstand.models import TorchTarget
from withstand.protocols import Space

from . import zoo

QUICK = f"trust(linf({zoo.RADIUS}), examples=40, queries=100)"


def raised(done):
    return {flag.name: flag for flag in done.findings.flags if flag.level != "pass"}


def flags_of(run, arrays, module, settings=f"trust(linf({zoo.RADIUS}))", start=0, surrogate=None):
    """surrogate: a network whose points are tried as well, on 64 examples."""
    *_, x, y = zoo.digits()
    data = arrays(x[start:], y[start:])
    target, others = TorchTarget(module, "zoo", data.space), {}
    if surrogate is not None:
        given = {"surrogate": TorchTarget(surrogate, "surrogate", data.space)}
        transfer = f"transfer({settings[settings.index('(') + 1 : settings.index(')')]}))"
        others = {"transfer": run(transfer, target, arrays(data.x[:64], data.y[:64]), given).table}
    return raised(run(settings, target, data, others=others))


@pytest.mark.parametrize("defence", zoo.DEFENCES)
def test_a_broken_defence_is_flagged(defence, run, arrays, plain):
    make, expected = zoo.DEFENCES[defence]
    surrogate = zoo.plain(5) if "transfer beats white box" in expected else None
    found = flags_of(run, arrays, make(plain.model), QUICK, surrogate=surrogate)
    assert expected <= found.keys(), {name: flag.evidence for name, flag in found.items()}
    assert all(found[name].advice and found[name].explanation for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("defence", zoo.DEFENCES)
def test_a_broken_defence_is_flagged_whatever_the_seed(defence, seed, run, arrays):
    make, expected = zoo.DEFENCES[defence]
    base = zoo.winners(seed) if defence == "k winners take all" else make(zoo.plain(seed))
    surrogate = zoo.plain(seed + 10) if "transfer beats white box" in expected else None
    found = flags_of(run, arrays, base, surrogate=surrogate)
    assert expected <= found.keys(), {name: flag.evidence for name, flag in found.items()}


@pytest.mark.parametrize("settings", [QUICK, "trust(l2(0.8), examples=48, queries=100)"])
def test_no_sound_model_is_flagged(settings, run, digits, plain, hardened):
    for target in (plain, hardened):
        found = raised(run(settings, target, digits))
        assert not found, {name: flag.evidence for name, flag in found.items()}


def test_no_sound_model_is_flagged_for_what_transfers_to_it(run, arrays):
    for make in (zoo.plain, zoo.hardened):
        found = flags_of(run, arrays, make(1), QUICK, surrogate=zoo.plain(5))
        assert not found, {name: flag.evidence for name, flag in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("threat", ["linf(0.03)", "linf(0.15)", "linf(0.3)", "l2(0.3)", "l2(1.0)"])
def test_no_sound_model_is_flagged_whatever_the_seed_and_the_radius(threat, seed, run, arrays):
    for make in (zoo.plain, zoo.hardened):
        found = flags_of(run, arrays, make(seed), f"trust({threat})", start=64 * seed)
        assert not found, {name: flag.evidence for name, flag in found.items()}


def test_noise_beats_an_attack_without_a_gradient(run, digits, plain):
    hooked = TorchTarget(zoo.Before(zoo.gradient_times(0.0), plain.model), "hooked", plain.space)
    assert "noise beats attack" in raised(run("trust(linf(0.4), examples=40)", hooked, digits))
    assert not raised(run("trust(linf(0.4), examples=40)", plain, digits))


CIFAR, MNIST = "cifar10", "mnist"
WEIGHTS = [
    ("cnn_a", "cifar10_cnn_a_adv2.pth", CIFAR, 2 / 255),
    ("cnn_a", "cifar10_cnn_a_adv2.pth", CIFAR, 8 / 255),
    ("cnn_a", "cifar10_cnn_a_adv4.pth", CIFAR, 4 / 255),
    ("cnn_a", "cifar10_cnn_a_mix4.pth", CIFAR, 4 / 255),
    ("cnn_a_mnist", "mnist_cnn_a_adv.pth", MNIST, 0.3),
    ("cnn_a_mnist", "mnist_cnn_pgd.pth", MNIST, 0.1),
    ("cnn_a_mnist", "mnist_cnn_pgd.pth", MNIST, 0.3),
    pytest.param("cifar_resnet4b", "cifar10_resnet4b_adv.pth", CIFAR, 2 / 255, marks=pytest.mark.slow),
    pytest.param("cifar_resnet20", "cifar10_resnet20.pth", CIFAR, 0.5 / 255, marks=pytest.mark.slow),
    pytest.param("cifar_resnet20", "cifar10_resnet20.pth", CIFAR, 8 / 255, marks=pytest.mark.slow),
    pytest.param("cifar_resnet56", "cifar10_resnet56.pth", CIFAR, 1 / 255, marks=pytest.mark.slow),
]


@pytest.mark.data
@pytest.mark.parametrize(("network", "weights", "data", "eps"), WEIGHTS)
def test_no_published_network_is_flagged(network, weights, data, eps, run, data_root):
    from withstand.data import load_data
    from withstand.models import load_model

    target = load_model(f"zoo:{network}", weights=data_root / "weights" / weights)
    images = load_data(data, root=data_root, split="test", limit=48)
    found = raised(run(f"trust(linf({eps}), examples=48)", target, images))
    assert not found, {name: flag.evidence for name, flag in found.items()}


class Scores:
    """The same network seen from outside."""

    name, task, access, module = "scores", "classification", frozenset({"scores", "decision"}), None

    def __init__(self, network):
        self.network, self.space = network, Space((1, 8, 8), (0.0, 1.0), 10)

    def __call__(self, x):
        with torch.no_grad():
            return self.network(x)

    def fingerprint(self):
        return "scores"


def test_a_black_box_gets_the_indicators_that_need_no_gradient(run, digits, plain):
    done = run(QUICK, Scores(plain.model), digits)
    names = {flag.name for flag in done.findings.flags}
    assert names - {"rarely right"} == {  # that one is the documentation's example, where it has run before
        "non deterministic model", "probability outputs", "saturated loss", "success does not rise with eps",
    }  # fmt: skip
    assert not raised(done)
    assert done.ctx.cost.get("backwards", 0) == 0


def test_a_black_box_that_answers_at_random_or_in_probabilities_is_flagged(run, digits, plain):
    noisy, soft = zoo.Before(zoo.noise, plain.model), zoo.After(lambda z: z.softmax(1), plain.model)
    assert "non deterministic model" in raised(run(QUICK, Scores(noisy), digits))
    assert "probability outputs" in raised(run(QUICK, Scores(soft), digits))
