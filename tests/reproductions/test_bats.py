import numpy as np
import pytest
import torch

from withstand.metrics import auroc, fpr_at_tpr
from withstand.reproductions import bats as system
from withstand.reproductions.runner import judge


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(system.SCALES, "smoke", system.SCALES["smoke"] | {"pretrained": ()})
        return system.measure("smoke", 0, lambda text: None)["rows"]


@pytest.mark.data
def test_the_claims_can_be_judged(data_root, monkeypatch):
    monkeypatch.setenv("WITHSTAND_DATA", str(data_root))
    rows = system.measure("smoke", 0, lambda text: None)["rows"]
    assert len(system.CLAIMS) == 33
    assert {r["arm"] for r in rows} >= {f"cifar10 resnet20 / energy+bats(penultimate, 3.25, of {n})" for n in (10, 50)}
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_a_wide_range_is_the_detector_itself(rows):
    found = {(r["arm"], r["metric"]): r["examples"] for r in rows}
    for metric in ("auroc", "fpr95"):
        assert found["plain / energy+bats(50)", metric] == found["plain / energy", metric]
    assert found["plain / energy+bats(0.5)", "auroc"] != found["plain / energy", "auroc"]
    assert len(found["plain / energy", "fpr95"]) == 30


@pytest.mark.parametrize("seed", range(3))
def test_means_are_the_figures(seed):
    rng = np.random.default_rng(seed)
    familiar, unknown = rng.integers(0, 9, 40).astype(float), rng.integers(3, 12, 30).astype(float)
    scores, positive = np.r_[familiar, unknown], np.r_[np.zeros(40, bool), np.ones(30, bool)]
    assert system.placements(familiar, unknown).mean() == pytest.approx(auroc(scores, positive))
    passed = unknown <= system.threshold(familiar)
    assert passed.mean() == pytest.approx(fpr_at_tpr(-scores, ~positive, 0.95))


def test_shuffled_digits_keep_their_pixels():
    x = torch.rand(6, 1, 4, 4)
    other = system.unfamiliar("shuffled", x, 5, 0)
    assert torch.equal(other.flatten(1).sort(1).values, x[:5].flatten(1).sort(1).values)
    assert not torch.equal(other, x[:5])
    assert system.unfamiliar("noise", x, 5, 0).shape == (5, 1, 4, 4)
