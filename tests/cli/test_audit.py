"""`withstand audit`, `report` and `compare`, used rightly and wrongly."""

import json
import os
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

CHECKS = ("--checks", "clean", "--checks", "robust(linf(0.1), attack=pgd(steps=3))")
BOTH = ("good=net.py:centres", "bad=net.py:guess", "--data", "digits", "--limit", "60", *CHECKS)


def test_two_models_side_by_side(withstand, home):
    done = withstand("audit", *BOTH)
    assert done.code == 0, done.err
    assert "good" in done.out
    assert "Accuracy on clean data" in done.out
    assert "pieces of work" in done.err
    folder = home / "runs" / "good-bad-digits-checks"
    assert (folder / "report.html").is_file()
    card = json.loads((folder / "scorecard.json").read_text())
    values = {(r["model"], m["name"]): m["value"] for r in card["results"] for m in r["metrics"]}
    assert values["good", "clean_accuracy"] > 0.8
    assert values["bad", "clean_accuracy"] < 0.3
    assert card["data"]["examples"] == 60


def test_the_same_command_again_has_nothing_left_to_do(withstand):
    withstand("audit", *BOTH)
    again = withstand("audit", *BOTH)
    assert again.code == 0
    assert "nothing left to do" in again.err


def test_another_run_in_the_same_folder_is_refused_unless_fresh(withstand):
    withstand("audit", *BOTH, "--out", "r")
    other = withstand("audit", *BOTH, "--out", "r", "--seed", "1")
    assert other.code == 2
    assert "seed: there 0, now 1" in other.err
    assert withstand("audit", *BOTH, "--out", "r", "--seed", "1", "--fresh").code == 0


def test_json_is_the_scorecard_and_nothing_else_on_stdout(withstand):
    done = withstand("audit", *BOTH, "--format", "json")
    assert json.loads(done.out)["models"].keys() == {"good", "bad"}


def test_markdown_and_junit(withstand):
    done = withstand("audit", *BOTH, "--format", "markdown")
    assert "| Measure | good | bad | n |" in done.out
    done = withstand(
        "audit",
        *BOTH,
        "--format",
        "junit",
        "--fail-under",
        "good/clean_accuracy=0.5",
        "--fail-under",
        "clean_accuracy=2",
    )
    suites = ElementTree.fromstring(done.out)
    cases = {case.get("name"): len(case) for case in suites.iterfind("testsuite[@name='requirements']/testcase")}
    assert cases == {"good/clean_accuracy=0.5": 0, "clean_accuracy=2": 1}
    assert done.code == 1


@pytest.mark.parametrize(
    ("requirement", "code", "said"),
    [
        ("good/clean_accuracy=0.5", 0, ""),
        ("good/robust_accuracy@linf:0.1=0.00", 0, ""),
        ("clean_accuracy=0.5", 1, "bad has clean_accuracy"),
        ("good/robust_accuracy@linf:0.1=0.999", 1, "good has robust_accuracy"),
        ("good/ece=0.0", 1, "above 0"),
        ("robust_accuracy@linf:8/255=0.3", 2, "not measured there, but at: linf:"),
        ("robust_acuracy=0.3", 2, "Did you mean robust_accuracy"),
    ],
)
def test_fail_under(withstand, requirement, code, said):
    done = withstand("audit", *BOTH, "--fail-under", requirement)
    assert done.code == code, done.err
    assert said in done.err
    assert "Accuracy on clean data" in done.out  # the result is shown all the same


@pytest.mark.parametrize(
    "requirement",
    ["robust_accuracy", "=0.3", "clean_accuracy=much", "robust_accuracy@linf:eps=8/255", "god/clean_accuracy=0.3"],
)
def test_an_unreadable_requirement_is_refused_before_any_work(withstand, home, requirement):
    done = withstand("audit", *BOTH, "--fail-under", requirement)
    assert done.code == 2
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit", "net.py:centres"], "--data"),
        (["audit", "net.py:centers", "--data", "digits"], "Did you mean centres"),
        (["audit", "net.py:not_a_model", "--data", "digits"], "torch.nn.Module"),
        (["audit", "nett.py:centres", "--data", "digits"], "not a file"),
        (["audit", "net.py:wrong_classes", "--data", "digits"], "classes"),
        (["audit", "net.py:centres", "--data", "digit"], "Did you mean digits"),
        (["audit", "net.py:centres", "--data", "digits", "--preset", "quik"], "Did you mean quick"),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "claen"], "Did you mean clean"),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "clean:bin=3"], "Did you mean bins"),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "robust(evil.call())"], "component"),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "robust(linf(8))"], "write 8/255, not 8"),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "clean(examples=0)"], "number >= 1"),
        (["audit", "net.py:centres", "--data", "photos/"], "no file or folder"),
        (
            ["audit", "net.py:centres", "--data", "digits", "--checks", "clean", "--engine", "lokal"],
            "Did you mean local",
        ),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "clean", "--device", "gpu"], "device: got 'gpu'"),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "clean", "--given", "x"], "NAME=SPEC"),
        (["audit", "net.py:centres", "--data", "digits", "--checks", "clean", "--given", "x=y"], "given"),
        (["audit", "net.py:centres", "--data", "digits", "--weights", "a", "--weights", "b"], "at most 1"),
        (["audit", "net.py:centres", "--data", "digits", "--mean", "0.1;0.2"], "--mean"),
        (["audit", "net.py:centres", "net.py:centres", "--data", "digits"], "twice"),
        (["audit", "--data", "digits"], "a model to go with"),
        (["audit", "net.py:centres", "--data", "digits", "--limit", "0"], "--limit"),
        (["audit", "net.py:centres", "--data", "digits", "--prest", "quick"], "--preset"),
        (["adit"], "audit"),
        (["report", "nowhere"], "withstand audit"),
        (["compare", "nowhere"], "withstand audit"),
        (["compare"], "RUN"),
        (["list", "atacks"], "attacks"),
        (["list"], "WHAT: got nothing; allowed: systems, attacks"),
        (["attack", "net.py:centres", "--data", "digits", "--out", "a.npz", "--attack", "pgd(linf(8))"], "not 8"),
        (["attack", "net.py:centres", "--data", "digits", "--out", "a.npz", "--attack", "pdg"], "or pgd"),
    ],
)
def test_wrong_usage_says_what_to_do_and_writes_nothing(withstand, home, arguments, said):
    done = withstand(*arguments)
    assert done.code == 2
    assert said in done.err, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not (home / "runs").exists()


