"""Folders of pictures: every file edited alike anywhere, stopped and continued, and bad files refused by name."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import withstand as ws
from tests.editing.pictures import photo
from withstand.editing import ObjectEditor
from withstand.editing.folder import COLUMNS, read_steps
from withstand.errors import BadInput, WithstandError

CHAIN = {"size": 0.05, "position": "random", "direction": 45, "background": "complex:20"}


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def everything(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_tree_is_edited_into_images_masks_and_a_manifest(folder):
    rows = ws.edit(folder / "photos", folder / "out", masks=folder / "masks", **CHAIN)
    held = list(csv.DictReader((folder / "out" / "manifest.csv").open()))
    assert (
        [r["file"] for r in rows] == [r["file"] for r in held] == ["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"]
    )
    assert tuple(held[0]) == COLUMNS
    for row in rows:
        assert row["skipped"] == 0
        image, mask = (pixels(folder / "out" / kind / row["file"]) for kind in ("images", "masks"))
        assert set(np.unique(mask)) == {0, 255}
        assert (mask > 127).mean() == pytest.approx(0.05, rel=0.05)
        assert row["rate_after"] == pytest.approx((mask > 127).mean(), abs=1e-6)
        assert (image[..., 0] > 180)[mask > 127].mean() > 0.99
        assert row["complexity_after"] > 0
        assert row["edits"].startswith("size(rate=0.05); direction(degrees=45); position(at=random); background(")
    assert len(ws.load_data(str(folder / "out" / "images")).classes) == 2


def test_the_files_hold_what_the_editor_makes(folder):
    ws.edit(folder / "photos" / "cat" / "a.png", folder / "out", masks=folder / "masks" / "cat" / "a.png", **CHAIN)
    image, mask = (torch.tensor(pixels(folder / kind / "cat" / "a.png")) for kind in ("photos", "masks"))
    x = image.permute(2, 0, 1).float() / 255
    rows = json.loads((folder / "out" / ".rows.jsonl").read_text())
    from withstand.editing.inputs import Picture

    key = Picture("a.png", folder / "photos" / "cat" / "a.png").key
    made = ObjectEditor().edits(x, mask, read_steps(0.05, 45, "random", "complex:20")[0], key)
    assert np.array_equal(
        pixels(folder / "out" / "images" / "a.png"), (made.image * 255).round().byte().permute(1, 2, 0)
    )
    assert np.array_equal(pixels(folder / "out" / "masks" / "a.png") > 127, made.mask)
    assert rows["rate_after"] == pytest.approx(made.rate, abs=1e-6)


def test_object_pixels_are_the_files_own_after_a_background_edit(folder):
    ws.edit(folder / "photos", folder / "out", masks=folder / "masks", background="plain:20")
    for name in ("cat/a.png", "dog/d.png"):
        mask = pixels(folder / "masks" / name) > 127
        made, given = (pixels(folder / kind / name) for kind in ("out/images", "photos"))
        assert np.array_equal(made[mask], given[mask])
        assert not np.array_equal(made, given)


def test_a_picture_is_edited_alike_alone_renamed_and_in_company(folder):
    whole = {"position": "random", "direction": "random", "seed": 3}
    ws.edit(folder / "photos", folder / "out", masks=folder / "masks", **whole)
    (folder / "other.png").write_bytes((folder / "photos" / "dog" / "c.png").read_bytes())
    ws.edit(folder / "other.png", folder / "alone", masks=folder / "masks" / "dog" / "c.png", **whole)
    assert np.array_equal(pixels(folder / "alone/images/other.png"), pixels(folder / "out/images/dog/c.png"))
    ws.edit(folder / "other.png", folder / "seed", masks=folder / "masks" / "dog" / "c.png", **whole | {"seed": 4})
    assert not np.array_equal(pixels(folder / "seed/images/other.png"), pixels(folder / "out/images/dog/c.png"))


def test_several_processes_write_the_same_bytes(folder):
    for jobs in (1, 2):
        ws.edit(folder / "photos", folder / f"out{jobs}", masks=folder / "masks", jobs=jobs, **CHAIN)
    assert everything(folder / "out1") == everything(folder / "out2")
    with pytest.raises(BadInput, match="cannot be sent"):
        ws.edit(folder / "photos", folder / "out3", segmenter=lambda x: x[0] > 0.7, jobs=2, size=0.05)


def test_a_killed_run_is_continued_to_the_same_files(folder):
    program = (
        "import sys, time, withstand as ws\n"
        "from withstand.editing import editor\n"
        "real = editor.ObjectEditor.edits\n"
        "def slow(*given):\n    time.sleep(0.3)\n    return real(*given)\n"
        "editor.ObjectEditor.edits = slow\n"
        f"ws.edit({str(folder / 'photos')!r}, {str(folder / 'out')!r}, masks={str(folder / 'masks')!r}, **{CHAIN!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    rows = folder / "out" / ".rows.jsonl"
    while not rows.is_file() or not rows.read_bytes().count(b"\n"):
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not (folder / "out" / "manifest.csv").exists()
    done = rows.read_text().count("\n")
    assert 1 <= done < 4
    rows.write_text(rows.read_text() + '{"file": "dog/d.png", "edi')  # as a kill may leave it
    seen = []
    with_masks = {"masks": folder / "masks", **CHAIN}
    ws.edit(folder / "photos", folder / "out", report=lambda n, total: seen.append((n, total)), **with_masks)
    assert seen == [(n, 4) for n in range(done, 5)]
    ws.edit(folder / "photos", folder / "whole", **with_masks)
    assert everything(folder / "out") == everything(folder / "whole")
    seen.clear()
    ws.edit(folder / "photos", folder / "out", report=lambda n, total: seen.append(n), **with_masks)
    assert seen == [4]


def test_another_command_into_the_folder_is_refused(folder):
    given = {"masks": folder / "masks", "size": 0.05}
    ws.edit(folder / "photos", folder / "out", **given)
    before = everything(folder / "out")
    for more in ({"seed": 1}, {"size": 0.1}, {"background": "random"}, {"variant": "published"}, {"masks": None}):
        with pytest.raises(BadInput, match="of a run with other"):
            ws.edit(folder / "photos", folder / "out", **given | more)
    photo(9)[0].save(folder / "photos" / "cat" / "e.png")
    photo(9)[1].save(folder / "masks" / "cat" / "e.png")
    with pytest.raises(BadInput, match="of a run with other pictures"):
        ws.edit(folder / "photos", folder / "out", **given)
    assert everything(folder / "out") == before
    with pytest.raises(BadInput, match="holds something else"):
        ws.edit(folder / "photos", folder / "masks", **given)
    with pytest.raises(BadInput, match="outside"):
        ws.edit(folder / "photos", folder / "photos" / "out", **given)


def test_a_random_background_is_that_of_another_picture(folder):
    Image.new("RGB", (64, 48), (10, 200, 30)).save(folder / "photos" / "plain.png")
    Image.new("L", (64, 48), 0).save(folder / "masks" / "plain.png")
    rows = ws.edit(folder / "photos", folder / "out", masks=folder / "masks", background="random")
    reasons = {r["file"]: r["reason"] for r in rows if r["skipped"]}
    assert list(reasons) == ["plain.png"]
    assert "empty" in reasons["plain.png"]
    assert not (folder / "out" / "images" / "plain.png").exists()
    for name in ("cat", "dog"):
        for file in (folder / "out" / "images" / name).iterdir():
            behind = pixels(file)[0, 0]
            others = [pixels(p)[0, 0] for p in (folder / "photos").rglob("*.png") if p.name != file.name]
            assert any(np.abs(behind.astype(int) - o).max() <= 1 for o in others)
    ws.edit(folder / "photos" / "cat" / "a.png", folder / "one", background="procedural")
    ws.edit(folder / "photos" / "cat" / "a.png", folder / "two", background="random")
    assert np.array_equal(pixels(folder / "one/images/a.png"), pixels(folder / "two/images/a.png"))


class Reds(nn.Module):
    def forward(self, x):
        mean = x.mean((2, 3))
        return 20 * torch.stack([mean[:, 0], mean[:, 2]], 1)


def test_an_adversarial_background_takes_its_labels_from_the_class_folders(folder):
    guide = Reds()
    given = {"masks": folder / "masks", "guide": guide, "background": "adversarial:0"}
    rows = ws.edit(folder / "photos", folder / "out", **given)
    assert not any(r["skipped"] for r in rows)
    for name, sign in (("cat/a.png", 1), ("dog/c.png", -1)):  # cats, class 0, lose red; dogs gain it
        before, after = (
            guide(torch.tensor(pixels(folder / kind / name)).permute(2, 0, 1)[None] / 255)[0]
            for kind in ("photos", "out/images")
        )
        assert sign * ((before[0] - before[1]) - (after[0] - after[1])) > 0.5
    with pytest.raises(BadInput, match="a classifier"):
        ws.edit(folder / "photos", folder / "no", background="adversarial:20")
    with pytest.raises(BadInput, match="a classifier"):
        ws.edit(folder / "photos", folder / "no", background="complex:20", guide=guide)
    with pytest.raises(BadInput, match="for each class"):
        ws.edit(folder / "photos" / "cat", folder / "no", **given | {"masks": folder / "masks" / "cat"})
    with pytest.raises(BadInput, match="has no label"):
        ws.edit(folder / "photos" / "cat" / "a.png", folder / "no", **given | {"masks": None})
    assert not (folder / "no").exists()


def test_what_is_found_or_not_found_is_told(folder):
    Image.new("RGB", (64, 48), (90, 90, 90)).save(folder / "photos" / "cat" / "nothing.png")
    Image.new("RGB", (64, 48), (255, 0, 0)).save(folder / "photos" / "cat" / "only_red.png")
    rows = ws.edit(folder / "photos", folder / "out", size=0.85)
    reasons = {r["file"]: r["reason"] for r in rows}
    assert reasons["cat/nothing.png"].startswith("no object found")
    assert reasons["cat/only_red.png"].startswith("no object found")
    assert "would not fit" in reasons["cat/a.png"]
    assert all(r["skipped"] and r["rate_after"] is None for r in rows)


def damage_inside(file: Path) -> None:
    """A photograph as JPEG whose ends are whole, and whose middle no decoder takes."""
    photo(0)[0].save(file, format="JPEG")
    held = file.read_bytes()
    scan = held.find(b"\xff\xda") + 20
    file.write_bytes(held[:scan] + b"\xff\xc0\0\1" * 50 + held[scan + 200 :])


def test_damage_that_only_decoding_shows_costs_one_picture_and_not_the_run(folder):
    damage_inside(folder / "photos" / "cat" / "inside.jpg")
    (row,) = [r for r in ws.edit(folder / "photos", folder / "out", size=0.05) if r["skipped"]]
    assert row["file"] == "cat/inside.jpg"
    assert "damaged or truncated" in row["reason"]
    assert row["rate_before"] is None
    held = list(csv.DictReader((folder / "out" / "manifest.csv").open()))
    assert len(held) == 5
    (folder / "two").mkdir()
    damage_inside(folder / "two" / "inside.jpg")
    photo(1)[0].save(folder / "two" / "whole.png")
    rows = ws.edit(folder / "two", folder / "out2", background="random")
    assert "no scene to be had of another picture: " in rows[1]["reason"]


def test_pictures_that_were_taken_away_are_made_again(folder):
    given = {"masks": folder / "masks", **CHAIN}
    rows = ws.edit(folder / "photos", folder / "out", **given)
    held = {name: data for name, data in everything(folder / "out").items() if not name.startswith(".")}
    (folder / "out" / "images" / "cat" / "a.png").unlink()
    (folder / "out" / "masks" / "dog" / "c.png").unlink()
    seen = []
    assert ws.edit(folder / "photos", folder / "out", report=lambda n, _: seen.append(n), **given) == rows
    assert seen == [2, 3, 4]
    assert {n: d for n, d in everything(folder / "out").items() if not n.startswith(".")} == held


def test_processes_know_their_owner_even_if_it_was_killed_before_they_were_up(folder, monkeypatch):
    from withstand.editing import folder as module

    given = []

    class Pool:
        def __init__(self, workers, context, start, arguments):
            given.extend(arguments)
            raise module.BrokenProcessPool("ended.")

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    with pytest.raises(WithstandError, match=r"time: ended\. With less memory .* __name__ == '__main__'"):
        ws.edit(folder / "photos", folder / "out", masks=folder / "masks", size=0.05, jobs=2)
    assert given[-1] == os.getpid()
    program = "import sys\nfrom withstand.editing import folder\nfolder._end_with(int(sys.argv[1]))"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(os.getppid())],  # any process but its parent
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        timeout=60,
    )
    assert ended.returncode == 1


def test_two_pictures_of_one_name_and_missing_places_are_refused(folder, tmp_path):
    photo(0)[0].save(folder / "photos" / "cat" / "a.jpg")
    with pytest.raises(BadInput, match=r"cat/a\.jpg and cat/a\.png"):
        ws.edit(folder / "photos", folder / "out", size=0.05)
    for images, more, said in (
        (tmp_path / "no", {}, "existing"),
        (folder / "masks", {"masks": tmp_path / "no"}, "existing folder of masks"),
        (folder / "masks", {"masks": folder / "masks" / "cat" / "a.png"}, "a mask for each"),
    ):
        with pytest.raises(BadInput, match=said):
            ws.edit(images, folder / "out", size=0.05, **more)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty folder"):
        ws.edit(tmp_path / "empty", folder / "out", size=0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "at least one of size"),
        ({"background": "simple"}, "plain:20"),
        ({"background": "complex:-3"}, "number >= 0"),
        ({"background": "complex:x"}, "number >= 0"),
        ({"background": "complex:401"}, "<= 400"),
        ({"background": 20}, "plain:20"),
        ({"size": 0.05, "seed": "a"}, "seed: got 'a'"),
        ({"size": 0.05, "seed": 1.5}, "seed: got 1.5"),
        ({"size": 0.05, "variant": None}, "published"),
        ({"background": "random:3"}, "plain:20"),
        ({"size": 2}, "rate"),
        ({"size": 0.05, "jobs": 0}, "jobs"),
        ({"size": 0.05, "variant": "publishes"}, "published"),
        ({"size": 0.05, "segmenter": "grub"}, "grabcut"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_any_work(folder, given, said):
    with pytest.raises(WithstandError, match=said):
        ws.edit(folder / "photos", folder / "out", **given)
    assert not (folder / "out").exists()
