"""The compact files: small ones made here, and the real ones where they are at hand."""

import csv
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import withstand as ws
from withstand.errors import BadInput

rng = np.random.default_rng(0)


def webp(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "webp", lossless=True)
    return buffer.getvalue()


def jpeg(h=20, w=30):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(buffer, "jpeg")
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


X = rng.integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2, 2], np.uint8)


def strips(**more):
    meta = json.dumps({"tile": [4, 4, 3], "classes": ["a", "b", "c"]})
    first, second = X[:5].reshape(20, 4, 3), X[5:].reshape(8, 4, 3)
    return {"strip_0.webp": webp(first), "strip_1.webp": webp(second), "labels.npy": npy(Y), "meta.json": meta, **more}


def test_strips_are_read_losslessly(tmp_path):
    path = write(tmp_path / "vision" / "cifar10_test.zip", strips())
    for data in (ws.load_data("cifar10", tmp_path), ws.load_data("CIFAR_10", path.parent), ws.load_data(path)):
        assert torch.equal(data.batch(range(7)).x, torch.tensor(X).permute(0, 3, 1, 2) / 255)
        assert data.labels.tolist() == Y.tolist()
        assert data.classes == ("a", "b", "c")
        assert data.where == str(path)


def test_strips_with_a_test_part(tmp_path):
    part = npy(np.array([0, 1, 0, 0, 1, 0, 1], bool))
    write(tmp_path / "traffic_signs.zip", strips(**{"is_test.npy": part}))
    test, train = ws.load_data("traffic_signs", tmp_path), ws.load_data("gtsrb", tmp_path, split="train")
    assert test.name == train.name == "gtsrb"
    assert test.labels.tolist() == [1, 1, 2]
    assert train.labels.tolist() == [0, 2, 0, 2]
    assert torch.equal(ws.load_data("gtsrb", tmp_path, size=None).batch([2]).ids, torch.tensor([2]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels.npy": npy(Y[:6])}, r"y: got shape \[6\]; allowed: \[7\]"),
        ({"labels.npy": npy(Y + 1)}, "label 3 of image 2"),
        ({"labels.npy": npy(Y / 2)}, "dtype float64"),
        ({"labels.npy": b""}, "not a whole data file"),
        ({"meta.json": "{"}, "not a whole data file"),
        ({"meta.json": "{}"}, "not a whole data file"),
        ({"strip_1.webp": webp(X[5:].reshape(8, 4, 3))[:-9]}, "a strip of images is damaged|not a whole"),
        ({"strip_1.webp": webp(X[5:].reshape(8, 4, 3)[:7])}, "a strip of images is damaged"),
        ({"../evil.webp": b"x"}, r"the entry '\.\./evil\.webp' points outside"),
        ({"/etc/evil": b"x"}, "points outside"),
        ({"C:\\evil": b"x"}, "points outside"),
        ({"a/../../evil": b"x"}, "points outside"),
    ],
)
def test_bad_strips_are_refused(tmp_path, change, said):
    with pytest.raises(BadInput, match=said):
        ws.load_data(write(tmp_path / "set.zip", strips(**change)))


def photos(rows, **more):
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return {**{r["file"]: jpeg() for r in rows}, "labels.csv": table.getvalue(), **more}


ROWS = [{"file": f"{i}.jpg", "label": i % 2, "name": "xy"[i % 2], "split": ("train", "val")[i > 2]} for i in range(5)]


def test_photographs_are_decoded_when_asked_for(tmp_path):
    members = photos(ROWS)
    write(tmp_path / "tiny_imagenet.zip", members)
    data = ws.load_data("tiny-imagenet", tmp_path)
    assert (len(data), data.labels.tolist(), data.classes) == (2, [1, 0], ("x", "y"))
    expected = np.asarray(Image.open(io.BytesIO(members["4.jpg"])))
    assert torch.equal(data.batch([1]).x[0], torch.tensor(expected).permute(2, 0, 1) / 255)
    assert len(ws.load_data("tiny-imagenet", tmp_path, split="train")) == 3
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.batch([1]).x, data.batch([1]).x)
    assert again.fingerprint() == data.fingerprint()


def test_all_class_names_come_from_the_table_of_classes(tmp_path):
    rows = [{"file": "a.jpg", "class_index": 1, "name": "one"}]
    members = photos(rows, **{"classes.csv": "class_index,name\n0,zero\n1,one\n2,two\n"})
    write(tmp_path / "imagenet_samples.zip", members)
    data = ws.load_data("imagenet-samples", tmp_path)
    assert data.classes == ("zero", "one", "two")
    assert data.space.shape == (3, 224, 224)


