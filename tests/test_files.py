"""A file is there whole or not at all."""

import errno
import json
import os

import pytest

from withstand.errors import Unavailable
from withstand.files import slug, write_atomic, write_json


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.txt", "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_plain_and_nan_becomes_null(tmp_path):
    import numpy as np

    path = write_json(
        tmp_path / "deep" / "a.json", {"a": float("nan"), "b": np.float64(2), 3: (1, True), "i": np.float32("inf")}
    )
    assert json.loads(path.read_text()) == {"a": None, "b": 2.0, "3": [1, True], "i": None}


def test_slugs_stay_inside_their_folder():
    assert slug("timm:resnet18") == "timm_resnet18"
    assert "/" not in slug("../../etc")
    assert slug("...") == "unnamed"


def test_lists_of_numbers_take_a_line_and_nothing_else_changes(tmp_path):
    value = {
        "examples": [1, -2.5, 1e-07, 3.25e16, float("nan")], "text": "[\n 1,\n 2\n] [ 1 ]", "mixed": [1, "2", True],
        "deep": [[1, 2], [3]], "none": [], "words": ["[\n 3\n]", "4,"],
    }  # fmt: skip
    text = write_json(tmp_path / "a.json", value).read_text()
    assert '"examples": [1, -2.5, 1e-07, 3.25e+16, null],\n' in text
    assert json.loads(text) == value | {"examples": [1, -2.5, 1e-07, 3.25e16, None]}
    assert "[1, 2],\n" in text
