import subprocess
import sys
from pathlib import Path

from withstand import systems as module
from withstand.systems import systems


def test_there_are_42_systems_with_unique_ids_and_complete_facts():
    rows = systems()
    assert len({s.id for s in rows}) == len(rows) == 42
    assert all(s.name and s.family and s.purpose and s.paper and 2016 < s.year < 2026 for s in rows)
    counts = {f: sum(s.family == f for s in rows) for f in dict.fromkeys(s.family for s in rows)}
    assert list(counts.values()) == [10, 14, 3, 2, 2, 1, 1, 2, 3, 2, 2]


def test_results_are_found_by_id_and_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_RESULTS", tmp_path)
    assert all(s.results == "" for s in systems())
    (tmp_path / "dat.cpu.json").write_text("{}")
    (tmp_path / "dat.smoke.json").write_text("{}")
    found = {s.id: s.results for s in systems()}
    assert [Path(p).name for p in found["dat"].split()] == ["dat.cpu.json", "dat.smoke.json"]
    assert found["dial"] == ""


def test_listing_imports_nothing_heavy():
    code = "import sys, withstand.systems as s; s.systems(); print('torch' in sys.modules, 'pydantic' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
