import os

import numpy as np
import pytest
import torch
from PIL import Image

import withstand as ws
from withstand.data.photos import Fit
from withstand.errors import BadInput

rng = np.random.default_rng(0)


def photo(path, h=12, w=16, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return np.array(Image.open(path).convert("RGB"))


@pytest.fixture
def folder(tmp_path):
    for name, n in (("cat", 3), ("ant", 2), ("bee", 1)):
        for i in range(n):
            photo(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def test_class_folders_in_the_order_of_their_names(folder):
    data = ws.load_data(folder)
    assert data.name == "set"
    assert data.classes == ("ant", "bee", "cat")
    assert data.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert data.space.shape == (3, 12, 16)
    batch = data.batch([5, 2])
    expected = np.array(Image.open(folder / "cat" / "2.png"))
    assert torch.equal(batch.x[0], torch.from_numpy(expected).permute(2, 0, 1) / 255)
    assert batch.y.tolist() == [2, 1]
    assert batch.ids.tolist() == [5, 2]


def test_numbered_folders_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "2", "007"):
        photo(tmp_path / name / "a.png")
    assert ws.load_data(tmp_path).classes == ("2", "007", "10")
    photo(tmp_path / "x1" / "a.png")
    assert ws.load_data(tmp_path).classes == ("007", "10", "2", "x1")


def test_classes_say_which_label_each_folder_means(folder):
    assert ws.load_data(folder, classes=["bee", "dog", "cat", "ant"]).labels.tolist() == [3, 3, 0, 2, 2, 2]
    mapped = ws.load_data(folder, classes={"ant": 7, "bee": 1, "cat": 4})
    assert mapped.labels.tolist() == [7, 7, 1, 4, 4, 4]
    assert mapped.classes == ("0", "bee", "2", "3", "cat", "5", "6", "ant")
    assert ws.load_data(folder, classes=9).classes == ("ant", "bee", "cat", "3", "4", "5", "6", "7", "8")
    with pytest.raises(BadInput, match=r"the subfolder 'bee' of .* has no label"):
        ws.load_data(folder, classes=["ant", "cat"])
    with pytest.raises(BadInput, match="classes: got 2; allowed: at least 3"):
        ws.load_data(folder, classes=2)
    with pytest.raises(BadInput, match="classes: got 'cifar'"):
        ws.load_data(folder, classes="cifar")
    with pytest.raises(BadInput, match="labels that are whole numbers >= 0"):
        ws.load_data(folder, classes={"ant": -1, "bee": 1, "cat": 4})


def test_wordnet_folders_can_carry_the_thousand_labels(tmp_path):
    for wnid in ("n01443537", "n15075141", "n01440764"):
        photo(tmp_path / wnid / "a.png")
    assert ws.load_data(tmp_path).labels.tolist() == [0, 1, 2]
    data = ws.load_data(tmp_path, classes="imagenet")
    assert data.labels.tolist() == [0, 1, 999]
    assert len(data.classes) == 1000


def test_a_parent_of_train_and_val_is_a_split_set(folder):
    os.rename(folder, folder.parent / "val")
    photo(folder.parent / "train" / "ant" / "a.png")
    assert len(ws.load_data(folder.parent)) == 6
    assert len(ws.load_data(folder.parent, split="train")) == 1
    with pytest.raises(BadInput, match=r"split: got 'extra'; allowed: a part that .* train, val"):
        ws.load_data(folder.parent, split="extra")


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in range(3):
        photo(tmp_path / f"{i}.png")
    data = ws.load_data(tmp_path)
    assert (data.labels, data.classes, data.batch([0]).y, len(data)) == (None, (), None, 3)


def test_a_labels_table_stands_for_folders(tmp_path):
    for i in range(3):
        photo(tmp_path / "in" / f"{i}.png")
    table = tmp_path / "labels.csv"
    table.write_text("file,label\nin/2.png,1\nin/0.png,0\n")
    data = ws.load_data(tmp_path)
    assert data.labels.tolist() == [1, 0]
    assert ws.load_data(tmp_path, classes=["a", "b", "c"]).classes == ("a", "b", "c")
    for text, said in (
        ("file,label\n../x.png,1\n", r"'../x.png' points outside"),
        ("file,label\n/etc/x.png,1\n", "points outside"),
        ("file,label\nin/0.png,cat\n", "labels.csv: label: got .*cat.*; allowed: whole numbers"),
        ("file,kind\nin/0.png,1\n", "the columns file, kind; allowed: file and label"),
        ("file,label\nin/9.png,1\n", r"in/9\.png: not an image that can be opened: .*No such file"),
        ("file,label\n", "an empty set|the columns"),
    ):
        table.write_text(text)
        with pytest.raises(BadInput, match=said):
            ws.load_data(tmp_path)


def test_hidden_files_are_passed_over(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / "cat" / ".hidden").write_text("x")
    (folder / "cat" / "Thumbs.db").write_text("x")
    photo(folder / ".thumbs" / "a.png")
    assert len(ws.load_data(folder)) == 6


def test_files_that_are_no_images_are_listed(folder):
    for i in range(7):
        (folder / "cat" / f"note{i}.txt").write_text("x")
    with pytest.raises(BadInput, match=r"no images: cat/note0\.txt, .*cat/note4\.txt and 2 more; allowed: \.bmp"):
        ws.load_data(folder)


def test_images_beside_class_folders_and_empty_folders_are_refused(folder):
    (folder / "dog").mkdir()
    with pytest.raises(BadInput, match="class folders without images: dog"):
        ws.load_data(folder)
    photo(folder / "loose.png")
    with pytest.raises(BadInput, match=r"beside the class folders: loose\.png"):
        ws.load_data(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="an empty set"):
        ws.load_data(tmp_path)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "ppm", "gif"])
