"""Kill an audit with SIGKILL before and after each file that it puts in place, go on, and compare the rows.

Run as a script, with a folder and a stride (3: at every third file): it forks, so it needs a process of its own.
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

spec = importlib.util.spec_from_file_location("audits", Path(__file__).with_name("conftest.py"))
assert spec is not None
assert spec.loader is not None
audits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audits)


def child(folder: Path, at: int, after: bool) -> int:
    """Run the audit in a fork that kills itself at the n-th rename; returns the wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    count, rename = 0, os.replace

    def replace(*paths: object) -> None:
        nonlocal count
        count += 1
        if count == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)  # type: ignore[arg-type]
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]
    try:
        audits.small_audit(folder, 140)
    finally:
        os._exit(0)


def findings(folder: Path) -> Any:
    """The scorecard without its times."""
    card = json.loads((folder / "scorecard.json").read_text())
    return [{k: v for k, v in r.items() if k != "seconds"} for r in card["results"]], card["comparisons"]


def main(base: Path, stride: int) -> None:
    torch.set_num_threads(1)
    whole = base / "whole" / "run"
    audits.small_audit(whole, 140)
    expected, card = audits.rows_of(whole), findings(whole)
    killed = 0
    for at in range(1, 200, stride):
        statuses = []
        for after in (False, True):
            folder = base / f"{at}-{after}" / "run"
            statuses.append(os.WIFSIGNALED(child(folder, at, after)))
            again = audits.small_audit(folder, 140)
            found = audits.rows_of(folder)
            assert found.keys() == expected.keys(), (at, after)
            assert all(found[name].equals(expected[name]) for name in expected), (at, after)
            assert [p for p in folder.rglob(".*") if p.name != ".lock"] == [], (at, after)
            assert again.complete
            assert findings(folder) == card, (at, after)
        if not any(statuses):
            break
        killed += 1
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
