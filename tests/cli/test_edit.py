"""`withstand edit` as a user runs it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(home):
    """Two grey photographs with a white square, in folders of their class, and their masks."""
    rng = np.random.default_rng(0)
    for name, top in (("a/one", 8), ("b/two", 20)):
        ground = rng.integers(60, 90, (40, 50, 3), dtype=np.uint8)
        ground[top : top + 12, 10:24] = 240
        mask = np.zeros((40, 50), np.uint8)
        mask[top : top + 12, 10:24] = 255
        for pixels, place in ((ground, "photos"), (mask, "masks")):
            (home / place / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(home / place / f"{name}.png")
    return home


ASKED = ("--size", "0.05", "--position", "random", "--direction", "-45", "--background", "complex:20")


def test_a_folder_is_edited_and_again_is_done(withstand, photos):
    asked = ("edit", "photos", *ASKED, "--masks", "masks", "--seed", "3", "--out", "edited")
    done = withstand(*asked)
    assert done.code == 0, done.err
    assert "2 of 2 images edited; written to edited" in done.out
    rows = list(csv.DictReader((photos / "edited" / "manifest.csv").open()))
    assert [r["file"] for r in rows] == ["a/one.png", "b/two.png"]
    assert all(r["seed"] == "3" and 0.0475 <= float(r["rate_after"]) <= 0.0525 for r in rows)
    stamp = (photos / "edited" / "images" / "a" / "one.png").stat().st_mtime_ns
    again = withstand(*asked, "--json")
    assert [r["file"] for r in json.loads(again.out)] == ["a/one.png", "b/two.png"]
    assert (photos / "edited" / "images" / "a" / "one.png").stat().st_mtime_ns == stamp
    other = withstand(*asked[:-4], "--seed", "4", "--out", "edited")
    assert other.code == 2
    assert "of a run with other seed" in other.err


def test_what_was_skipped_is_said(withstand, photos):
    done = withstand("edit", "photos", "--position", "28,36", "--masks", "masks", "--out", "edited")
    assert "2 of 2" in done.out
    done = withstand("edit", "photos", "--position", "30,36", "--masks", "masks", "--out", "other")
    assert done.code == 0
    assert "0 of 2" in done.out
    assert "skipped a/one.png: at row 30, column 36 the object of 12 x 14 pixels would be cut" in done.err


def test_a_guide_and_a_segmenter_of_ones_own(withstand, photos):
    (photos / "mine.py").write_text(
        "from torch import nn\n"
        "def white():\n    return lambda image: image[0] > 0.7\n"
        "def guide():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))\n"
    )
    asked = ("edit", "photos", "--background", "adversarial:20", "--segmenter", "mine.py:white")
    done = withstand(*asked, "--guide", "mine.py:guide", "--out", "edited")
    assert done.code == 0, done.err
    mask = np.asarray(Image.open(photos / "edited" / "masks" / "b" / "two.png"))
    assert np.array_equal(mask, np.asarray(Image.open(photos / "masks" / "b" / "two.png")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--size", "half"), "--size: got 'half'"),
        (("--direction", "left"), "--direction: got 'left'"),
        (("--position", "1;2"), "--position: got '1;2'"),
        ((), "at least one of size"),
        (("--size", "0.05", "--variant", "real"), "published"),
        (("--size", "0.05", "--object", "dog"), "knows no classes"),
        (("--background", "adversarial:20"), "guide"),
    ],
)
def test_what_does_not_fit_is_said(withstand, photos, given, said):
    done = withstand("edit", "photos", *given, "--out", "edited")
    assert done.code == 2
    assert said in done.err
    assert not (photos / "edited").exists()
