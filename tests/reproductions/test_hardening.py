"""The experiments of the recipes in small: every arm runs, every claim can be judged, every scale is well formed."""

import importlib

import numpy as np
import pytest

from withstand.registry import parse
from withstand.reproductions import available
from withstand.reproductions.arms import Arm, measure_arms, right, row
from withstand.reproductions.probes import domain_probe
from withstand.reproductions.runner import judge
from withstand.training import Trainer


def _trains(module: str) -> bool:
    """Whether a reproduction is of arms that are trained."""
    arms = getattr(importlib.import_module(module), "ARMS", {})
    return bool(arms) and all(isinstance(arm, Arm) for arm in (arms.values() if isinstance(arms, dict) else arms))


SYSTEMS = [name for name, module in available().items() if _trains(module)]
TINY = {"epochs": 1, "train": 60, "test": 24, "attacked": 6, "queries": 10}


@pytest.fixture(params=SYSTEMS)
def module(request):
    return importlib.import_module(available()[request.param])


def test_every_scale_says_what_its_arms_need(module):
    for settings in module.SCALES.values():
        for arm in module.ARMS.values():
            parse(arm.recipe.format(**settings), "recipe")
            Trainer(**arm.settings(settings))


def test_an_arms_own_augmentation_follows_that_of_the_scale():
    arm = Arm("standard", {"augment": "mixup(1.0)", "batch": 7})
    settings = arm.settings({"augment": "crop_flip(4)", "epochs": 3, "batch": 5, "eps": 0.1})
    assert settings == {"augment": ("crop_flip(4)", "mixup(1.0)"), "epochs": 3, "batch": 7}
    assert [a.component_name for a in Trainer(**settings).augment] == ["crop_flip", "mixup"]
    assert Trainer(**arm.settings({})).augment == Trainer(augment="mixup(1.0)").augment
    assert Trainer(**Arm("standard").settings({})).augment == ()


def test_every_claim_is_of_arms_that_are_measured(module, monkeypatch):
    monkeypatch.setitem(module.SCALES, "smoke", module.SCALES["smoke"] | TINY)
    told = []
    rows = module.measure("smoke", 0, told.append)["rows"]
    assert {f"{name}: training" for name in module.ARMS} <= {*told}
    for claim in module.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")
    assert {r["arm"] for r in rows} == {*module.ARMS}


def test_arms_learn_from_the_same_examples_and_are_judged_alike():
    settings = {
        "data": "digits", "network": "digits_bn_cnn", "eps": 0.1, "attack": "pgd(linf(0.1), steps=2)", "epochs": 2,
        "batch": 20, "optimizer": "adam(5e-3)", "schedule": "cosine", "train": 200, "test": 40, "attacked": 10,
        "queries": 10,
    }  # fmt: skip
    seen = {}

    def more(name, hardened, x, y):
        seen[name] = hardened
        return [row(name, "again", right(hardened.module, x, y))]

    rows = measure_arms({"a": Arm("standard"), "b": Arm("standard")}, settings, 3, lambda text: None, more)["rows"]
    found = {(r["arm"], r["metric"]): r["examples"] for r in rows}
    for metric in ("accuracy", "robust_accuracy", "corruption_accuracy"):
        assert found["a", metric] == found["b", metric]  # equal recipes, equal results
    assert found["a", "accuracy"] == found["a", "again"]
    assert len(found["a", "robust_accuracy"]) == 10
    assert all(c == "1" for r, c in zip(found["a", "robust_accuracy"], found["a", "accuracy"]) if r == "1")
    assert np.mean([int(c) for c in found["a", "accuracy"]]) > 0


def test_a_probe_tells_what_can_be_told():
    settings = {"data": "digits", "network": "digits_bn_cnn", "attack": "", "eps": 0.3, "epochs": 2, "batch": 20}
    settings |= {
        "optimizer": "adam(5e-3)",
        "schedule": "cosine",
        "train": 300,
        "test": 100,
        "attacked": 2,
        "queries": 2,
    }
    shares = {}
    for eps in (0.3, 1e-9):
        probe = domain_probe(eps, 0)
        rows = measure_arms({"a": Arm("standard")}, settings, 0, lambda text: None, probe)["rows"]
        shares[eps] = np.mean(next(r["examples"] for r in rows if r["metric"] == "probe_accuracy"))
    assert shares[0.3] > 0.7  # a plain network's features give adversarial images away
    assert shares[1e-9] < 0.6  # nothing moved, nothing to tell
