"""Scores of the shift benchmarks, on small folders."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import withstand as ws
from tests.data.shift.trees import Reader, cifar_c, corrupted, edits, objectnet, paint, tree
from withstand.audit.shift.work import masked_argmax
from withstand.corruptions.scores import ALEXNET
from withstand.corruptions.tables import COMMON, EXTRA
from withstand.data.folders import wnids
from withstand.data.shift import cells
from withstand.data.shift.classes import IMAGENET_A, IMAGENET_R, OBJECTNET
from withstand.data.shift.disk import survey
from withstand.data.shift.table import benchmark
from withstand.editing.dropped import dropped_accuracy
from withstand.editing.imagenet_e import EDITS
from withstand.errors import BadInput, WithstandError
from withstand.metrics import wilson
from withstand.models import as_target
from withstand.protocols import Space

VAL = replace(benchmark("imagenet"), each=2, images=8, subset=(0, 5, 500, 999))
A = replace(benchmark("imagenet-a"), images=200)
C = replace(benchmark("imagenet-c"), each=1, images=4, subset=(0, 5, 500, 999))
CIFAR = replace(benchmark("cifar10-c"), images=4)
ASKED = {"size": 8, "crop": 1.0}


def target(module: nn.Module, classes: int = 1000, name: str = "m"):
    return as_target(module, name, Space((3, None, None), (0.0, 1.0), classes))


def results(found: dict, benchmark_name: str, model: str = "m") -> dict:
    return {r["metric"]: r for r in found["results"] if r["benchmark"] == benchmark_name and r["model"] == model}


def test_top1_with_its_interval(tmp_path):
    tree(tmp_path / "imagenet-val", (0, 5, 500, 999), 2)
    found = ws.shift({"m": target(Reader()), "off": target(Half())}, VAL, root=tmp_path, out=tmp_path / "o", **ASKED)
    right, off = results(found, "imagenet")["top1"], results(found, "imagenet", "off")["top1"]
    assert (right["value"], right["n"], right["subset"]) == (1.0, 8, "full")
    assert off["value"] == 4 / 8
    assert (off["low"], off["high"]) == wilson(4, 8)


def test_labels_come_from_names_not_positions(tmp_path):
    tree(tmp_path / "imagenet-val", (5, 999), 1)
    found = ws.shift(target(Reader(1)), VAL, root=tmp_path, out=tmp_path / "o", partial=True, **ASKED)
    assert results(found, "imagenet")["top1"]["value"] == 0
    assert results(found, "imagenet")["top1"]["subset"] == "subset-2"


def test_the_argmax_of_a_subset_never_leaves_it():
    torch.manual_seed(0)
    logits = torch.randn(500, 1000)
    for subset in (IMAGENET_A, IMAGENET_R):
        chosen = masked_argmax(logits, subset)
        assert set(chosen.tolist()) <= set(subset)
        naive = [max(subset, key=lambda label, row=row: float(row[label])) for row in logits]
        assert chosen.tolist() == naive
    assert (masked_argmax(logits, None) == logits.argmax(1)).all()
    assert masked_argmax(torch.tensor([3, 1]), None).tolist() == [3, 1]


def test_a_subset_needs_scores_and_numbers():
    with pytest.raises(BadInput, match="decision alone"):
        masked_argmax(torch.tensor([3, 1]), IMAGENET_A)
    with pytest.raises(BadInput, match="NaN or Inf"):
        masked_argmax(torch.full((1, 1000), float("nan")), None)


class Distracted(Reader):
    """Always surest of class 0, which ImageNet-A lacks; then of what is painted."""

    def forward(self, x):
        logits = super().forward(x)
        logits[:, 0] += 50
        return logits


def test_on_imagenet_a_only_its_200_logits_count(tmp_path):
    tree(tmp_path / "imagenet-a", IMAGENET_A, 1)
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    found = ws.shift(
        {"m": target(Distracted())}, [A, replace(VAL, subset=None, each=None)], root=tmp_path, out=tmp_path / "o",
        partial=True, **ASKED
    )  # fmt: skip
    assert results(found, "imagenet-a")["top1"]["value"] == 1
    assert results(found, "imagenet")["top1"]["value"] == 0.25


class Thing(nn.Module):
    """Reads a folder's position and answers with an ImageNet label of it; logits [N, 1000].

    unmapped: answers with the label of the folder's number, which maps to no folder where OBJECTNET lacks it.
    """

    def __init__(self, unmapped: bool = False) -> None:
        super().__init__()
        first = {folder: label for label, folder in sorted(OBJECTNET.items(), reverse=True)}
        chosen = [0 if i in OBJECTNET else i for i in range(313)] if unmapped else [first.get(i, 0) for i in range(313)]
        labels = torch.tensor(chosen)
        self.register_buffer("labels", labels)

    def forward(self, x):
        middle = (x[:, :, 4, 4] * 255).round()
        folder = (middle[:, 0] * 4 + (middle[:, 2] / 60).round()).long()
        return nn.functional.one_hot(self.labels[folder], 1000).float() * 9 - 4


def test_objectnet_maps_the_argmax_over_all_logits_to_folders(tmp_path):
    objectnet(tmp_path / "ObjectNet" / "images")
    assert 0 not in OBJECTNET
    found = ws.shift(
        {"m": target(Thing()), "fish": target(Thing(unmapped=True))}, "objectnet", root=tmp_path, out=tmp_path / "o",
        **ASKED
    )  # fmt: skip
    assert results(found, "objectnet")["top1"]["value"] == 1
    assert results(found, "objectnet")["top1"]["n"] == 113
    assert results(found, "objectnet", "fish")["top1"]["value"] == 0


class Half(Reader):
    """Right on the classes below 500 only."""

    def forward(self, x):
        logits = super().forward(x)
        return torch.where(logits.argmax(1, keepdim=True) < 500, logits, logits.roll(1, 1))


@pytest.fixture(scope="module")
def imagenet_c(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("c")
    corrupted(root / "imagenet-c", (*COMMON, *EXTRA), C.subset or ())
    tree(root / "imagenet-val", VAL.subset or (), 2)
    return root


def test_half_of_everything_right_gives_an_mce_of_64_67(imagenet_c, tmp_path):
    found = ws.shift(target(Half()), [C, VAL], root=imagenet_c, out=tmp_path / "o", **ASKED)
    mine = results(found, "imagenet-c")
    assert mine["mean_accuracy"]["value"] == 0.5
    assert mine["mce"]["value"] == pytest.approx(64.67, abs=0.005)
    assert mine["mce"]["value"] == pytest.approx(100 * np.mean([0.5 / a for a in ALEXNET.values()]))
    assert mine["mce"]["low"] < mine["mce"]["value"] < mine["mce"]["high"]
    assert mine["relative_mce"]["value"] == 0  # as wrong without corruption as with it
    assert mine["extra_accuracy"]["value"] == 0.5
    assert len(found["cells"]) == 95
    assert {c["n"] for c in found["cells"]} == {4}


def test_relative_mce_needs_the_whole_validation_part(imagenet_c, tmp_path):
    whole = replace(VAL, each=3, images=12)
    found = ws.shift(target(Half()), [C, whole], root=imagenet_c, out=tmp_path / "o", partial=True, **ASKED)
    assert "mce" in results(found, "imagenet-c")
    assert "relative_mce" not in results(found, "imagenet-c")


def test_extra_corruptions_stay_out_of_the_means(tmp_path):
    place = corrupted(tmp_path / "imagenet-c", COMMON, C.subset or ())
    corrupted(place, EXTRA, (0,))
    found = ws.shift(target(Half()), C, root=tmp_path, out=tmp_path / "o", partial=True, **ASKED)
    assert results(found, "imagenet-c")["mean_accuracy"]["value"] == 0.5
    assert results(found, "imagenet-c")["extra_accuracy"]["value"] == 1.0
    assert "mce" not in results(found, "imagenet-c")  # all common cells are there, but the set is incomplete


def test_there_is_no_mce_of_a_part(imagenet_c, tmp_path):
    part = corrupted(tmp_path / "imagenet-c", COMMON[:-1], C.subset or ())
    with pytest.raises(BadInput, match="jpeg_compression: no folder"):
        ws.shift(target(Half()), C, root=tmp_path, out=tmp_path / "o", **ASKED)
    assert not (tmp_path / "o").exists()
    found = ws.shift(target(Half()), C, root=part, out=tmp_path / "o", partial=True, **ASKED)
    assert results(found, "imagenet-c") == {}
    assert len(found["cells"]) == 70
    assert {c["subset"] for c in found["cells"]} == {"subset-4"}
    assert "no mean and no mCE" in (tmp_path / "o" / "shift.md").read_text()


def test_cifar_c_reports_the_plain_mean(tmp_path):
    cifar_c(tmp_path / "CIFAR-10-C", COMMON, [3, 1, 4, 1], 5)
    found = ws.shift(target(Reader(classes=10), 10), CIFAR, root=tmp_path, out=tmp_path / "o")
    mine = results(found, "cifar10-c")
    assert mine["mean_accuracy"]["value"] == 1
    assert mine["mean_error"]["value"] == 0
    assert "mce" not in mine
    page = (tmp_path / "o" / "index.html").read_text()
    assert "<svg" in page
    assert "gaussian_noise" in page


def test_a_limit_takes_the_same_images_of_every_cell(imagenet_c, tmp_path):
    found = ws.shift(target(Half()), C, root=imagenet_c, out=tmp_path / "o", limit=2, **ASKED)
    assert results(found, "imagenet-c")["mce"]["subset"] == "subset-2"
    assert {c["n"] for c in found["cells"]} == {2}


def test_a_limit_gives_every_class_its_share(tmp_path):
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    chosen = set()
    for seed in range(4):
        out = tmp_path / f"o{seed}"
        ws.shift(target(Reader()), VAL, root=tmp_path, out=out, limit=4, seed=seed, **ASKED)
        ((ids, predicted),) = predictions(out).values()
        assert sorted(predicted) == [0, 5, 500, 999]
        chosen.add(tuple(ids))
    assert len(chosen) > 1


class Corner(nn.Module):
    """Sure of class 1 where the first pixel is white, of class 2 where it is grey, else of 0."""

    def forward(self, x):
        return (
            nn.functional.one_hot((2 * x[:, 0, 0, 0]).round().long() % 3, 1000).float()[:, [0, 2, 1, *range(3, 1000)]]
            * 9
        )


@pytest.mark.parametrize(("name", "seen"), [("imagenet", 0), ("stylized", 1), ("imagenet-e", 0), ("objectnet", 2)])
def test_what_a_model_sees_of_a_file_depends_on_the_benchmark(tmp_path, name, seen):
    rings = np.zeros((16, 16, 3), np.uint8)
    rings[:4] = rings[-4:] = rings[:, :4] = rings[:, -4:] = 128
    rings[:2] = rings[-2:] = rings[:, :2] = rings[:, -2:] = 255
    whole = replace(benchmark(name), images=1, each=None)
    if whole.layout == "edits":
        place = edits(tmp_path / whole.folders[0], ("ori",), {"a": 0}) / "ori"
    elif whole.layout == "objectnet":
        objectnet(tmp_path / whole.folders[0])
        place = tmp_path / whole.folders[0] / "thing_001"
    else:
        place = tree(tmp_path / whole.folders[0], (0,)) / wnids()[0]
    for file in place.iterdir():
        Image.fromarray(rings).save(file)
    asked = {"size": 12 if whole.part == "inside" else 16, "crop": 0.5, "interpolation": "nearest"}
    ws.shift(target(Corner()), whole, root=tmp_path, out=tmp_path / "o", partial=True, **asked)
    assert [predicted[0] for _, predicted in predictions(tmp_path / "o").values()] == [seen]


@pytest.mark.parametrize(("block", "workers"), [(1, 1), (3, 2), (100, 4)])
def test_no_result_depends_on_blocks_or_workers(tmp_path, block, workers):
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    torch.manual_seed(0)
    model = target(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1000)))
    asked = {"root": tmp_path, **ASKED}
    ws.shift(model, VAL, out=tmp_path / "a", **asked)
    ws.shift(model, VAL, out=tmp_path / "b", block=block, workers=workers, **asked)
    assert predictions(tmp_path / "a") == predictions(tmp_path / "b")


def predictions(folder: Path) -> dict[str, list]:
    from withstand.audit.store import read_rows

    return {
        str(p.relative_to(folder)): [read_rows(p)[0].id.tolist(), read_rows(p)[0].prediction.tolist()]
        for p in sorted((folder / "rows").glob("*/*"))
    }


def test_imagenet_e_reports_dropped_accuracy_as_the_toolkit_does(tmp_path):
    names = dict(zip("abcdef", (1, 5, 700, 3, 800, 9)))
    place = edits(tmp_path / "imagenet-e", ("ori", *EDITS), names)
    for edit, gone in (("20", "abc"), ("rp", "a"), ("inver", "d")):
        for name in gone:  # painted as a class above 500, which Half gets wrong
            Image.fromarray(paint(900)).save(place / edit / f"{name}.png")
    (place / "0.05" / "f.png").unlink()
    asked = replace(benchmark("imagenet-e"), images=6)
    found = ws.shift(target(Half()), asked, root=tmp_path, out=tmp_path / "o", partial=True, **ASKED)
    theirs = dropped_accuracy(target(Half()), place)
    mine = results(found, "imagenet-e")
    assert mine["top1"]["value"] == theirs.right / theirs.n == 4 / 6
    assert mine["dropped_accuracy"]["value"] == pytest.approx(theirs.average)
    assert [(e["edit"], e["n"], e["dropped"], e["low"], e["high"]) for e in found["edits"]] == [
        (e.edit, e.n, e.dropped, e.low, e.high) for e in theirs.edits
    ]
    assert "| rp | 16.7" in (tmp_path / "o" / "shift.md").read_text()
    assert "dropped by each edit" in (tmp_path / "o" / "index.html").read_text()


# Continuing ----------------------------------------------------------------------------------------------------------

KILLED = """
import sys, time
import torch
import withstand as ws
sys.path[:0] = {paths!r}
from dataclasses import replace
from tests.data.shift.trees import Reader
from tests.audit.shift.test_shift import CIFAR, target

