"""RobustBench's protocol."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks.autoattack import AutoAttack
from withstand.audit import robustbench
from withstand.audit.robustbench import robustbench_eval
from withstand.errors import BadInput, WithstandError
from withstand.metrics import wilson
from withstand.models import as_target

EPS = "linf(16/255)"


def short(threat):
    """AutoAttack's four attacks, with a tenth of the steps."""
    return AutoAttack(threat, steps=10, queries=300)


@pytest.fixture(scope="module")
def digits():
    return ws.load_data("digits", limit=10)


def centres() -> nn.Module:
    """Nearest class centre of the digits, as a linear layer."""
    data = ws.load_data("digits", split="train").batch(range(600))
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        c = torch.stack([data.x.flatten(1)[data.y == k].mean(0) for k in range(10)])
        layer.weight.copy_(10 * c)
        layer.bias.copy_(-5 * (c * c).sum(1))
    return nn.Sequential(nn.Flatten(), layer).eval()


def test_the_record_says_what_autoattack_finds(digits, tmp_path, monkeypatch):
    model = centres()
    monkeypatch.setattr(robustbench, "AutoAttack", short)
    record = robustbench_eval(model, digits, EPS, out=tmp_path / "o", about={"venue": "nowhere"})
    batch = digits.batch(range(10))
    found = short(ws.Linf(16 / 255)).run(model, batch.x, batch.y, ids=batch.ids)
    robust, clean = int((~found.success).sum()), int((model(batch.x).argmax(1) == batch.y).sum())
    assert 0 < robust < 10
    assert record["autoattack_acc"] == f"{100 * robust / 10:.2f}"
    assert record["clean_acc"] == f"{100 * clean / 10:.2f}"
    assert record["intervals"]["autoattack_acc"] == [round(100 * v, 2) for v in wilson(robust, 10)]
    assert record["eps"] == "16/255"
    assert (record["dataset"], record["threat_model"], record["venue"]) == ("digits", "Linf", "nowhere")
    assert record["protocol"] == "no leaderboard for digits under this threat"
    assert list(record["accuracy_after"]) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert record["accuracy_after"]["square"] == pytest.approx(float(record["autoattack_acc"]), abs=0.01)
    assert json.loads((tmp_path / "o" / "robustbench.json").read_text()) == record
    # the fields of RobustBench's own files
    assert {"link", "name", "authors", "additional_data", "number_forward_passes", "reported"} <= set(record)


def test_shards_and_a_stop_change_nothing(digits, tmp_path, monkeypatch):
    model = centres()
    monkeypatch.setattr(robustbench, "AutoAttack", short)
    whole = robustbench_eval(model, digits, EPS, out=tmp_path / "whole")
    monkeypatch.setattr(robustbench, "_SHARD", 5)
    done = []

    def stop(name, check, at, total):
        done.append(at)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        robustbench_eval(model, digits, EPS, out=tmp_path / "parts", report=stop)
    parts = robustbench_eval(model, digits, EPS, out=tmp_path / "parts")
    assert done == [5, 10]
    for record in (whole, parts):
        record.pop("passes")
    assert parts == whole
    with pytest.raises(BadInput, match="holds another run"):
        robustbench_eval(model, digits, "linf(8/255)", out=tmp_path / "parts")


class Noisy(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] + torch.randn(len(x), 10)


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 10))

    def forward(self, x):
        return (x.flatten(1) > 0.5).float() @ self.weight


class Broken(nn.Module):
    """Finite logits, no finite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = centres()

    def forward(self, x):
        return self.net(x) + (0 * x.flatten(1)[:, :1]).sqrt()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": centres().train()}, "train mode"),
        ({"model": {"mine": centres().train()}}, "mine in train mode"),
        ({"model": as_target(centres().train())}, "train mode"),
        ({"model": {"a": centres(), "b": centres()}}, "2 models"),
        ({"n": 2.5}, "n: got 2.5"),
        ({"n": True}, "n: got True"),
        ({"model": Noisy().eval()}, "two passes of the same images differ"),
        ({"model": Blind().eval()}, "gradient with respect to the images is zero"),
        ({"model": Broken().eval()}, "gradient with respect to the images has NaN"),
        ({"threat": "l1(3.0)"}, "linf or l2"),
        ({"threat": "linf(8)"}, "8/255 is meant"),
        ({"seed": "x"}, "seed: got 'x'"),
        ({"block": 0}, "block: got 0"),
        ({"about": {"paper": "x"}}, "about: there is no 'paper'"),
        ({"n": 11}, "n: got 11"),
        (
            {"data": (np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype("float32"), np.arange(4))},
            "Undo the normal",
        ),
    ],
)
def test_what_the_protocol_does_not_admit_is_refused(digits, tmp_path, change, said):
    asked = {"model": centres(), "data": digits, "threat": EPS, **change}
    with pytest.raises(WithstandError, match=said):
        robustbench_eval(asked.pop("model"), asked.pop("data"), asked.pop("threat"), out=tmp_path / "o", **asked)
    assert not (tmp_path / "o").exists()


def test_the_protocol_says_how_a_run_differs_from_the_leaderboard():
    def said(name, threat, n, held=10_000, positions=None):
        positions = np.arange(held) if positions is None else positions
        return robustbench._protocol(SimpleNamespace(name=name, source=range(held), positions=positions), threat, n)

    assert said("cifar10", ws.Linf(8 / 255), 10_000) == "standard"
    assert said("cifar10", ws.L2(0.5), 1000) == "subset-1000 instead of 10,000 images"
    assert said("cifar100", ws.Linf(4 / 255), 10_000) == "eps 4/255 instead of 8/255"
    assert "not the fixed list" in said("imagenet", ws.Linf(4 / 255), 5000)
    # the first 10,000 of the training part, and a random order
    assert "a set of 50,000, not of the test part" in said("cifar10", ws.Linf(8 / 255), 10_000, 50_000)
    assert said("cifar10", ws.L2(0.5), 3, positions=[5, 1, 2]).endswith("not the first images")
    assert robustbench._protocol(SimpleNamespace(name="cifar10"), ws.Linf(8 / 255), 10_000) == "standard"
