"""The public layouts, written small by hand as torchvision's own readers expect them."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image
from scipy.io import savemat

import withstand as ws
from withstand.errors import BadInput

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
RGB = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
Y = [3, 1, 4, 1, 5, 9]


def idx(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(root, folder="MNIST", zipped=False, n=6):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", GREY[:n]), (f"{part}-labels-idx1-ubyte", Y[:n])):
            if zipped:
                (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (raw / name).write_bytes(idx(array))
    return raw


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path, zipped):
    mnist(tmp_path, zipped=zipped)
    data = ws.load_data("mnist", tmp_path)
    assert torch.equal(data.batch(range(6)).x[:, 0], torch.tensor(GREY) / 255)
    assert data.labels.tolist() == Y
    if not zipped:
        theirs = tv.MNIST(tmp_path, train=False)
        assert theirs.targets.tolist() == Y
        assert np.array_equal(np.asarray(theirs[2][0]), GREY[2])
    mnist(tmp_path, "FashionMNIST", zipped)
    assert ws.load_data("fmnist", tmp_path).classes == tuple(tv.FashionMNIST.classes)


def test_the_complete_layout_is_preferred_to_the_compact_file(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_test=GREY[:2], y_test=Y[:2])
    assert len(ws.load_data("mnist", tmp_path)) == 2
    mnist(tmp_path)
    assert len(ws.load_data("mnist", tmp_path)) == 6


def test_damaged_idx_files_are_refused(tmp_path):
    raw = mnist(tmp_path)
    path = raw / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"x", whole[:7], b"", b"\x01" + whole[1:]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"t10k-images-idx3-ubyte: not a whole idx file"):
            ws.load_data("mnist", tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=r"t10k-images-idx3-ubyte: missing"):
        ws.load_data("mnist", tmp_path)
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(BadInput, match="damaged"):
        ws.load_data("mnist", tmp_path)


def cifar(root, hundred=False):
    place = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    place.mkdir(parents=True)
    label, names = ("fine_labels", "fine_label_names") if hundred else ("labels", "label_names")
    batch = {"data": RGB.reshape(6, -1), label: Y, "filenames": ["x"] * 6}
    for name in ("train", "test") if hundred else (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (place / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = pickle.dumps({names: [f"c{i}" for i in range(100 if hundred else 10)]})
    (place / ("meta" if hundred else "batches.meta")).write_bytes(meta)
    return place


def test_cifar(tmp_path):
    cifar(tmp_path)
    cifar(tmp_path, hundred=True)
    for name, k, n in (("cifar10", 10, 30), ("cifar100", 100, 6)):
        test, train = ws.load_data(name, tmp_path), ws.load_data(name, tmp_path, split="train")
        assert torch.equal(test.batch(range(6)).x, torch.tensor(RGB) / 255)
        assert (test.labels.tolist(), len(test.classes), len(train)) == (Y, k, n)


def test_arrays_pickled_by_python_2_are_read(tmp_path):
    place = cifar(tmp_path)
    text = (place / "test_batch").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"cnumpy.core.multiarray" in text
    (place / "test_batch").write_bytes(text)
    assert len(ws.load_data("cifar10", tmp_path)) == 6


class Evil:
    def __reduce__(self):
        return (print, ("owned",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    place = cifar(tmp_path)
    (place / "test_batch").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(BadInput, match=r"a data pickle asks for builtins\.print.* Do not trust it"):
        ws.load_data("cifar10", tmp_path)
    assert "owned" not in capsys.readouterr().out


def test_damaged_batches_are_refused(tmp_path):
    place = cifar(tmp_path)
    whole = (place / "test_batch").read_bytes()
    for content, said in (
        (whole[:-100], "test_batch: damaged"),
        (b"", "test_batch: damaged"),
        (pickle.dumps({"data": [1, 2]}), "not the layout of cifar10"),
        (pickle.dumps([1, 2]), "not the layout of cifar10"),
    ):
        (place / "test_batch").write_bytes(content)
        with pytest.raises(BadInput, match=said):
            ws.load_data("cifar10", tmp_path)


def test_svhn(tmp_path):
    savemat(
        tmp_path / "test_32x32.mat", {"X": RGB.transpose(2, 3, 1, 0), "y": np.array([[1], [10], [3], [4], [5], [6]])}
    )
    data = ws.load_data("svhn", tmp_path)
    assert torch.equal(data.batch(range(6)).x, torch.tensor(RGB) / 255)
    assert data.labels.tolist() == [1, 0, 3, 4, 5, 6]
    (tmp_path / "test_32x32.mat").write_bytes(b"x" * 300)
    with pytest.raises(BadInput, match=r"test_32x32\.mat: damaged"):
        ws.load_data("svhn", tmp_path)


def save(path, shape=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)


def test_gtsrb(tmp_path):
    base = tmp_path / "gtsrb"
    for name in ("00000", "00014"):
        save(base / "GTSRB" / "Training" / name / "a.ppm", (40, 30))
    for name in ("00000.ppm", "00001.ppm"):
        save(base / "GTSRB" / "Final_Test" / "Images" / name)
    (base / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.ppm;1;16\n00001.ppm;1;1\n")
    test = ws.load_data("gtsrb", tmp_path)
    assert (test.labels.tolist(), test.space.shape, len(test.classes)) == ([16, 1], (3, 32, 32), 43)
    image = Image.open(base / "GTSRB" / "Final_Test" / "Images" / "00000.ppm").resize(
        (32, 32), Image.Resampling.BILINEAR
    )
    assert torch.equal(test.batch([0]).x[0], torch.tensor(np.array(image)).permute(2, 0, 1) / 255)
    train = ws.load_data("gtsrb", tmp_path, split="train")
    assert (train.labels.tolist(), len(train.classes)) == ([0, 14], 43)
    (base / "GT-final_test.csv").write_text("Filename,ClassId\n00000.ppm,16\n")
    with pytest.raises(BadInput, match=r"not the layout of gtsrb \(KeyError"):
        ws.load_data("gtsrb", tmp_path)


def test_tiny_imagenet(tmp_path):
    base = tmp_path / "tiny-imagenet-200"
    for wnid in ("n2", "n1"):
        save(base / "train" / wnid / "images" / f"{wnid}_0.JPEG", (64, 64))
    save(base / "val" / "images" / "val_0.JPEG", (64, 64))
    (base / "wnids.txt").write_text("n2\nn1\n")
    (base / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t9\t9\n")
    assert ws.load_data("tiny-imagenet", tmp_path).labels.tolist() == [1]
    assert ws.load_data("tiny_imagenet", tmp_path, split="train").labels.tolist() == [0, 1]


def test_dtd(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    for name in ("banded", "dotted"):
        save(base / "images" / name / f"{name}_1.jpg", (200, 300))
    (base / "labels").mkdir()
    (base / "labels" / "test1.txt").write_text("dotted/dotted_1.jpg\n")
    data = ws.load_data("textures", tmp_path)
    assert (data.labels.tolist(), data.classes, data.space.shape) == ([1], ("banded", "dotted"), (3, 128, 128))
    for text, said in (("../../secret.jpg\n", "not the layout of dtd"), ("dotted/../../x.jpg\n", "points outside")):
        (base / "labels" / "test1.txt").write_text(text)
        with pytest.raises(BadInput, match=said):
            ws.load_data("textures", tmp_path)


def test_imagenet(tmp_path):
    save(tmp_path / "imagenet" / "val" / "n01443537" / "a.JPEG")
    data = ws.load_data("imagenet", tmp_path)
    assert (data.labels.tolist(), len(data.classes)) == ([1], 1000)