def test_a_failed_check_shows_in_the_exit_code(withstand, monkeypatch):
    from withstand.audit.checks.clean import Clean

    def fails(*arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Clean, "rows", fails)
    done = withstand("audit", *BOTH)
    assert done.code == 2
    assert "clean of good failed: RuntimeError: shapes differ" in done.err
    assert "Accuracy under attack" in done.out


def test_named_weights_and_a_surrogate(withstand, home):
    import torch
    from safetensors.torch import save_file

    save_file({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, home / "zero.safetensors")
    done = withstand(
        "audit", "good=net.py:centres", "zero=net.py:centres", "--data", "digits", "--limit", "60", "--format", "json",
        "--weights", "zero=zero.safetensors", "--given", "surrogate=net.py:guess",
        "--checks", "clean", "--checks", "transfer(linf(0.1))",
    )  # fmt: skip
    assert done.code == 0, done.err
    values = {(r["model"], m["name"]): m["value"] for r in json.loads(done.out)["results"] for m in r["metrics"]}
    assert values["good", "clean_accuracy"] > 0.8
    assert values["zero", "clean_accuracy"] < 0.3
    assert any(name.startswith("transfer") for _, name in values)


def test_report_prints_a_run_again_and_writes_the_page_and_the_card(withstand, home):
    withstand("audit", *BOTH, "--out", "r")
    (home / "r" / "report.html").unlink()
    done = withstand("report", "r", "--model-card", "card.yaml", "--fail-under", "bad/clean_accuracy=0.9")
    assert done.code == 1
    assert (home / "r" / "report.html").stat().st_size > 1000
    assert "model-index:" in (home / "card.yaml").read_text()


def test_compare_finds_which_examples_changed_sides(withstand):
    withstand("audit", *BOTH, "--out", "r")
    done = withstand("compare", "r", "--format", "json", "--check", "clean")
    (found,) = json.loads(done.out)
    assert (found["before"], found["after"], found["n"]) == ("good", "bad", 60)
    assert found["difference"] == pytest.approx((len(found["gained"]) - len(found["lost"])) / 60)
    assert found["high"] < 0
    text = withstand("compare", "r").out
    assert "worse" in text
    assert "only before" in text
    assert withstand("compare", "r", "--check", "claen").code == 2
    assert withstand("compare", "r", "--format", "junit").code == 2


def test_compare_several_runs_model_by_model(withstand):
    one = ("net.py:centres", "--data", "digits", "--limit", "60")
    withstand("audit", f"m={one[0]}", *one[1:], *CHECKS, "--out", "r1")
    withstand(
        "audit",
        "m=net.py:guess",
        *one[1:],
        "--checks",
        "clean",
        "--checks",
        "robust(linf(0.2), attack=pgd)",
        "--out",
        "r2",
    )
    done = withstand("compare", "r1", "r2", "--format", "json")
    assert {(c["check"], c["before"], c["after"]) for c in json.loads(done.out)} == {("clean", "r1/m", "r2/m")}
    assert "robust: left out" in done.err


def test_compare_refuses_runs_on_different_data(withstand, home):
    import numpy as np

    x = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    np.savez(home / "other.npz", x=x, y=np.arange(20) % 10)
    withstand("audit", "m=net.py:centres", "--data", "digits", "--limit", "20", "--checks", "clean", "--out", "r1")
    withstand("audit", "m=net.py:centres", "--data", "other.npz", "--checks", "clean", "--out", "r2")
    done = withstand("compare", "r1", "r2")
    assert done.code == 2
    assert "same data" in done.err


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_stopped_by_a_signal_the_same_command_goes_on(withstand, home, how, code):
    arguments = [
        "audit", "m=net.py:slow_centres", "--data", "digits", "--out", "r", "--checks", "clean",
        "--checks", "robust(linf(0.02), attack=pgd(steps=40, restarts=5))",
    ]  # fmt: skip
    environment = {**os.environ, "SLOW": "0.05", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    # a shell's background jobs, and so their children, start with SIGINT ignored
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listen}; import sys; sys.argv[0] = 'withstand'; from withstand.cli.main import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((home / "r" / "rows").rglob("clean/*.parquet")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    if how is signal.SIGINT:
        assert "The same command continues in r" in err
        assert "Traceback" not in err
    kept = {p: p.stat().st_mtime_ns for p in (home / "r" / "rows").rglob("*.parquet")}
    assert 0 < len(kept) < 8
    done = withstand(*arguments)
    assert done.code == 0, done.err
    assert len(list((home / "r" / "rows").rglob("*.parquet"))) == 8
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_named_set_is_looked_for_under_root(withstand, home):
    (home / "sets").mkdir()
    done = withstand("audit", "net.py:centres", "--data", "mnist", "--root", str(home / "sets"))
    assert done.code == 2
    assert str(home / "sets") in done.err.replace("\n", "")
    unknown = withstand("audit", "net.py:centres", "--data", "digits", "--classes", "7", "--checks", "clean")
    assert unknown.code == 2
    assert "7" in unknown.err
