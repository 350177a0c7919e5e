"""A run folder holds whole files only, belongs to one process and one plan, and is gone on with after any end."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from withstand.audit.store import Store
from withstand.errors import BadInput, Unavailable

PLAN = {"withstand": "0", "seed": 0}
DRIVER = Path(__file__).with_name("killed_everywhere.py")


def killed_everywhere(folder, stride):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), str(stride)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_at_any_file_the_same_call_ends_with_the_same_rows(tmp_path):
    assert killed_everywhere(tmp_path, 20) >= 3


@pytest.mark.slow
def test_killed_at_every_file_the_same_call_ends_with_the_same_rows(tmp_path):
    assert killed_everywhere(tmp_path, 1) >= 50


@pytest.mark.parametrize("at", [1, 2, 4, 7])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on(
    tmp_path, monkeypatch, audit_small, rows, call, at
):
    count, real = 0, getattr(os, call)

    def full(*arguments):
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(Unavailable, match=r"No space left on device.*same command"):
            audit_small(tmp_path / "run", examples=140)
    left = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name.startswith(".")]
    assert [p.name for p in left] == [".lock"]
    rows(tmp_path / "run")  # reads every file whole
    card = audit_small(tmp_path / "run", examples=140)
    audit_small(tmp_path / "whole" / "run", examples=140)
    assert card.complete
    assert rows(tmp_path / "run") == rows(tmp_path / "whole" / "run")


def test_a_second_process_is_refused_while_the_first_one_works(tmp_path):
    with Store(tmp_path, PLAN), pytest.raises(Unavailable, match=rf"pid {os.getpid()}"):
        Store(tmp_path, PLAN).__enter__()
    with Store(tmp_path, PLAN):
        pass


def test_another_plan_is_refused_and_named(tmp_path):
    with Store(tmp_path, PLAN):
        pass
    with pytest.raises(BadInput, match=r"seed: there 0, now 1.*--fresh"):
        Store(tmp_path, {**PLAN, "seed": 1}).__enter__()
    with Store(tmp_path, {**PLAN, "seed": 1}, fresh=True):
        assert json.loads((tmp_path / "plan.json").read_text())["seed"] == 1


@pytest.mark.parametrize("name", ["notes.txt", ".git", ".env"])
def test_a_folder_with_anything_else_in_it_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for fresh in (False, True):
        with pytest.raises(BadInput, match="holds no run"):
            Store(tmp_path, PLAN, fresh).__enter__()
    assert (tmp_path / name).read_text() == "mine"


def test_a_foreign_plan_is_refused_even_with_fresh(tmp_path):
    (tmp_path / "plan.json").write_text('{"resources": []}')
    (tmp_path / "rows").mkdir()
    with pytest.raises(BadInput, match="not written by withstand"):
        Store(tmp_path, PLAN, fresh=True).__enter__()
    assert (tmp_path / "rows").is_dir()


def test_what_a_killed_process_left_half_written_is_swept_away_and_nothing_else(tmp_path):
    with Store(tmp_path, PLAN):
        pass
    for name in (".plan.json.abc", "rows/m/c/.000000.parquet.xyz", "side/m/c/.000001.77/worst.npz", ".mine"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with Store(tmp_path, PLAN):
        files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [".lock", ".mine", "plan.json"]


def test_fresh_forgets_rows_failures_and_results(tmp_path):
    with Store(tmp_path, PLAN) as store:
        store.write("m", "c", 0, [], 0, {})
        store.fail("m", "c", "reason")
    with Store(tmp_path, PLAN, fresh=True) as store:
        assert not store.done("m", "c", 0)
        assert store.failed("m", "c") == ""


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path, audit_small, rows):
    def interrupt(model, check, done, total):
        if (model, check, done) == ("second", "robust", 128):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_small(tmp_path / "run", report=interrupt)
    kept = rows(tmp_path / "run")
    assert 0 < len(kept) < 12
    seen = []
    audit_small(tmp_path / "run", report=lambda *event: seen.append(event))
    assert {(model, check) for model, check, *_ in seen} == {("second", "robust")}
    assert len(rows(tmp_path / "run")) == 12
