"""`withstand reproduce`, with a tiny system in place of the real ones."""

import json
import sys
from types import ModuleType

import pytest

import withstand.reproductions
from withstand.protocols import Claim, Figure

pytest.importorskip("withstand.reproductions.runner")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    module = ModuleType("tiny_system")
    module.__file__ = str(tmp_path / "tiny_system.py")
    (tmp_path / "tiny_system.py").write_text("")
    module.CLAIMS = [Claim("b beats a", "nobody, 1900", ("a", "b"), "accuracy", "higher", {"smoke": {}, "cpu": {}})]
    module.measure = lambda scale, seed, progress: {
        "rows": [
            {"arm": arm, "metric": "accuracy", "examples": [value] * 20} for arm, value in (("a", False), ("b", True))
        ]
    }
    monkeypatch.setitem(sys.modules, "tiny_system", module)
    for place in (withstand.reproductions, sys.modules["withstand.reproductions.runner"]):
        monkeypatch.setattr(place, "available", lambda: {"tiny": "tiny_system"})


def test_a_claim_is_measured_and_judged(withstand, home):
    done = withstand("reproduce", "tiny", "--out", "r")
    assert done.code == 0, done.err
    assert "b beats a" in done.out
    assert "shown" in done.out
    assert json.loads((home / "r" / "tiny.smoke.json").read_text())["claims"][0]["difference"] == 1.0


def test_figures_are_drawn_beside_the_result(withstand, home):
    series = [{"name": "rows", "y": [0.2, 0.5]}]
    data = {"x": [1, 2], "x_label": "x", "y_label": "y", "series": series}
    sys.modules["tiny_system"].figures = lambda seeds: [Figure("curve", "A line", data)]
    done = withstand("reproduce", "tiny", "--out", "r")
    assert done.code == 0, done.err
    assert (home / "r" / "tiny.smoke.1.svg").read_text().startswith("<svg")


def test_all_leaves_out_what_has_no_such_scale(withstand):
    assert "tiny" in withstand("reproduce", "--all", "--out", "r").out
    done = withstand("reproduce", "--all", "--scale", "gpu", "--out", "r")
    assert done.code == 0
    assert "left out" in done.err


@pytest.mark.parametrize("arguments", [["tinny"], ["tiny", "--scale", "huge"], [], ["tiny", "--all"]])
def test_wrong_usage_is_refused(withstand, arguments):
    done = withstand("reproduce", *arguments, "--out", "r")
    assert done.code == 2
    assert "Traceback" not in done.err
