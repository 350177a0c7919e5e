"""`withstand --help`, `list`, `attack` and the demo."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from withstand.registry import entries
from withstand.systems import systems

PGD = ("--attack", "pgd:steps=5,eps=0.1", "--data", "digits", "--limit", "40")


@pytest.mark.parametrize(
    "arguments", [["--help"], *(["list", what] for what in ("systems", "attacks", "data", "models"))]
)
def test_help_and_lists_import_nothing_heavy(arguments):
    program = (
        "import sys; sys.argv[0] = 'withstand'\n"
        "from withstand.cli.main import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'duckdb', 'pyarrow', 'sklearn', 'withstand.protocols'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb(withstand):
    done = withstand("--help")
    assert done.code == 0
    for verb in ("audit", "attack", "compare", "report", "list", "reproduce", "demo", "edit"):
        assert verb in done.out


COMPONENTS = [
    "attacks", "recipes", "detectors", "checks", "indicators", "threats", "objectives", "samplers", "augmentations",
]  # fmt: skip


@pytest.mark.parametrize("what", COMPONENTS)
def test_list_shows_every_registered_component(withstand, what):
    rows = json.loads(withstand("list", what, "--json").out)
    assert [row["name"] for row in rows] == [e.name for e in entries(what.removesuffix("s"))]
    text = withstand("list", what).out
    assert all(row["name"] in text for row in rows)


def test_list_losses_has_those_of_embeddings_and_of_codes(withstand):
    names = [row["name"] for row in json.loads(withstand("list", "losses", "--json").out)]
    assert names == [e.name for kind in ("metric_loss", "hashing_loss") for e in entries(kind)]
    assert "cbml_loss" in names


def test_list_systems_has_all_of_them_with_their_papers(withstand):
    rows = json.loads(withstand("list", "systems", "--json").out)
    assert [row["id"] for row in rows] == [s.id for s in systems()]
    assert all(row["paper"] and row["family"] for row in rows)


def test_list_data_and_models(withstand):
    assert "digits" in [row["name"] for row in json.loads(withstand("list", "data", "--json").out)]
    assert "zoo:digits_cnn" in [row["name"] for row in json.loads(withstand("list", "models", "--json").out)]


def test_attack_writes_examples_that_are_read_back_as_data(withstand, home):
    done = withstand("attack", "net.py:centres", *PGD, "--out", "adv.npz")
    assert done.code == 0, done.err
    manifest = json.loads((home / "adv.json").read_text())
    share = manifest["success"]["value"]
    with np.load(home / "adv.npz") as held:
        x, y = held["x"], held["y"]
    assert x.shape == (40, 1, 8, 8)
    assert x.dtype == np.float32
    assert [image["label"] for image in manifest["images"]] == y.tolist()
    assert max(image["distance"] for image in manifest["images"]) <= 0.1 + 1e-6
    again = withstand("audit", "net.py:centres", "--data", "adv.npz", "--checks", "clean", "--format", "json")
    metric = json.loads(again.out)["results"][0]["metrics"][0]
    assert metric["value"] == pytest.approx(1 - share)
    passes = int(re.search(r"1 piece of work, at most ([\d,]+) passes", done.err)[1].replace(",", ""))
    assert 40 * 5 < passes < 40 * 20  # of 40 images and 5 steps


def test_the_package_runs_as_a_module(withstand):
    done = subprocess.run([sys.executable, "-m", "withstand", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == withstand("--version").out


def test_last_iterates_are_judged_by_the_model(withstand, home):
    last = ("--attack", "pgd(linf(0.1), steps=5, keep='last', active=False)", "--data", "digits", "--limit", "40")
    done = withstand("attack", "net.py:centres", *last, "--out", "last.npz", "--json")
    assert done.code == 0, done.err
    images = json.loads(done.out)["images"]
    assert [i["success"] for i in images] == [i["prediction"] != i["label"] for i in images]
    assert any(i["success"] for i in images)


def test_last_iterates_of_a_targeted_attack_reach_the_target_from_another_class(withstand, home):
    attack = "pgd(linf(0.3), steps=5, keep='last', active=False, objective=targeted_margin(0))"
    done = withstand("attack", "net.py:centres", "--attack", attack, "--data", "digits", "--limit", "40", "--out",
                     "last.npz", "--json")  # fmt: skip
    assert done.code == 0, done.err
    images = json.loads(done.out)["images"]
    assert [i["success"] for i in images] == [i["prediction"] == 0 and i["label"] != 0 for i in images]
    assert any(i["success"] for i in images)
    assert any(i["prediction"] == i["label"] == 0 for i in images)


def test_attack_writes_png_files_that_still_do_it(withstand, home):
    done = withstand("attack", "net.py:centres", *PGD, "--out", "adv", "--json")
    assert done.code == 0, done.err
    manifest = json.loads(done.out)
    assert manifest == json.loads((home / "adv" / "manifest.json").read_text())
    images = manifest["images"]
    assert len(list((home / "adv" / "images").glob("*.png"))) == 40
    assert Image.open(home / "adv" / images[0]["file"]).size == (8, 8)
    assert max(image["distance"] for image in images) <= 0.1 + 1 / 510  # digits are sixteenths, not 255ths
    again = withstand(
        "audit", "net.py:centres", "--data", "adv", "--channels", "1", "--checks", "clean", "--format", "json"
    )
    assert again.code == 0, again.err
    metric = json.loads(again.out)["results"][0]["metrics"][0]
    assert metric["value"] == pytest.approx(sum(i["prediction"] == i["label"] for i in images) / 40)
    assert all(i["prediction"] != i["label"] for i in images if i["success"])


def test_attack_again_is_done_and_another_one_is_refused(withstand, home):
    withstand("attack", "net.py:centres", *PGD, "--out", "adv.npz")
    before = (home / "adv.npz").stat().st_mtime_ns
    assert withstand("attack", "net.py:centres", *PGD, "--out", "adv.npz").code == 0
    assert (home / "adv.npz").stat().st_mtime_ns == before
    other = withstand("attack", "net.py:centres", *PGD, "--out", "adv.npz", "--seed", "1")
    assert other.code == 2
    assert "exists" in other.err
    assert not (home / "adv.npz.unfinished").exists()


def test_an_attack_that_was_stopped_goes_on(home, monkeypatch):
    import withstand as ws
    from withstand.audit import craft

    model, data = ws.load_model("net.py:centres"), ws.load_data("digits", limit=300)
    arguments = {"model": model, "data": data, "attack": "pgd(linf(0.1), steps=2)"}
    craft.craft(**arguments, out=home / "whole.npz")

    def stop(model, check, done, total):
        if done > 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        craft.craft(**arguments, out=home / "adv.npz", report=stop)
    assert not (home / "adv.npz").exists()
    seen = []
    craft.craft(**arguments, out=home / "adv.npz", report=lambda model, check, done, total: seen.append(done))
    assert min(seen) >= 128
    with np.load(home / "adv.npz") as one, np.load(home / "whole.npz") as other:
        assert (one["x"] == other["x"]).all()


def test_the_demo_audits_two_networks_and_keeps_them(withstand, home):
    checks = ("--checks", "clean", "--checks", "robust(linf(0.15), attack=pgd(steps=5), examples=100)")
    done = withstand("audit", "--out", "d", *checks, "--format", "json")
    assert done.code == 0, done.err
    robust = {r["model"]: r["metrics"][0]["value"] for r in json.loads(done.out)["results"] if r["check"] == "robust"}
    assert robust["adversarial"] > robust["plain"] + 0.2
    times = [p.stat().st_mtime_ns for p in sorted((home / "d" / "models").iterdir())]
    assert len(times) == 2
    assert "training" not in withstand("audit", "demo", "--out", "d", *checks, "--fresh").err
    assert [p.stat().st_mtime_ns for p in sorted((home / "d" / "models").iterdir())] == times


def test_own_series_are_attacked_and_audited(withstand, home):
    x = np.random.default_rng(0).normal(5, 3, (20, 2, 12))
    np.savez(home / "own.npz", x=x, y=np.arange(20) % 3)
    pgd = ("--attack", "pgd:steps=3,eps=0.5", "--out", "adv.npz")
    done = withstand("attack", "net.py:series", "--data", "own.npz", *pgd, "--series", "raw")
    assert done.code == 0, done.err
    with np.load(home / "adv.npz") as held:
        assert 0.4 < np.abs(held["x"] - x[held["id"]]).max() <= 0.5 + 1e-5
    audited = ("audit", "net.py:series", "--preset", "quick", "--format", "json")
    done = withstand(*audited, "--data", "own.npz", "--series", "normalised")
    assert done.code == 0, done.err
    assert "robust_accuracy" in done.out
    done = withstand(*audited, "--data", "own.npz")
    assert done.code == 2
    assert "--series" in done.err
