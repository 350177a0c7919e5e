import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import withstand as ws
from withstand.detection.ood import Bank, Energy
from withstand.models import as_target
from withstand.reproductions import ood_human_centric as system
from withstand.reproductions.runner import judge


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def made():
    """Made-up networks and sets."""
    names = ("familiar", *system.SHIFTED, *system.UNFAMILIAR)
    sets = {}
    for i, name in enumerate(names):
        n = 30 if name == "familiar" else 12
        y = torch.full((n,), -1) if name in system.UNFAMILIAR else torch.arange(n) % 3
        sets[name] = ws.Rows.count(i, n).uniform((3, 8, 8), "x"), y
    x, y = ws.Rows.count(50, 60).uniform((3, 8, 8), "x"), torch.arange(60) % 3
    return {f"net{i}": net(i) for i in range(3)}, sets, (x, y)


@pytest.fixture(scope="module")
def rows(made):
    nets, sets, fitted = made
    patch = pytest.MonkeyPatch()
    patch.setattr(system, "networks", lambda device: nets)
    patch.setattr(system, "examples", lambda s, seed: sets)
    patch.setattr(system, "learned", lambda s, seed: fitted)
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return {(r["arm"], r["metric"]): r for r in found}


def test_all_claims_can_be_judged(rows):
    assert len(system.CLAIMS) == 18
    for claim in system.CLAIMS:
        assert judge(claim, [list(rows.values())])["verdict"] in ("shown", "not shown", "inconclusive")


def test_cells_pool_their_sets_with_equal_weights(made, rows):
    nets, sets, (x, y) = made
    for i, model in enumerate(nets.values()):
        bank = Bank(as_target(model), [Energy()])
        scored = {n: bank.score(inputs, bank.fit([x], y))["energy"].numpy() for n, (inputs, _) in sets.items()}
        with torch.no_grad():
            right = {n: (model(inputs).argmax(1) == truth).numpy() for n, (inputs, truth) in sets.items()}
        cells = {"familiar": ["familiar"], "all": list(sets), "familiar + shifted": ["familiar", *system.SHIFTED]}
        for cell, names in cells.items():
            weights = np.concatenate([np.full(len(scored[n]), 1 / len(scored[n])) for n in names])
            accept = np.concatenate([right[n] for n in names])
            expected = roc_auc_score(~accept, np.concatenate([scored[n] for n in names]), sample_weight=weights)
            assert rows["energy", f"human-centric, {cell}"]["examples"][i] == pytest.approx(expected, abs=1e-5)
        names = ["familiar", *system.UNFAMILIAR]
        outside = np.concatenate([np.full(len(scored[n]), n != "familiar") for n in names])
        weights = np.concatenate([np.full(len(scored[n]), 1 / len(scored[n])) for n in names])
        expected = roc_auc_score(outside, np.concatenate([scored[n] for n in names]), sample_weight=weights)
        assert rows["energy", "conventional, unfamiliar"]["examples"][i] == pytest.approx(expected, abs=1e-5)
        accuracy = rows["classifier", "accuracy, familiar"]["examples"][i]
        assert accuracy == pytest.approx(right["familiar"].mean(), abs=1e-5)


def test_rankings_agree_or_do_not():
    one = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert system.agreement(one, {"c": 0.9, "b": 0.8, "a": 0.1}) == pytest.approx(1)
    assert system.agreement(one, {"a": 0.9, "b": 0.8, "c": 0.1}) == pytest.approx(-1)


def test_variance_is_shared_out():
    table = np.array([[1.0, 2.0], [3.0, 4.0]])  # rows differ by 2, columns by 1
    shares = system.explained(table)
    assert shares == pytest.approx({"detector": 0.8, "classifier": 0.2, "both": 0.0})


@pytest.mark.data
def test_the_sets_are_what_they_are_called(data_root, monkeypatch):
    monkeypatch.setenv("WITHSTAND_DATA", str(data_root))
    sets = system.examples({"familiar": 20, "each": 10}, 0)
    assert list(sets) == ["familiar", *system.SHIFTED, *system.UNFAMILIAR]
    assert {tuple(x.shape[1:]) for x, _ in sets.values()} == {(3, 32, 32)}
    assert [len(x) for x, _ in sets.values()] == [20, *[10] * 8]
    assert all((y == -1).all() == (name in system.UNFAMILIAR) for name, (_, y) in sets.items())
    familiar = {image.numpy().tobytes() for image in sets["familiar"][0]}
    assert len(familiar) == 20
