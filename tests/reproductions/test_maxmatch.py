import numpy as np
import pytest
import torch
from torch import nn

from withstand.data import load_data
from withstand.registry import parse
from withstand.reproductions import maxmatch as system
from withstand.reproductions.runner import judge, values
from withstand.training import Trainer
from withstand.training.augment import CTAugment, RandAugment

SMALL = {"train": 100, "test": 30, "batch": 25, "labels": 2, "network": "digits_cnn"}


def test_all_claims_can_be_judged(monkeypatch):
    monkeypatch.setitem(system.SCALES, "smoke", {w: {**s, **SMALL} for w, s in system.SCALES["smoke"].items()})
    told = []
    rows = system.measure("smoke", 0, told.append)["rows"]
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")
    assert len(told) == 3 * len(system.ARMS) + 2
    found = {(r["arm"], r["metric"]): values(r) for r in rows}
    for arm, metric in found:
        if metric == system.WORST:
            assert (found[arm, metric] <= found[arm, "strong_accuracy"]).all()


def test_every_scale_says_what_its_arms_need():
    for experiments in system.SCALES.values():
        assert experiments.keys() == system.SCALES["cpu"].keys()
        for s in experiments.values():
            for text in system.ARMS.values():
                assert parse(text.format(**s), "recipe").labels == s["labels"]
            three = [parse(system.ARMS[f"{how}_of_3"].format(**s), "recipe") for how in ("mean", "max")]
            assert [(r.variants, r.reduce) for r in three] == [(3, "mean"), (3, "max")]
            Trainer(**{k: s[k] for k in system._TRAINER if k in s})
            assert s["batch"] % (1 + s["mu"]) == 0
            if s["longer"] and s["epochs"] > 1:  # steps times passes are those of three variants
                passes = {k: s["batch"] // (1 + s["mu"]) * (1 + (1 + k) * s["mu"]) for k in (1, 3)}
                assert s["longer"] * passes[1] == pytest.approx(s["epochs"] * passes[3], rel=0.02)


def test_the_arm_with_learned_strengths_differs_in_them_alone():
    for experiments in system.SCALES.values():
        s = experiments[system.LEARNS]
        learned, usual = (
            parse(system.ARMS["fixmatch"].format(**s | {"strong": s[which]}), "recipe").strong
            for which in ("learned", "strong")
        )
        assert CTAugment() in learned
        if RandAugment() in usual:
            assert tuple(RandAugment() if a == CTAugment() else a for a in learned) == usual


def test_all_models_are_judged_by_the_same_draws():
    data = load_data("digits", limit=12)
    s = system.SCALES["smoke"]["digits, 3 labels per class"]
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    rows = system.judged("a", Watching(), data, s)
    first = list(seen)
    system.judged("b", Watching(), data, s)
    assert all(torch.equal(a, b) for a, b in zip(first, seen[len(first) :], strict=True))
    draws = torch.stack([x for x in first if not torch.equal(x, data.batch(range(12)).x)])
    assert len(draws) == system.DRAWS
    assert len(draws.flatten(1).unique(dim=0)) == system.DRAWS
    three = (data.labels == 3).astype(float)
    for r in rows:
        assert np.array_equal(values(r), three)
