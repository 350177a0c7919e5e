import pytest
import torch

from withstand.reproductions import advknn as system
from withstand.reproductions.runner import judge


@pytest.fixture(scope="module")
def rows():
    patch = pytest.MonkeyPatch()
    tiny = {"train": 100, "references": 90, "calibration": 20, "images": 12, "epochs": 1, "block_epochs": 1, "steps": 2}
    patch.setitem(system.SCALES, "smoke", system.SCALES["smoke"] | tiny)
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_every_attack_has_its_arm_for_both_victims(rows):
    arms = {r["arm"] for r in rows if r["metric"] == "robust_accuracy"}
    methods = ("origin", *system.BLOCKS)
    attacked = {f"{v} / {m} / {a}" for v in ("knn", "dknn") for m in methods for a in ("fgsm", "bim")}
    attacked |= {f"{v} / {m} / bim" for v in ("knn", "dknn") for m in ("mean_guide", "ask")}
    assert arms == attacked | {f"{v} / {a}" for v in ("knn", "dknn") for a in ("clean", "clean, 95 %", "noise")}
    assert all(len(r["examples"]) == 12 for r in rows)


def test_library_calibration_and_attacked_examples_are_apart():
    train, calibration, attacked = system._data(system.SCALES["smoke"], 0)
    flat = [part[0].flatten(1) for part in (train, calibration, attacked)]
    for i, a in enumerate(flat):
        for b in flat[i + 1 :]:
            assert (torch.cdist(a, b) > 0).all()
    again = system._data(system.SCALES["smoke"], 1)
    assert torch.equal(again[0][0], train[0])
    assert not torch.equal(again[2][0], attacked[0])


def test_layers_of_both_networks_end_in_flat_features():
    for scale, shape in (("smoke", (2, 1, 8, 8)), ("cpu", (2, 1, 28, 28)), ("gpu", (2, 1, 28, 28))):
        net, layers = system.network(system.SCALES[scale], 0)
        assert net(torch.rand(shape)).shape == (2, 10)
        assert layers == ["1", "3", "5", "logits"]
    sizes = [net[:k](torch.rand(1, 1, 28, 28)).numel() for k in (2, 4, 6)]
    assert sizes == [12544, 6272, 1152]  # as in the paper
