import numpy as np
import pytest
import torch
import torch.nn.functional as F

import withstand as ws
from withstand.data.arrays import from_arrays
from withstand.models.target import Normalised
from withstand.registry import parse
from withstand.reproductions import bia as system
from withstand.reproductions.arms import fresh
from withstand.reproductions.runner import judge

TINY = {"train": 24, "epochs": 1, "images": 16, "passes": 1, "test": 6}


def pictures(name, split="all", limit=None, seed=None):
    """Noise with a bright row for each class, other noise for each domain."""
    y = torch.arange(40) % 10
    x = ws.Rows.count(len(name + split), 40).uniform((1, 28, 28), "pictures", high=0.5)
    x[torch.arange(40), 0, 2 * y] = 1
    return from_arrays(x.numpy(), y.numpy(), name, 10, limit=limit, seed=seed)


@pytest.fixture(scope="module")
def rows():
    """The whole measurement in small, on made-up sets."""
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", TINY)
    patch.setattr(system, "load_data", pictures)
    patch.setattr(system, "JUDGES", {"mnist": ("mnist_bn_cnn",), "fashion-mnist": ("mnist_cnn", "mnist_bn_cnn"),
                                     "notmnist": ("mnist_cnn",)})  # fmt: skip
    told = []
    found = system.measure("smoke", 0, told.append)["rows"]
    patch.undo()
    assert {f"{arm}: training" for arm in system.GENERATORS} < {*told}
    return {(r["arm"], r["metric"]): r["examples"] for r in found}


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        listed = [{"arm": a, "metric": m, "examples": e} for (a, m), e in rows.items()]
        assert judge(claim, [listed])["verdict"] in ("shown", "not shown", "inconclusive")


def test_other_domains_are_those_of_which_the_source_knows_nothing(rows):
    both = [*rows["fashion-mnist / bia", "accuracy"], *rows["notmnist / bia", "accuracy"]]
    assert rows["other domains / bia", "accuracy"] == both
    assert {v * 2 % 1 for v in rows["fashion-mnist / bia", "accuracy"]} == {0}  # two networks vote on each image
    assert len(rows["mnist / clean", "accuracy"]) == 6


def test_every_scale_has_generators_that_can_be_read():
    for text in system.GENERATORS.values():
        recipe = parse(text, "recipe")
        assert recipe.eps == system.EPS
        assert recipe.ngf <= 16
    assert set(system.SCALES) == {"smoke", "cpu", "gpu"}
    assert all(settings.keys() >= TINY.keys() for settings in system.SCALES.values())


def test_the_parts_of_a_set_without_a_split_share_no_image(monkeypatch):
    monkeypatch.setattr(system, "load_data", pictures)
    train, test = (system._part("notmnist", split, 100, 0).positions for split in ("train", "test"))
    assert len(train) == 30
    assert len(test) == 10
    assert not set(train) & set(test)


def test_the_cosine_is_one_for_equal_images_and_random_signs_lie_in_corners():
    source, x = fresh("cnn_28", 10, 0).eval(), pictures("a").batch(range(4)).x
    assert system.cosine(source, x, x).numpy() == pytest.approx(np.ones(4), abs=1e-6)
    moved = system.signs(x, 0)
    assert ((moved - x).abs().sub(system.EPS).abs() < 1e-6)[(x > 0.2) & (x < 0.8)].all()
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_the_search_on_features_turns_them_away():
    source, x = fresh("cnn_28", 10, 0).eval(), pictures("a").batch(range(4)).x
    moved = system.plain(source)["pgd_features"](source, x)
    assert (system.cosine(source, x, moved) < system.cosine(source, x, system.signs(x, 0))).all()


def test_both_sources_are_measured(rows):
    for arm in (*system.GENERATORS, "pgd_logits"):
        assert f"normalised / other domains / {arm}" in {a for a, _ in rows}
    for arm in ("bia", "cda", "pgd_logits", "random_signs"):
        assert rows[f"source / {arm}", "cosine"] != rows[f"normalised / source / {arm}", "cosine"]


def test_a_source_stands_behind_its_normalisation(monkeypatch):
    monkeypatch.setattr(system, "load_data", pictures)
    s = {"train": 20, "epochs": 1}
    source = system.network("mnist", "cnn_28", s, 0, "source", system.KINDS["normalised"])
    assert isinstance(source, Normalised)
    assert not isinstance(system.network("mnist", "cnn_28", s, 0, "source"), Normalised)
    assert (float(source.mean), float(source.std)) == pytest.approx((0.1307, 0.3081))
    x = pictures("a").batch(range(4)).x
    inside = F.cosine_similarity(*(source.model[:5]((part - 0.1307) / 0.3081).flatten(1) for part in (x, x / 2)), dim=1)
    assert system.cosine(source, x, x / 2).numpy() == pytest.approx(inside.detach().numpy(), abs=1e-5)
