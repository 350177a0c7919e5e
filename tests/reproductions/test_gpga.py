import pytest
import torch

from withstand.reproductions import gpga as system
from withstand.reproductions.runner import judge
from withstand.threats import Linf


@pytest.fixture(scope="module")
def rows():
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", {"images": 20, "epochs": 1, "queries": 5})
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_the_score_is_what_fifty_steps_leave_and_guided_ones_break(rows):
    found = {(r["arm"], r["metric"]): r["examples"] for r in rows}
    for name in system.TARGETS:
        pgd, guided = (found[f"{name} / {a}", "robust_accuracy"] for a in ("pgd_ce_50", "gpga_10"))
        assert found[f"{name} / masking", "masking_score"] == [int(a) - int(b) for a, b in zip(pgd, guided)]
        clean = found[f"{name} / clean", "robust_accuracy"]
        assert all(c == "1" for c, p in zip(clean, pgd) if p == "1")


def test_the_settings_of_the_large_scale_are_obeyed(monkeypatch):
    small = {"images": 12, "epochs": 1, "queries": 5, "train": 60, "batch": 30, "data": "digits", "device": "cpu"}
    assert set(system.SCALES["gpu"]) == {*small, "network", "eps"}
    seen = []
    monkeypatch.setattr(
        system,
        "fit",
        lambda model, data, epochs, attack, *_, batch: seen.append((model, data, attack, batch)) or model.eval(),
    )
    monkeypatch.setitem(system.SCALES, "gpu", small | {"network": "digits_bn_cnn", "eps": 0.05})
    rows = system.measure("gpu", 0, lambda text: None)["rows"]
    assert {len(r["examples"]) for r in rows} == {12}
    model, (x, y), _, batch = seen[0]
    assert len(x) == len(y) == 60
    assert batch == 30
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    assert {a.threat for _, _, a, _ in seen} == {Linf(0.05)}
