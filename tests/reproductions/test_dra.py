import json

import pytest
import torch

from withstand.reproductions import dra as system
from withstand.reproductions.runner import RESULTS, judge

TINY = {
    "train": 400,
    "epochs": 3,
    "batch": 20,
    "tuned_on": 64,
    "tuned_epochs": 1,
    "validation": 50,
    "pool": 300,
    "images": 2,
}


@pytest.fixture(scope="module")
def rows(data_root):
    if not (data_root / "vision" / "cifar10_train.zip").is_file():
        pytest.skip("no CIFAR-10 in the data folder")
    patch = pytest.MonkeyPatch()
    patch.setenv("WITHSTAND_DATA", str(data_root))
    patch.setitem(system.SCALES, "smoke", system.SCALES["smoke"] | TINY)
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    system._trained.cache_clear()
    return found


@pytest.mark.data
def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


@pytest.mark.data
def test_every_tuning_says_which_epoch_it_comes_from(rows):
    found = {r["arm"]: r["examples"] for r in rows if r["metric"] == "best_epoch"}
    assert found.keys() == system.ROWS.keys()
    assert all(1 <= epoch <= system.SCALES["smoke"]["tuned_epochs"] for (epoch,) in found.values())


def test_transfer_is_the_mean_over_the_targets(rows):
    found = {(r["arm"], r["metric"]): r["examples"] for r in rows}
    targets = system.SCALES["cpu"]["targets"]
    for name in system.ROWS:
        assert (name, "accuracy") in found
        assert (name, "dcg_norm") in found
        for attack in ("mi", "logit_std"):
            single = [[int(v) for v in found[f"{name} / {attack}", f"transfer_{t}"]] for t in targets]
            mean = torch.tensor(single, dtype=torch.float64).mean(0)
            assert found[f"{name} / {attack}", "transfer"] == pytest.approx(mean.tolist(), abs=1e-4)


def test_every_scale_has_what_the_claims_read():
    names = {target for claim in system.CLAIMS if claim.metric != "transfer" for target in [claim.metric]}
    for settings in system.SCALES.values():
        assert names <= {f"transfer_{target}" for target in settings["targets"]}
        assert settings["validation"] + settings["train"] <= 50_000
        assert settings["tuned_on"] <= settings["train"]
    arms = {f"{row} / {attack}" for row in system.ROWS for attack in ("mi", "logit_std")}
    assert all(set(claim.arms) <= arms for claim in system.CLAIMS)


@pytest.mark.parametrize("name", list(system.NETWORKS))
def test_networks_take_images_and_give_ten_logits(name):
    assert system.NETWORKS[name]().eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_recorded_claims_name_the_sources_of_today():
    recorded = json.loads((RESULTS / "dra.cpu.json").read_text(encoding="utf-8"))["claims"]
    assert [(c["statement"], c["source"]) for c in recorded] == [(c.statement, c.source) for c in system.CLAIMS]