def test_bad_photo_zips_are_refused(tmp_path):
    good = photos(ROWS)
    for change, said in (
        ({"2.jpg": good["2.jpg"][:300]}, r"set\.zip: 2\.jpg: .* Replace or remove it"),
        ({"2.jpg": b"text"}, r"set\.zip: 2\.jpg: not an image"),
        ({"labels.csv": "file,label\nnone.jpg,0\n"}, r"none\.jpg.*There is no item named"),
        ({"labels.csv": "file,label\n../x.jpg,0\n"}, "points outside"),
        ({"labels.csv": "file,kind\n1.jpg,0\n"}, "the columns file, kind"),
        ({"labels.csv": "file,label\n1.jpg,\n"}, "whole numbers"),
        ({"labels.csv": "file,label\n1.jpg,-1\n"}, "label -1"),
        ({"labels.csv": "file,label\n"}, "an empty set"),
    ):
        with pytest.raises(BadInput, match=said):
            ws.load_data(write(tmp_path / "set.zip", {**good, **change}), split="train")
    path = write(tmp_path / "set.zip", {"a.txt": "x"})
    with pytest.raises(BadInput, match=r"a zip without labels\.csv or meta\.json"):
        ws.load_data(path)
    path = write(tmp_path / "set.zip", good)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInput, match="not a whole data file"):
        ws.load_data(path)


def test_a_flipped_bit_in_an_archive_is_found_before_any_work(tmp_path):
    path = write(tmp_path / "set.zip", photos(ROWS))
    raw = bytearray(path.read_bytes())
    raw[400] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=r"0\.jpg: cannot be read: Bad CRC"):
        ws.load_data(path, split="train")


def test_packed_drawings_are_unpacked(tmp_path):
    drawings = rng.integers(0, 2, (3, 105, 105)).astype(bool)
    (tmp_path / "vision").mkdir()
    np.savez(
        tmp_path / "vision" / "omniglot.npz",
        bits=np.packbits(drawings, axis=-1),
        char=np.array([1, 0, 1], np.int16),
        characters=np.array(["A/1", "A/2"]),
    )
    data = ws.load_data("omniglot", tmp_path)
    assert torch.equal(data.batch(range(3)).x[:, 0], torch.tensor(drawings).float())
    assert data.classes == ("A/1", "A/2")


# The real files --------------------------------------------------------------------------------------------------


def naive_strips(path):
    archive = zipfile.ZipFile(path)
    meta = json.load(archive.open("meta.json"))
    names = sorted(n for n in archive.namelist() if n.endswith(".webp"))
    tiles = [np.asarray(Image.open(archive.open(n)).convert("RGB")) for n in names]
    return np.concatenate(tiles).reshape(-1, *meta["tile"]), np.load(io.BytesIO(archive.read("labels.npy")))


@pytest.mark.data
def test_cifar10_is_what_its_file_holds(data_root):
    x, y = naive_strips(data_root / "vision" / "cifar10_test.zip")
    data = ws.load_data("cifar10", data_root)
    assert len(data) == 8000
    assert data.classes[5] == "dog"
    assert np.array_equal(data.labels, y)
    at = [0, 4000, 7999]
    assert torch.equal(data.batch(at).x, torch.tensor(x[at]).permute(0, 3, 1, 2) / 255)


LENGTHS = {
    "mnist": (9000, (1, 28, 28), 10),
    "fashion-mnist": (8000, (1, 28, 28), 10),
    "notmnist": (4000, (1, 28, 28), 10),
    "omniglot": (4840, (1, 105, 105), 242),
    "cifar100": (4750, (3, 32, 32), 100),
    "gtsrb": (645, (3, 32, 32), 43),
    "imagenet-samples": (872, (3, 224, 224), 1000),
    "tiny-imagenet": (1568, (3, 64, 64), 196),
    "dtd": (600, (3, 128, 128), 10),
    "coil20": (1000, (1, 32, 32), 20),
    "birds": (294, (3, 128, 128), 10),
    "cars": (800, (3, 128, 128), 40),
    "orl": (400, (1, 112, 92), 40),
    "yale": (164, (1, 122, 160), 15),
    "yaleb": (2414, (1, 24, 24), 38),
    "lfw": (1850, (3, 96, 96), 158),
}


@pytest.mark.data
@pytest.mark.parametrize("name", LENGTHS)
def test_every_compact_set_loads(data_root, name):
    n, shape, classes = LENGTHS[name]
    data = ws.load_data(name, data_root)
    assert (len(data), data.space.shape, len(data.classes)) == (n, shape, classes)
    batch = data.batch([0, n - 1])
    assert batch.x.shape == (2, *shape)
    assert 0.2 < batch.x.max() <= 1
    assert len(np.unique(data.labels)) >= min(classes, 95) * 0.87