class Slow(Reader):
    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)

Slow.__name__ = "Reader"
ws.shift(target(Slow(classes=10), 10), CIFAR, root={root!r}, out={out!r})
"""


class Stopping(Reader):
    """Ends the program at the given pass, counted over its life."""

    passes, last = 0, 0

    def forward(self, x):
        Stopping.passes += 1
        if Stopping.passes > self.last:
            raise KeyboardInterrupt
        return super().forward(x)


Stopping.__name__ = "Reader"


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    cifar_c(tmp_path / "CIFAR-10-C", COMMON, [3, 1, 4, 1], 1)
    ws.shift(target(Reader(classes=10), 10), CIFAR, root=tmp_path, out=tmp_path / "whole")
    monkeypatch.setattr(Stopping, "last", 31)  # one for the look whether the model fits
    with pytest.raises(KeyboardInterrupt):
        ws.shift(target(Stopping(classes=10), 10), CIFAR, root=tmp_path, out=tmp_path / "o")
    said: list[str] = []
    ws.shift(target(Reader(classes=10), 10), CIFAR, root=tmp_path, out=tmp_path / "o", announce=said.append)
    assert said == ["180 of 300 images to go, counted once for each model"]
    assert predictions(tmp_path / "o") == predictions(tmp_path / "whole")
    assert (tmp_path / "o" / "shift.md").read_text() == (tmp_path / "whole" / "shift.md").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    cifar_c(tmp_path / "CIFAR-10-C", COMMON, [3, 1, 4, 1], 1)
    asked = {"root": tmp_path}
    model = target(Reader(classes=10), 10)
    ws.shift(model, CIFAR, out=tmp_path / "whole", **asked)
    here = Path(__file__).parents[3]
    script = KILLED.format(paths=[str(here)], root=str(tmp_path), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=here)
    rows = tmp_path / "killed" / "rows"
    while len(list(rows.rglob("*.parquet"))) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = len(list(rows.rglob("*.parquet")))
    assert 5 <= before < 75
    said: list[str] = []
    ws.shift(model, CIFAR, out=tmp_path / "killed", announce=said.append, **asked)
    assert said[0].startswith(f"{300 - 4 * before} of 300 images to go")
    assert predictions(tmp_path / "killed") == predictions(tmp_path / "whole")
    assert (tmp_path / "killed" / "shift.md").read_text() == (tmp_path / "whole" / "shift.md").read_text()


def test_finished_work_is_not_done_again_and_changed_files_are(tmp_path):
    cifar_c(tmp_path / "CIFAR-10-C", COMMON, [3, 1, 4, 1], 1)
    asked = {"root": tmp_path, "out": tmp_path / "o"}
    model = target(Reader(classes=10), 10)
    said: list[str] = []
    ws.shift(model, CIFAR, announce=said.append, **asked)
    ws.shift(model, CIFAR, announce=said.append, **asked)
    file = tmp_path / "CIFAR-10-C" / "fog.npy"
    np.save(file, 255 - np.load(file))
    found = ws.shift(model, CIFAR, announce=said.append, **asked)
    assert [text.split(",")[0] for text in said] == [f"{n} of 300 images to go" for n in (300, 0, 20)]
    fog = {c["value"] for c in found["cells"] if c["corruption"] == "fog"}
    assert fog == {0.0}


def test_a_file_of_the_same_size_that_changed_is_scored_again(tmp_path):
    place = tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    for path in place.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    asked = {"root": tmp_path, "out": tmp_path / "o", **ASKED}
    before = ws.shift(target(Reader()), VAL, **asked)
    file = place / wnids()[0] / "000.bmp"
    size = file.stat().st_size
    Image.fromarray(paint(999)).save(file)
    assert file.stat().st_size == size
    after = ws.shift(target(Reader()), VAL, **asked)
    assert [results(f, "imagenet")["top1"]["value"] for f in (before, after)] == [1, 7 / 8]


def test_with_a_limit_only_what_is_scored_is_looked_at(tmp_path, monkeypatch):
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    looked: list[str] = []
    monkeypatch.setattr(cells, "look", lambda photo: looked.append(photo.file))
    found = ws.shift(target(Reader()), VAL, root=tmp_path, out=tmp_path / "o", limit=4, **ASKED)
    scored = predictions(tmp_path / "o")["rows/m/imagenet"][0]
    names = survey(VAL, tmp_path).cells[""].listing().names
    assert sorted(looked) == [f"{tmp_path}/imagenet-val/{names[i]}" for i in sorted(scored)]
    assert results(found, "imagenet")["top1"]["n"] == 4


def test_another_definition_of_a_benchmark_is_another_run(tmp_path):
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    asked = {"root": tmp_path, "out": tmp_path / "o", **ASKED}
    ws.shift(target(Reader()), VAL, **asked)
    with pytest.raises(BadInput, match="holds another run"):
        ws.shift(target(Reader()), replace(VAL, part="whole"), **asked)


def test_other_settings_are_refused_in_the_same_folder(tmp_path):
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    asked = {"root": tmp_path, "out": tmp_path / "o", **ASKED}
    ws.shift(target(Reader()), VAL, **asked)
    for change in ({"limit": 4}, {"seed": 1}, {"interpolation": "bicubic"}):
        with pytest.raises(BadInput, match="holds another run"):
            ws.shift(target(Reader()), VAL, **asked, **change)
    with pytest.raises(BadInput, match="holds another run"):
        ws.shift(target(Half()), VAL, **asked)
    found = ws.shift(target(Half()), VAL, fresh=True, **asked)
    assert results(found, "imagenet")["top1"]["value"] == 0.5


# Refusals ------------------------------------------------------------------------------------------------------------


def test_damaged_files_are_named_before_any_work(tmp_path):
    place = tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    for wnid in (wnids()[0], wnids()[999]):
        file = place / wnid / "001.png"
        file.write_bytes(file.read_bytes()[:-40])
    asked = {"root": tmp_path, "out": tmp_path / "o", **ASKED}
    with pytest.raises(BadInput, match=r"2 damaged files: .*n01440764/001.png.*n15075141/001.png"):
        ws.shift(target(Reader()), VAL, **asked)
    assert not list((tmp_path / "o").rglob("*.parquet"))
    with pytest.raises(BadInput, match=r"n01440764/001.png.*damaged or truncated"):
        ws.shift(target(Reader()), VAL, look=False, **asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 0}, "limit: got 0"),
        ({"block": True}, "block: got True"),
        ({"workers": -1}, "workers: got -1"),
        ({"crop": 2.0}, "crop: got 2.0"),
        ({"crop": 0}, "crop: got 0"),
        ({"size": 0}, "size: got 0"),
        ({"size": 8.5}, "size: got 8.5"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"benchmarks": None}, "benchmarks: got None"),
        ({"benchmarks": [3]}, "benchmarks: got 3"),
        ({"interpolation": "cubic"}, "Did you mean bicubic"),
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"benchmarks": []}, "benchmarks: got none"),
        ({"benchmarks": [VAL, VAL]}, "imagenet, imagenet"),
        ({"benchmarks": "imagnet"}, "Did you mean imagenet"),
        ({"models": {}}, "at least one model"),
        ({"models": {"a": Reader(classes=10)}}, "classes: the model has 10, the data has 1000"),
        ({"models": {"a b": Reader(), "a?b": Reader()}}, "names that differ in more than punctuation"),
        ({"models": nn.Sequential(nn.Flatten(), nn.Linear(7, 1000))}, "fails on inputs"),
        ({"models": nn.Sequential(Reader(), nn.Softmax(1))}, "probabilities"),
        ({"models": nn.Conv2d(1, 1000, 8)}, "fails on inputs"),
    ],
)
def test_bad_input_is_refused_before_the_folder_is_made(tmp_path, change, said):
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    asked = {"models": target(Reader()), "benchmarks": VAL, "root": tmp_path, "out": tmp_path / "o", **ASKED, **change}
    with pytest.raises(WithstandError, match=said):
        ws.shift(asked.pop("models"), asked.pop("benchmarks"), **asked)
    assert not (tmp_path / "o").exists()


def test_the_json_is_what_is_returned(tmp_path):
    tree(tmp_path / "imagenet-val", VAL.subset or (), 2)
    found = ws.shift(target(Reader()), VAL, root=tmp_path, out=tmp_path / "o", **ASKED)
    assert json.loads((tmp_path / "o" / "shift.json").read_text()) == json.loads(json.dumps(found))
    assert {p["model"] for p in found["published"]} >= {"ResNet-50", "ViT-B/16, DAT"}
