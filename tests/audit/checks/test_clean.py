import numpy as np
import pytest
import torch

from withstand.errors import BadInput
from withstand.metrics import calibration_error
from withstand.protocols import Space
from withstand.registry import parse


@pytest.fixture
def outputs(plain, digits):
    with torch.no_grad():
        return plain.model(digits.x).double().softmax(1).numpy()


def test_figures_equal_their_definitions(run, plain, digits, outputs):
    done = run("clean(bins=10)", plain, digits)
    y, n = digits.y.numpy(), len(digits)
    right = outputs.argmax(1) == y
    assert done.metric("clean_accuracy").value == pytest.approx(right.mean())
    assert done.metric("nll").value == pytest.approx(-np.log(outputs[np.arange(n), y]).mean(), rel=1e-4)
    assert done.metric("brier").value == pytest.approx(((outputs - np.eye(10)[y]) ** 2).sum(1).mean(), rel=1e-4)
    ece = calibration_error(outputs.max(1), right, 10)
    assert done.metric("ece", bins=10).value == pytest.approx(ece, abs=1e-5)


def test_reliability_holds_each_filled_bin(run, plain, digits, outputs):
    data = run("clean(bins=5)", plain, digits).findings.figures[0].data
    sure, right = outputs.max(1), outputs.argmax(1) == digits.y.numpy()
    for x, y in zip(data["x"], data["series"][0]["y"]):
        b = int(np.ceil(x * 5)) - 1
        inside = (sure > b / 5) & (sure <= (b + 1) / 5)
        assert x == pytest.approx(sure[inside].mean(), abs=1e-5)
        assert y == pytest.approx(right[inside].mean())


def test_a_target_that_only_decides_gets_its_accuracy(run, plain, digits):
    class Decider:
        name, task, module, access = "decider", "classification", None, frozenset({"decision"})
        space = Space((1, 8, 8), (0.0, 1.0), 10)

        def __call__(self, x):
            return plain.model(x).argmax(1)

        def fingerprint(self):
            return ""

    assert parse("clean", "check").access <= Decider.access
    done = run("clean", Decider(), digits)
    assert [m.name for m in done.findings.metrics] == ["clean_accuracy"]
    assert done.metric("clean_accuracy").value == run("clean", plain, digits).metric("clean_accuracy").value


def test_bins_are_checked():
    with pytest.raises(BadInput, match="bins"):
        parse("clean(bins=0)")
