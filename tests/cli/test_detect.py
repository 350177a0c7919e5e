"""`withstand detect` as a user runs it."""

import csv
import io
import json

import pytest


@pytest.fixture
def fitted(withstand, home):
    done = withstand(
        *("detect", "fit", "net.py:centres", "--data", "digits", "--limit", "400", "--device", "cpu"),
        *("--detector", "msp", "--detector", "knn(k=5)", "--detector", "mds", "--out", str(home / "ood")),
    )
    assert done.code == 0, done.err
    assert "msp, knn, mds" in done.err
    assert "thresholds from 80 examples" in done.err
    return home / "ood"


def test_inputs_are_scored_into_a_table(withstand, home, fitted):
    asked = ("detect", "score", str(fitted), "net.py:centres", "--data", "digits", "--limit", "30", "--fpr", "0.1")
    done = withstand(*asked)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 30
    flags = {"msp flags", "knn flags", "mds flags"}
    assert set(rows[0]) == {"input", "prediction", "confidence", "msp", "knn", "mds", *flags}
    assert {row["mds flags"] for row in rows} <= {"0", "1"}
    assert "flagged: msp" in done.err
    assert withstand(*asked, "--out", str(home / "scores.csv")).code == 0
    assert (home / "scores.csv").read_text() == done.out


def test_detectors_are_judged_by_every_notion(withstand, home, fitted):
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(home / "noise.npz", x=rng.integers(0, 255, (60, 8, 8), dtype=np.uint8), y=np.zeros(60, int))
    asked = ("detect", "evaluate", str(fitted), "net.py:centres", "--data", "digits", "--limit", "100")
    done = withstand(*asked, "--ood", f"noise={home / 'noise.npz'}")
    assert done.code == 0, done.err
    for word in ("human_centric", "conventional", "full_spectrum", "familiar + noise", "fpr95"):
        assert word in done.out
    done = withstand(*asked, "--ood", f"noise={home / 'noise.npz'}", "--json")
    rows = json.loads(done.out)
    best = [r for r in rows if r["notion"] == "conventional" and r["detector"] == "mds"]
    assert best[0]["auroc"] > 0.9


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("evaluate", "nowhere", "net.py:centres", "--data", "digits"), "nowhere, which has no detectors.json"),
        (("fit", "net.py:centres", "--data", "digits", "--detector", "mpsa", "--out", "x"), "Did you mean msp"),
        (("fit", "net.py:centres", "--data", "digits", "--held", "2", "--out", "x"), "between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_said(withstand, home, more, said):
    done = withstand("detect", *more)
    assert done.code == 2
    assert said in done.err
    assert not (home / "x").exists()


def test_inputs_of_a_size_that_the_model_does_not_take_are_refused(withstand, fitted):
    done = withstand("detect", "score", str(fitted), "net.py:centres", "--data", "digits", "--size", "12")
    assert done.code == 2
    assert "does not fit digits: the model fails on inputs" in done.err


def test_a_folder_of_something_else_is_refused_before_the_fit(withstand, home, monkeypatch):
    (home / "mine").mkdir()
    (home / "mine" / "notes.txt").write_text("mine")
    monkeypatch.setattr("withstand.detection.fit_detectors", lambda *given, **more: pytest.fail("fitted"))
    done = withstand("detect", "fit", "net.py:centres", "--data", "digits", "--out", str(home / "mine"))
    assert done.code == 2
    assert "holds something else" in done.err
