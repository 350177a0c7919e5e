"""Running reproductions with a small module that stands for a system."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from withstand import reproductions
from withstand.errors import BadInput
from withstand.protocols import Claim, Figure
from withstand.reproductions import runner
from withstand.reproductions.runner import judge, paired_interval, reproduce, verdict

SCALES = {"smoke": {"n": 40}, "cpu": {"n": 200}}


def claim(direction="higher", metric="robust_accuracy"):
    return Claim("it helps", "nowhere", ("base", "method"), metric, direction, SCALES, seeds=(3, 5, 8))


class Toy(types.ModuleType):
    """base is right with chance 0.5, method with 0.8."""

    def __init__(self, path, fail_at=None):
        super().__init__("toy")
        path.write_text("SYSTEM = 'toy'")
        self.__file__ = str(path)
        self.CLAIMS = [claim(), claim("lower")]
        self.measured, self.fail_at = [], fail_at

    def measure(self, scale, seed, progress):
        if seed == self.fail_at:
            raise KeyboardInterrupt
        self.measured.append(seed)
        progress("measuring")
        u = np.random.default_rng(seed).random(SCALES[scale]["n"])
        return {
            "rows": [
                {"arm": "base", "metric": "robust_accuracy", "examples": "".join("01"[int(v < 0.5)] for v in u)},
                {"arm": "method", "metric": "robust_accuracy", "examples": [int(v < 0.8) for v in u], "passes": 7},
            ]
        }


@pytest.fixture
def toy(tmp_path, monkeypatch):
    module = Toy(tmp_path / "toy.py")
    monkeypatch.setattr(runner, "available", lambda: {"toy": "toy"})
    monkeypatch.setattr(runner, "_module", lambda system: module)
    return module


def test_results_are_written_with_everything_needed_to_read_them(toy, tmp_path):
    told = []
    result = reproduce("toy", "cpu", out=tmp_path / "r", progress=told.append)
    stored = json.loads((tmp_path / "r" / "toy.cpu.json").read_text())
    assert stored["claims"] == result["claims"]
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["toy.cpu.json"]
    assert stored["seeds"] == [3, 5, 8]
    assert stored["settings"] == {"n": 200}
    assert set(stored["versions"]) >= {"withstand", "torch", "python"}
    assert [c["verdict"] for c in stored["claims"]] == ["shown", "not shown"]
    base, method = stored["table"]
    assert (base["arm"], base["n"], base["seeds"]) == ("base", 200, 3)
    assert base["low"] < base["value"] < base["high"]
    assert method["value"] - base["value"] == pytest.approx(stored["claims"][0]["difference"])
    row = stored["rows"]["3"][1]
    assert (row["n"], row["passes"]) == (200, 7)
    assert row["value"] == pytest.approx(np.mean(row["examples"]))
    assert "measuring" in told


def test_smoke_takes_the_first_seed_and_seeds_may_be_chosen(toy, tmp_path):
    assert reproduce("toy", out=tmp_path)["seeds"] == [3]
    assert reproduce("toy", seeds=[7, 7, 1], out=tmp_path)["seeds"] == [7, 1]
    assert toy.measured == [3, 7, 1]


def test_a_killed_run_measures_only_what_is_missing_and_ends_alike(toy, tmp_path, monkeypatch):
    whole = reproduce("toy", "cpu", out=tmp_path / "whole")
    toy.measured.clear()
    toy.fail_at = 8
    with pytest.raises(KeyboardInterrupt):
        reproduce("toy", "cpu", out=tmp_path / "part")
    assert not list((tmp_path / "part").glob("[!.]*")), "nothing that looks like a result"
    toy.fail_at = None
    again = reproduce("toy", "cpu", out=tmp_path / "part")
    assert toy.measured == [3, 5, 8]
    whole.pop("seconds"), again.pop("seconds")
    assert again == whole


class Parted(Toy):
    """The arms of a toy in two parts, the second of which has settings of its own."""

    def __init__(self, path):
        super().__init__(path)
        self.PARTS = {"letters": self.part("letters", 0), "cars": self.part("cars", 1)}

    def part(self, name, which):
        def measure(scale, seed, progress):
            if (name, seed) == self.fail_at:
                raise KeyboardInterrupt
            rows = self.measure(scale, seed, progress)["rows"][which:]
            self.measured[-1] = (name, seed)
            return {"rows": rows[:1]}

        return measure


@pytest.fixture
def parted(tmp_path, monkeypatch):
    module = Parted(tmp_path / "toy.py")
    monkeypatch.setattr(runner, "available", lambda: {"toy": "toy"})
    monkeypatch.setattr(runner, "_module", lambda system: module)
    return module


def test_parts_are_measured_one_by_one_and_judged_together(parted, toy, tmp_path, monkeypatch):
    whole = reproduce("toy", "cpu", out=tmp_path / "whole")
    monkeypatch.setattr(runner, "_module", lambda system: parted)
    parted.fail_at = ("cars", 5)
    with pytest.raises(KeyboardInterrupt):
        reproduce("toy", "cpu", out=tmp_path)
    assert parted.measured == [("letters", 3), ("cars", 3), ("letters", 5)]
    parted.fail_at = None
    result = reproduce("toy", "cpu", out=tmp_path)
    assert parted.measured[3:] == [("cars", 5), ("letters", 8), ("cars", 8)]
    assert [c["low"] for c in result["claims"]] == [c["low"] for c in whole["claims"]]
    assert [r["part"] for r in result["rows"][8]] == ["letters", "cars"]
    assert {part: [*seconds] for part, seconds in result["parts"].items()} == {"letters": [3, 5, 8], "cars": [3, 5, 8]}


def test_a_part_that_is_kept_is_not_measured_again(parted, tmp_path):
    first = reproduce("toy", "cpu", out=tmp_path)
    path = tmp_path / "toy.cpu.json"
    recorded = json.loads(path.read_text())
    for rows in recorded["rows"].values():
        rows[0]["examples"] = "1" * 200  # what is recorded counts
        for row in rows:
            del row["part"]  # recorded before there were parts: all of it is the first
    recorded["rows"] = {seed: rows[:1] for seed, rows in recorded["rows"].items()}
    del recorded["parts"]
    path.write_text(json.dumps(recorded))
    parted.measured.clear()
    result = reproduce("toy", "cpu", out=tmp_path, keep=["letters"])
    assert parted.measured == [("cars", 3), ("cars", 5), ("cars", 8)]
    assert (first.get("kept"), result["kept"]) == (None, ["letters"])
    assert result["claims"][0]["values"] == [1.0, pytest.approx(first["claims"][0]["values"][1])]
    again = reproduce("toy", "cpu", out=tmp_path, keep=["letters", "cars"])
    assert len(parted.measured) == 3
    assert again["rows"][3] == result["rows"][3]


def test_what_was_kept_counts_as_measured_in_no_other_run(parted, tmp_path):
    reproduce("toy", "cpu", out=tmp_path)
    parted.measured.clear()
    parted.fail_at = ("cars", 5)
    with pytest.raises(KeyboardInterrupt):
        reproduce("toy", "cpu", out=tmp_path, keep=["letters"])
    parted.fail_at = None
    reproduce("toy", "cpu", out=tmp_path)
    letters = [("letters", seed) for seed in (3, 5, 8)]
    assert [place for place in parted.measured if place[0] == "letters"] == letters
    assert [place for place in parted.measured if place[0] == "cars"] == [("cars", seed) for seed in (3, 5, 8)]


@pytest.mark.parametrize(
    ("change", "asked", "said"),
    [
        (lambda r: r, {"keep": ["carts"]}, "there is no 'carts'. Did you mean cars"),
        (lambda r: r, {"keep": ["cars"], "seeds": [3, 4]}, "no record of seed 4"),
        (lambda r: r["versions"].update(torch="1.0"), {"keep": ["cars"]}, "'cars', recorded with other versions"),
        (lambda r: r["settings"].update(n=7), {"keep": ["letters"]}, "'letters', recorded with other settings"),
        (lambda r: r["settings"].update(cars={"n": 7}), {"keep": ["cars"]}, "'cars', recorded with other settings"),
    ],
)
def test_only_what_would_be_measured_alike_can_be_kept(parted, tmp_path, monkeypatch, change, asked, said):
    monkeypatch.setitem(SCALES, "cpu", {"n": 200, "cars": {"n": 3}})
    reproduce("toy", "cpu", out=tmp_path)
    recorded = json.loads((tmp_path / "toy.cpu.json").read_text())
    change(recorded)
    (tmp_path / "toy.cpu.json").write_text(json.dumps(recorded))
    with pytest.raises(BadInput, match=said):
        reproduce("toy", "cpu", out=tmp_path, **asked)


def test_settings_of_other_parts_may_change_for_what_is_kept(parted, tmp_path, monkeypatch):
    monkeypatch.setitem(SCALES, "cpu", {"n": 200, "cars": {"n": 3}})
    reproduce("toy", "cpu", out=tmp_path)
    monkeypatch.setitem(SCALES, "cpu", {"n": 200, "cars": {"n": 4}})
    reproduce("toy", "cpu", out=tmp_path, keep=["letters"])
    assert parted.measured[6:] == [("cars", 3), ("cars", 5), ("cars", 8)]


def test_a_changed_module_or_setting_is_measured_anew(toy, tmp_path, monkeypatch):
    for change in ("text", "settings", "version"):
        toy.measured.clear()
        toy.fail_at = 5
        with pytest.raises(KeyboardInterrupt):
            reproduce("toy", "cpu", seeds=(3, 5), out=tmp_path / change)
        toy.fail_at = None
        if change == "text":
            (tmp_path / "toy.py").write_text("SYSTEM = 'toy'  # changed")
        elif change == "settings":
            toy.CLAIMS = [Claim("it helps", "", ("base", "method"), "robust_accuracy", "higher", {"cpu": {"n": 201}})]
            monkeypatch.setitem(SCALES["cpu"], "n", 201)
        else:
            monkeypatch.setattr(runner, "__version__", "9.9")
        reproduce("toy", "cpu", seeds=(3, 5), out=tmp_path / change)
        assert toy.measured == [3, 3, 5]


def test_a_result_replaces_the_older_one(toy, tmp_path):
    reproduce("toy", out=tmp_path, seeds=[1])
    reproduce("toy", out=tmp_path, seeds=[2])
    assert json.loads((tmp_path / "toy.smoke.json").read_text())["seeds"] == [2]


@pytest.mark.parametrize(
    ("low", "high", "direction", "said"),
    [
        (0.01, 0.2, "higher", "shown"),
        (-0.2, -0.01, "higher", "not shown"),
        (-0.1, 0.1, "higher", "inconclusive"),
        (0.0, 0.1, "higher", "inconclusive"),
        (0.0, 0.0, "higher", "not shown"),
        (-0.2, -0.01, "lower", "shown"),
        (0.01, 0.2, "lower", "not shown"),
        (-0.1, 0.1, "lower", "inconclusive"),
        (0.0, 0.0, "lower", "not shown"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, direction, said):
    assert verdict(low, high, direction) == said


def test_the_interval_agrees_with_the_textbook_for_one_seed():
    values = np.random.default_rng(1).normal(0.3, 1, (1, 400))
    low, high = paired_interval(values, draws=20_000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_the_interval_agrees_with_a_plain_loop_over_seeds_and_examples():
    generator = np.random.default_rng(2)
    values = generator.normal(0, 1, (4, 30)) + generator.normal(0, 2, (4, 1))
    found = [values[generator.integers(0, 4, 4)][:, generator.integers(0, 30, 30)].mean() for _ in range(6000)]
    assert np.allclose(paired_interval(values), np.quantile(found, [0.025, 0.975]), atol=0.12)
    one = paired_interval(values[:1] - values[:1].mean())
    assert one[1] - one[0] < 1


def test_pairing_narrows_the_interval():
    """Arms that differ on few examples: the difference is far surer than either value."""
    right = [int(v) for v in np.random.default_rng(0).random(300) < 0.5]
    better = [1 if i < 12 else v for i, v in enumerate(right)]
    rows = [{"arm": a, "metric": "m", "examples": e} for a, e in (("base", right), ("method", better))]
    judged = judge(claim(metric="m"), [rows])
    assert judged["verdict"] == "shown"
    assert judged["high"] - judged["low"] < 0.05
    assert judged["values"] == [np.mean(right), np.mean(better)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("base", "robust_accuracy", "01"), ("base", "robust_accuracy", "01")], "twice"),
        ([("base", "robust_accuracy", "")], "none of its examples"),
        ([("base", "robust_accuracy", "01"), ("metod", "robust_accuracy", "01")], "metod"),
        ([("base", "robust_accuracy", "01"), ("method", "robust_accuracy", "011")], "2, as for"),
    ],
)
def test_rows_that_do_not_fit_are_refused(toy, tmp_path, rows, said):
    toy.measure = lambda *_: {"rows": [dict(zip(("arm", "metric", "examples"), r)) for r in rows]}
    with pytest.raises(BadInput, match=said):
        reproduce("toy", out=tmp_path)
    assert not list(tmp_path.glob("toy.*.json"))


def test_unknown_systems_scales_and_no_seeds_are_refused(toy, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="'smoke' or 'cpu'"):
        reproduce("toy", "gpu", out=tmp_path)
    with pytest.raises(BadInput, match="seeds"):
        reproduce("toy", seeds=[], out=tmp_path)
    monkeypatch.undo()
    with pytest.raises(BadInput, match="classic_attacks"):
        reproduce("classic_atacks", out=tmp_path)


def test_systems_are_found_without_importing_torch():
    code = "import sys, withstand.reproductions as r; print(r.available()['classic_attacks'], 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["withstand.reproductions.classic_attacks", "False"]


def test_every_reproduction_is_of_a_known_system():
    from withstand.systems import systems

    assert set(reproductions.available()) <= {s.id for s in systems()}
    assert reproductions.reproduce is reproduce


def test_figures_are_made_of_all_seeds_and_kept(toy, tmp_path):
    def figures(seeds):
        return [Figure("bars", "Right", {"labels": ["seeds"], "y_label": "n", "series": [{"values": [len(seeds)]}]})]

    assert "figures" not in reproduce("toy", "cpu", out=tmp_path)
    toy.figures = figures
    reproduce("toy", "cpu", out=tmp_path)
    (kept,) = json.loads((tmp_path / "toy.cpu.json").read_text())["figures"]
    assert kept["data"]["series"][0]["values"] == [3]
