"""The experiment of centre-guided adversarial training in small."""

import pytest
import torch

from withstand.registry import parse
from withstand.reproductions import cgat
from withstand.reproductions.runner import judge
from withstand.training import Trainer

TINY = {"train": 100, "queries": 20, "base_epochs": 2, "epochs": 1}


def test_every_scale_is_well_formed() -> None:
    for scale in cgat.SCALES.values():
        for kind in cgat.KINDS:
            own = {**scale[kind], "steps": scale["steps"]}
            Trainer(**own["trainer"], epochs=own["epochs"])
            for text in cgat.ARMS.values():
                parse(text.format(**own), "recipe")
            for text in cgat.ATTACKS.values():
                assert parse(text.format(**own), "attack").steps == scale["steps"]


@pytest.mark.data
def test_every_claim_is_of_arms_that_are_measured(data_root, monkeypatch) -> None:
    monkeypatch.setenv("WITHSTAND_DATA", str(data_root))
    smoke = cgat.SCALES["smoke"]
    small = {kind: smoke[kind] | TINY for kind in cgat.KINDS} | {"steps": 2}
    monkeypatch.setitem(cgat.SCALES, "smoke", small)
    rows = cgat.measure("smoke", 0, lambda text: None)["rows"]
    for claim in cgat.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")
    arms = {r["arm"].rpartition(" / ")[0] for r in rows}
    assert arms == {f"{k} / {a}" for k in cgat.KINDS for a in cgat.ARMS} - {"single / cgat_published"}


@pytest.mark.data
def test_clothes_hold_one_to_three_kinds_in_different_quarters(data_root, monkeypatch) -> None:
    monkeypatch.setenv("WITHSTAND_DATA", str(data_root))
    data = cgat.clothes("test", 60, 0)
    batch = data.batch(range(60))
    assert batch.y is not None
    quarters = batch.x.reshape(60, 2, 8, 2, 8).amax((2, 4)).flatten(1) > 0
    filled = quarters.sum(1)
    assert set(filled.tolist()) == {1, 2, 3}
    assert bool((batch.y.sum(1) <= filled).all())
    assert bool((batch.y.sum(1) >= 1).all())
    assert torch.equal(batch.x, cgat.clothes("test", 60, 0).batch(range(60)).x)
    assert not torch.equal(batch.x, cgat.clothes("test", 60, 1).batch(range(60)).x)
