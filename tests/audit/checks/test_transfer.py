"""What is transferred, and what counts as withstood."""

import numpy as np
import pytest
import torch
from torch import nn

from withstand.errors import BadInput
from withstand.models.target import TorchTarget
from withstand.protocols import Space
from withstand.registry import parse

CHECK = "transfer(linf(0.2), attack=pgd(steps=4))"


@pytest.fixture
def few(digits64, arrays):
    return arrays(digits64.x[:30], digits64.y[:30], "few")


@pytest.fixture
def done(run, plain64, few, surrogate):
    return run(CHECK, plain64, few, {"surrogate": surrogate}, seed=2)


@pytest.fixture
def surrogate():
    """Another network of other weights."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10)).double()
    return TorchTarget(net.requires_grad_(False), "surrogate", Space((1, 8, 8), (0.0, 1.0), 10))


def test_outcomes_are_those_of_the_surrogates_points(done, plain64, few, surrogate):
    attack = parse(CHECK, "check").chosen
    moved = attack(surrogate, few.x, few.y, seed=2, ids=few.ids)
    stood = (plain64(few.x).argmax(1) == few.y) & (plain64(moved).argmax(1) == few.y)
    rows = [r for r in done.rows if "of" not in r.condition]
    assert [r.outcome for r in rows] == stood.tolist()
    assert 0 < stood.sum() < 30
    fooled = (surrogate(moved).argmax(1) != few.y).double()
    assert [r.value for r in done.rows if "of" in r.condition] == fooled.tolist()
    assert done.metric("transfer_accuracy").value == np.mean(stood.tolist())
    assert done.metric("surrogate_fooled").value == pytest.approx(float(fooled.mean()))
    np.testing.assert_allclose([r.distance for r in rows], (moved - few.x).abs().amax((1, 2, 3)), atol=1e-12)


def test_the_audited_model_is_not_asked_for_gradients(run, few, surrogate, plain64):
    class Closed:
        name, task, module, space = "closed", "classification", None, Space((1, 8, 8), (0.0, 1.0), 10)
        access = frozenset({"decision"})

        def __call__(self, x):
            assert not x.requires_grad
            return plain64(x)

        def fingerprint(self):
            return "closed"

    run(CHECK, Closed(), few, {"surrogate": surrogate})


def test_the_attack_runs_to_its_last_iterate():
    chosen = parse("transfer(linf(0.1))", "check").chosen
    assert (chosen.keep, chosen.active) == ("last", False)
    assert "momentum" in repr(chosen)


def test_a_surrogate_with_other_classes_is_refused(run, plain64, few):
    other = TorchTarget(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)).double(), "seven", Space((1, 8, 8), (0, 1), 7))
    with pytest.raises(BadInput, match="a model with 7 classes"):
        run(CHECK, plain64, few, {"surrogate": other})
