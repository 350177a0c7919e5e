"""Detectors that are fitted, kept, and asked."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.data.arrays import from_arrays
from withstand.detection import evaluate, fit_detectors, load_detectors
from withstand.errors import BadInput

DETECTORS = ["msp", "knn(k=3)", "mds", "odin", "bats(energy, lam=0.5)", "odds(samples=2)"]


@functools.cache
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)
    )  # fmt: skip
    batch, optimizer = dots().batch(range(90)), torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
    return model.eval()


def net():
    return copy.deepcopy(trained())


def dots(n=90, seed=0, name="dots", classes=("a", "b", "c"), noise=0.4):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.random((n, 1, 6, 6), dtype=np.float32) * noise
    x[np.arange(n), 0, y, y] = 1
    return from_arrays(x, y, name=name, classes=classes)


@pytest.fixture(scope="module")
def made():
    return fit_detectors(net(), dots(), DETECTORS, held=0.3, seed=1)


def test_thresholds_flag_the_share_asked_for_of_held_out_examples(made):
    assert made.names == ("msp", "knn", "mds", "odin", "energy+bats", "odds")
    assert made.origin["examples"] == {"fitted": 63, "held": 27}
    for name in made.names:
        held = made.held[name]
        assert torch.equal(held, held.sort().values)
        for fpr, most in ((0.0, 0), (0.1, 2), (0.5, 13)):
            assert int((held > made.threshold(name, fpr)).sum()) == most
    with pytest.raises(BadInput, match="27 held-out"):
        made.threshold("msp", 0.01)
    with pytest.raises(BadInput, match=r"\[0, 1\)"):
        made.threshold("msp", 1.0)


def test_held_out_examples_are_fitted_on_by_nothing(made):
    assert made.fitted["knn.bank"].shape[0] == 63
    assert float(made.held["knn"].min()) > 0
    again = fit_detectors(net(), dots(), DETECTORS, held=0.3, seed=1)
    assert torch.equal(again.held["odds"], made.held["odds"])


def test_scores_do_not_depend_on_the_batch_and_come_with_what_the_model_says(made):
    data = dots(20, seed=3)
    found = made.scored(data)
    batch = data.batch(range(20))
    with torch.no_grad():
        p = net()(batch.x).softmax(1)
    assert torch.equal(found.prediction, p.argmax(1))
    assert torch.allclose(found.confidence, p.amax(1))
    assert torch.equal(found.labels, batch.y)
    for i in (0, 7):
        alone = made.score(batch.x[i : i + 1], batch.ids[i : i + 1])
        for name in made.names:
            assert float(alone[name]) == pytest.approx(float(found.scores[name][i]), rel=1e-4)


def test_one_pass_serves_scores_and_predictions(made):
    cheap = fit_detectors(model := net(), dots(), ["msp", "energy", "knn(k=3)", "react", "gen"])
    cheap.scored(dots(20))
    with ws.count_passes(model) as passes:
        cheap.scored(dots(20))
    assert passes.forward_examples == 20


def test_what_is_kept_comes_back(made, tmp_path):
    made.save(tmp_path / "kept")
    again = load_detectors(tmp_path / "kept", net())
    x = dots(12, seed=5).batch(range(12))
    one, two = made.score(x.x, x.ids), again.score(x.x, x.ids)
    assert all(torch.equal(one[n], two[n]) for n in made.names)
    assert again.threshold("mds", 0.1) == made.threshold("mds", 0.1)
    assert again.origin["data"]["classes"] == ["a", "b", "c"]
    assert "dots" in repr(again)


def test_another_model_is_refused(made, tmp_path):
    made.save(tmp_path / "kept")
    other = net()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(BadInput, match="fingerprint"):
        load_detectors(tmp_path / "kept", other)


def test_damaged_and_foreign_folders(made, tmp_path):
    with pytest.raises(BadInput, match="a folder of detectors"):
        load_detectors(tmp_path, net())
    made.save(tmp_path / "kept")
    said = json.loads((tmp_path / "kept" / "detectors.json").read_text())
    (tmp_path / "kept" / "detectors.json").write_text(json.dumps({**said, "detectors": said["detectors"][:2]}))
    with pytest.raises(BadInput, match="do not belong together"):
        load_detectors(tmp_path / "kept", net())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="something else"):
        made.save(tmp_path / "other")
    with pytest.raises(BadInput, match="a file"):
        made.save(tmp_path / "other" / "notes.txt")


def test_settings_are_refused_before_work():
    for more, match in (
        ({"detectors": []}, "at least one"),
        ({"held": 0}, "between 0 and 1"),
        ({"held": 1.0}, "between"),
    ):
        with pytest.raises(BadInput, match=match):
            fit_detectors(net(), dots(), **more)
    with pytest.raises(BadInput, match="detector"):
        fit_detectors(net(), dots(), ["pgd"])


def test_the_evaluation_judges_every_notion_and_cell(made):
    familiar, far = dots(30, seed=7, noise=1.0), dots(24, seed=8, name="far", classes=("x", "y", "z"))
    moved = dots(20, seed=9, noise=1.0)
    rows = evaluate(made, familiar, {"far": far}, {"moved": moved}, fpr=0.1)
    cells = {(r["notion"], r["sets"]) for r in rows}
    assert ("conventional", "familiar") not in cells  # nothing to reject
    assert ("human_centric", "familiar") in cells
    assert {c for n, c in cells if n == "human_centric"} == {"familiar", "familiar + moved", "familiar + far", "all"}
    by = {(r["notion"], r["sets"], r["detector"]): r for r in rows}
    scored = [made.scored(d) for d in (familiar, far)]
    scores = torch.cat([s.scores["mds"] for s in scored]).numpy()
    conventional = by["conventional", "familiar + far", "mds"]
    accept = np.arange(54) < 30
    assert conventional["error"] == pytest.approx(np.mean((scores > made.threshold("mds", 0.1)) == accept))
    assert (conventional["accept"], conventional["reject"]) == (30, 24)
    right = np.r_[(scored[0].prediction == scored[0].labels).numpy(), np.zeros(24, bool)]
    human = by["human_centric", "familiar + far", "mds"]
    assert (human["accept"], human["reject"]) == (right.sum(), 54 - right.sum())
    assert human["accuracy"] == pytest.approx(right[:30].mean())
    assert by["conventional", "all", "mds"]["accept"] == 30  # shifted examples are not judged
    assert by["full_spectrum", "all", "mds"]["accept"] == 50


def test_sets_with_classes_of_the_model_are_warned_of(made):
    with pytest.warns(UserWarning, match="shares classes with dots: a, b"):
        evaluate(made, dots(30, seed=7), {"near": dots(24, name="near", classes=("A", "b", "other"))})


def test_familiar_examples_need_labels(made):
    unlabelled = from_arrays(dots().batch(range(9)).x.numpy(), None, name="bare")
    with pytest.raises(BadInput, match="labelled"):
        evaluate(made, unlabelled)
