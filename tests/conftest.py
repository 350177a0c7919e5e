"""Fixtures that all tests share."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests share the cores (pytest -n), their models are tiny

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of data sets: $WITHSTAND_DATA, else ../shared/data beside the checkout; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("WITHSTAND_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"no data folder: set WITHSTAND_DATA (looked at {root})")
    return root
