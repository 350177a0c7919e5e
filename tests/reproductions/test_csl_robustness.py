import xml.etree.ElementTree as ET
from dataclasses import asdict

import numpy as np
import pytest
import torch

from withstand.models.feature_encoder import Probe, encoder_of
from withstand.registry import parse
from withstand.report.files import svg_file
from withstand.reproductions import csl_robustness as system
from withstand.reproductions.arms import TRAINER, fresh
from withstand.reproductions.runner import judge
from withstand.training import Trainer

ALL = (*system.ARMS, *system.DEBIASED, *system.ADVERSARIAL, *system.ADVCL, *system.CLOTHES)
TINY = {"epochs": 2, "train": 60, "test": 30, "batch": 30, "steps": 2}


@pytest.fixture(scope="module")
def rows():
    patch = pytest.MonkeyPatch()
    own = system.SCALES["smoke"]["adversarial"] | {"attack": "pgd(linf(0.1), steps=1)", "epochs": 1}
    worn = system.SCALES["smoke"]["clothes"] | {"epochs": 1}
    pseudo = {"radius": 2.0, "pseudo": "clusters=(2, 10), light='crop_flip(1, flip=False)'"}
    tiny = TINY | {"adversarial": own, "clothes": worn, "advcl": pseudo}
    patch.setitem(system.SCALES, "smoke", system.SCALES["smoke"] | tiny)
    found = [row for part in system.PARTS.values() for row in part("smoke", 0, lambda text: None)["rows"]]
    patch.undo()
    return found


def of(rows, arm, metric):
    return next(r["examples"] for r in rows if (r["arm"], r["metric"]) == (arm, metric))


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_what_stands_at_a_radius_stood_before(rows):
    for arm in ALL:
        clean = of(rows, arm, "accuracy")
        for radius in system.RADII:
            stands = of(rows, arm, f"robust_accuracy_{radius:g}eps")
            assert len(stands) == 30
            assert all(c == "1" for c, s in zip(clean, stands) if s == "1")


def test_features_of_wrong_examples_are_moved_too(rows):
    for arm in ALL:
        assert "0" in of(rows, arm, "accuracy")
        assert all(stretch > 0 for stretch in of(rows, arm, "sensitivity_attacked"))


def test_chance_is_the_share_of_pairs_of_one_class(rows):
    y = system._labels(system.load_data("digits", split="train", limit=60, seed=0))
    same = (y[:, None] == y).sum() - 60
    assert of(rows, "chance", "precision") == [pytest.approx(float(same) / (60 * 59))]
    assert of(rows, "clothes / chance", "precision") == of(rows, "chance", "precision")  # at this scale they are digits
    for arm in ("fnc", "afnc", "attraction"):
        assert len(of(rows, arm, "precision_by_epoch")) == 2
        assert of(rows, arm, "precision")[0] == pytest.approx(of(rows, arm, "precision_by_epoch")[-1], abs=1e-4)


def test_figures_are_drawn_from_the_means_of_all_seeds(rows):
    other = [{**r, "examples": r["examples"]} for r in rows]
    made = system.figures([rows, other])
    assert [f.kind for f in made] == ["curve", "curve", "curve", "bars", "bars", "curve", "bars"]
    curve = next(s for s in made[0].data["series"] if s["name"] == "afnc")
    assert curve["y"][0] == pytest.approx(np.mean([int(v) for v in of(rows, "afnc", "accuracy")]))
    for figure in made:
        assert ET.fromstring(svg_file(asdict(figure))).tag.endswith("svg")


def test_pseudo_labels_come_from_the_encoder_without_an_adversary(monkeypatch):
    seen = []
    monkeypatch.setattr(system, "with_clusters", lambda model, data, counts, seed: seen.append((model, counts)) or data)
    learn = system.load_data("digits", split="train", limit=40, seed=0)
    own = system._settings("smoke", ("adversarial", "advcl")) | {
        "epochs": 1,
        "batch": 20,
        "pseudo": "clusters=(2, 3)",
        "attack": "pgd(steps=1)",
    }
    advcl = parse(system.ADVCL["adversarial / advcl"].format(**own), "recipe")
    labeller = fresh("digits_bn_cnn", 10, 1)
    system._train(advcl, own, learn, labeller, 0)
    system._train(parse(system.ADVERSARIAL["adversarial / acl"].format(**own), "recipe"), own, learn, labeller, 0)
    assert seen == [(labeller, (2, 3))]


def test_the_gap_is_that_of_the_means():
    def one(a, b, c):
        return [{"arm": n, "metric": "m", "examples": [v]} for n, v in (("simclr", a), ("supcon", b), ("afnc", c))]

    assert system._closed([one(0.4, 0.8, 0.5), one(0.6, 0.8, 0.6)], "afnc", "supcon", "m") == pytest.approx(0.05 / 0.3)
    assert system._closed([one(0.8, 0.8, 0.9)], "afnc", "supcon", "m") is None
    elsewhere = [{**r, "arm": f"clothes / {r['arm']}"} for r in one(0.2, 0.8, 0.5)]
    assert system._closed([elsewhere + one(0.4, 0.8, 0.5)], "clothes / afnc", "supcon", "m") == pytest.approx(0.5)


def test_a_probe_that_nothing_moves_is_as_robust_as_it_is_right():
    probe = Probe(encoder_of(fresh("digits_cnn", 10, 0)), 10).eval()
    with torch.no_grad():
        probe.head.weight.zero_()
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    with torch.no_grad():
        probe.head.bias.copy_(torch.eye(10)[2])
    rows = system.judged("flat", probe, x, y, {"eps": 0.1, "steps": 2}, 0)
    assert of(rows, "flat", "accuracy") == of(rows, "flat", "robust_accuracy_1.5eps") == "001000"
    assert of(rows, "flat", "relative_drop") == [0.0]


def test_every_scale_is_well_formed():
    for scale, s in system.SCALES.items():
        experiments = [one for part in system.PARTS.values() for one in part.args[0]]
        for arms, own in [(arms, system._settings(scale, names)) for arms, names in experiments]:
            for recipe in arms.values():
                parse(recipe.format(**own), "recipe")
            Trainer(**{key: own[key] for key in TRAINER if key in own})
        assert len(system._views(s)) == 3


def test_only_what_the_page_needs_no_legend_for_is_a_file():
    data = {"labels": ["a"], "y_label": "y", "series": [{"name": n, "values": [1]} for n in "ab"]}
    with pytest.raises(ValueError, match="bars of one series"):
        svg_file({"kind": "bars", "title": "t", "data": data})
    with pytest.raises(ValueError, match="curve"):
        svg_file({"kind": "heatmap", "title": "t", "data": {}})
