"""Beside other libraries, on a network for digits."""

import importlib.util
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[2] / "benchmarks" / "classics.py"


@pytest.mark.peers
@pytest.mark.slow
def test_no_attack_is_weaker_than_its_peer(tmp_path):
    pytest.importorskip("foolbox")
    pytest.importorskip("torchattacks")
    spec = importlib.util.spec_from_file_location("bench_classics", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, row in module.main(out=tmp_path / "r.json", quick=True)["rows"].items():
        assert row["success"] >= row["peer_success"], name
        assert row["distance_ratio"] <= 1.02, name
