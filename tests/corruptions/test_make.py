"""Corrupted sets on the disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import withstand as ws
from tests.data.shift.trees import tree
from withstand.corruptions import corrupt, make, make_corrupted
from withstand.corruptions.tables import COMMON
from withstand.data import from_arrays
from withstand.data.shift.disk import survey
from withstand.data.shift.table import benchmark
from withstand.data.shift.view import View
from withstand.errors import BadInput, WithstandError

KINDS = ("fog", "contrast")


@pytest.fixture
def thumbs():
    x = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    return from_arrays(x, np.array([3, 1, 4, 1, 5, 9]), "thumbs", 10)


def files(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_arrays_hold_what_corrupt_makes_severity_after_severity(thumbs, tmp_path):
    place = make_corrupted("cifar10-c", thumbs, tmp_path / "c", kinds=KINDS, seed=7)
    x = (thumbs.batch(range(6)).x * 255).round().to(torch.uint8)
    for kind in KINDS:
        found = np.load(place / f"{kind}.npy")
        assert found.dtype == np.uint8
        assert found.shape == (30, 32, 32, 3)
        for severity in range(1, 6):
            made = corrupt(x, kind, severity, 7, torch.arange(6), "cifar").permute(0, 2, 3, 1).numpy()
            assert (found[6 * (severity - 1) : 6 * severity] == made).all()
    assert np.load(place / "labels.npy").tolist() == [3, 1, 4, 1, 5, 9] * 5


def test_what_was_made_can_be_scored_and_says_where_it_comes_from(thumbs, tmp_path):
    place = make_corrupted("cifar10-c", thumbs, tmp_path / "CIFAR-10-C", kinds=("frost", "contrast"))
    stock = survey(benchmark("cifar10-c"), tmp_path, ("frost", "contrast"), partial=True)
    assert stock.place == place
    assert stock.made is not None
    assert stock.made["frost"] == "procedural"
    assert len(stock.cells) == 10


def test_photographs_become_files_of_the_same_names(tmp_path):
    tree(tmp_path / "imagenet-val", (0, 5, 999), 1, side=300)
    place = make_corrupted("imagenet-c", tmp_path, tmp_path / "imagenet-c", kinds=KINDS)
    assert len(list(place.rglob("*.JPEG"))) == 3 * 2 * 5
    clean = View()(Image.open(tmp_path / "imagenet-val" / "n15075141" / "000.png"))
    x = torch.from_numpy(np.array(clean)).permute(2, 0, 1)[None].contiguous()
    made = corrupt(x, "contrast", 3, 0, torch.tensor([2]), "imagenet")[0].permute(1, 2, 0).numpy()
    with Image.open(place / "contrast" / "3" / "n15075141" / "000.JPEG") as image:
        assert image.size == (224, 224)
        assert np.abs(np.asarray(image).astype(int) - made).mean() < 3  # but for JPEG
    stock = survey(benchmark("imagenet-c"), tmp_path, KINDS, partial=True)
    assert stock.aligned


@pytest.mark.parametrize("layout", ["cifar10-c", "imagenet-c"])
def test_an_interrupted_set_ends_as_an_uninterrupted_one(thumbs, tmp_path, monkeypatch, layout):
    tree(tmp_path / "imagenet-val", (0, 5, 999), 1, side=230)
    source = thumbs if layout == "cifar10-c" else tmp_path
    monkeypatch.setattr(make, "BLOCK", 2)
    make_corrupted(layout, source, tmp_path / "whole", kinds=KINDS)
    calls = []

    def stopping(*arguments, **settings):
        calls.append(arguments[1])
        if len(calls) == 8:
            raise KeyboardInterrupt
        return corrupt(*arguments, **settings)

    monkeypatch.setattr(make, "corrupt", stopping)
    with pytest.raises(KeyboardInterrupt):
        make_corrupted(layout, source, tmp_path / "broken", kinds=KINDS)
    make_corrupted(layout, source, tmp_path / "broken", kinds=KINDS)
    assert len(calls) == {"cifar10-c": 8 + 5, "imagenet-c": 8 + 15}[layout]  # what was finished is not made again
    there, here = files(tmp_path / "whole"), files(tmp_path / "broken")
    there.pop(".lock"), here.pop(".lock")
    assert here == there


def test_other_settings_and_foreign_folders_are_refused(thumbs, tmp_path):
    make_corrupted("cifar10-c", thumbs, tmp_path / "c", kinds=("fog",))
    with pytest.raises(BadInput, match=r"holds another set .seed: there 0, now 1"):
        make_corrupted("cifar10-c", thumbs, tmp_path / "c", kinds=("fog",), seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(BadInput, match="holds other files"):
        make_corrupted("cifar10-c", thumbs, tmp_path / "mine", kinds=("fog",))
    assert json.loads((tmp_path / "c" / "withstand.json").read_text())["kinds"] == ["fog"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout": "cifar-c"}, "Did you mean cifar10-c"),
        ({"kinds": ("fogg",)}, "Did you mean fog"),
        ({"kinds": ()}, "corruption"),
        ({"limit": 0}, "limit: got 0"),
        ({"layout": "cifar100-c"}, "100 classes"),
        ({"layout": "imagenet-c"}, "source: got Images"),
        ({"source": "cifar10"}, "source: got str"),
        ({"kinds": ("fog", "frost"), "frost_textures": "nowhere"}, "frost_textures"),
        ({"frost_textures": [np.zeros((8, 8, 3), np.uint8)]}, "textures for fog"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(thumbs, tmp_path, change, said):
    asked = {"layout": "cifar10-c", "source": thumbs, "out": tmp_path / "c", "kinds": ("fog",), **change}
    with pytest.raises(WithstandError, match=said):
        make_corrupted(asked.pop("layout"), asked.pop("source"), asked.pop("out"), **asked)
    assert not (tmp_path / "c").exists()


def test_a_made_set_is_told_from_the_published_files(thumbs, tmp_path):
    make_corrupted("cifar10-c", thumbs, tmp_path / "CIFAR-10-C", kinds=COMMON)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    found = ws.shift({"m": model}, "cifar10-c", root=tmp_path, out=tmp_path / "o", partial=True)
    assert "frost*" in {c["corruption"] for c in found["cells"]}
    assert "made by withstand" in (tmp_path / "o" / "shift.md").read_text()
    assert {r["subset"] for r in found["results"]} == {"subset-6"}