@pytest.mark.parametrize("keep", [0.98, 0.5])
def test_a_truncated_image_is_refused_before_any_work(folder, kind, keep):
    path = folder / "cat" / f"broken.{kind}"
    photo(path, 64, 64)
    assert ws.load_data(folder, size=8).batch([3]).x.shape == (1, 3, 8, 8)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(BadInput, match=rf"cat/broken\.{kind}: "):
        ws.load_data(folder, size=8)


def test_an_image_with_another_file_inside_is_refused(folder):
    (folder / "cat" / "text.jpg").write_text("not an image")
    (folder / "bee" / "empty.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"bee/empty\.png: not an image.*; .*cat/text\.jpg: not an image"):
        ws.load_data(folder)


def test_only_the_first_problems_are_spelt_out(folder):
    for i in range(8):
        (folder / "cat" / f"x{i}.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"x4\.png: .* \(and 3 more\)$"):
        ws.load_data(folder)


def test_damage_inside_a_file_names_it_when_it_is_met(folder):
    path = folder / "cat" / "big.png"
    photo(path, 64, 64)
    data = ws.load_data(folder, size=8)
    raw = bytearray(path.read_bytes())
    raw[2000:2400] = bytes(400)
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=r"cat/big\.png: the image is damaged"):
        data.batch(range(len(data)))


def test_trailing_bytes_do_not_make_an_image_truncated(folder):
    path = folder / "cat" / "padded.jpg"
    photo(path)
    path.write_bytes(path.read_bytes() + bytes(10))
    assert len(ws.load_data(folder)) == 7


def test_deep_images_are_refused(folder):
    Image.fromarray(rng.integers(0, 65536, (12, 16), dtype=np.uint16)).save(folder / "cat" / "deep.png")
    with pytest.raises(BadInput, match=r"deep\.png: got more than 8 bits"):
        ws.load_data(folder)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb_or_grey(tmp_path, mode):
    expected = photo(tmp_path / "a" / ("x.jpg" if mode == "CMYK" else "x.png"), mode=mode)
    got = ws.load_data(tmp_path).batch([0]).x
    assert torch.equal(got[0], torch.from_numpy(expected).permute(2, 0, 1) / 255)
    assert ws.load_data(tmp_path, channels=1).batch([0]).x.shape == (1, 1, 12, 16)


def test_photographs_of_many_shapes_need_a_size(folder):
    photo(folder / "cat" / "tall.png", 30, 20)
    with pytest.raises(BadInput, match=r"2 image shapes \(12x16, 30x20, ...\); allowed: one shape .* size=224"):
        ws.load_data(folder)
    assert ws.load_data(folder, size=8).batch(range(7)).x.shape == (7, 3, 8, 8)


@pytest.mark.parametrize("shape", [(300, 400), (401, 299), (224, 224), (256, 256), (100, 64), (225, 224)])
def test_resizing_is_that_of_torchvision(shape):
    from torchvision.transforms import v2

    image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    expected = image if shape == (224, 224) else theirs(image)
    assert np.array_equal(np.asarray(Fit(224)(image)), np.asarray(expected))
    assert Fit(32, stretch=True)(image).size == (32, 32)


def test_the_fingerprint_follows_names_sizes_and_ends(folder):
    base = ws.load_data(folder).fingerprint()
    assert ws.load_data(folder).fingerprint() == base
    moved = folder.parent / "moved"
    os.rename(folder, moved)
    assert ws.load_data(moved).fingerprint() == base
    assert ws.load_data(moved, channels=1).fingerprint() != base
    assert ws.load_data(moved, size=8).fingerprint() != base
    assert ws.load_data(moved, limit=3).fingerprint() != base
    photo(moved / "bee" / "0.png")
    changed = ws.load_data(moved).fingerprint()
    assert changed != base
    os.rename(moved / "bee" / "0.png", moved / "bee" / "1.png")
    assert ws.load_data(moved).fingerprint() not in (base, changed)
