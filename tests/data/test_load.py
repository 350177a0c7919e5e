import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import withstand as ws
from withstand.data import catalogue
from withstand.data import load as loading
from withstand.errors import BadInput, Unavailable
from withstand.protocols import Dataset


def test_digits_are_embedded_and_split_once_and_for_all():
    test, train = ws.load_data("digits"), ws.load_data("digits", split="train")
    assert isinstance(test, Dataset)
    assert (len(train), len(test)) == (1297, 500)
    both = torch.cat([test.batch(range(500)).x, train.batch(range(1297)).x]).flatten(1)
    original = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 16
    assert torch.equal(both.unique(dim=0), original.unique(dim=0))
    assert np.bincount(test.labels).min() > 35
    assert test.labels[:12].tolist() == [2, 4, 7, 8, 0, 4, 6, 2, 3, 6, 9, 2]
    assert test.fingerprint() == ws.load_data("digits").fingerprint() != train.fingerprint()


def test_names_are_found_however_they_are_written():
    for name in ("gtsrb", "traffic_signs", "Traffic-Signs", "traffic signs"):
        assert catalogue.find(name).name == "gtsrb"
    taken = [n for e in catalogue.SETS for n in (e.name, *e.aliases)]
    assert len(taken) == len({catalogue.plain(n) for n in taken})
    assert all(n == catalogue.plain(n) for e in catalogue.SETS for n in (e.name, *e.aliases) if not e.series)
    for entry in catalogue.SETS:
        assert entry.summary
        assert entry.source
        assert entry.files or entry.name == "digits"


def test_the_catalogue_imports_nothing_heavy():
    code = "import sys, withstand.data.catalogue; print({'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(BadInput, match=r"data: there is no 'cifra10'. Did you mean cifar10 .*nor is there a file"):
        ws.load_data("cifra10")


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(BadInput) as caught:
        ws.load_data("cifar10", tmp_path)
    said = str(caught.value)
    for part in (
        "cifar-10-batches-py",
        "vision/cifar10_test.zip",
        f"{tmp_path}/cifar10_test.zip",
        "download",
        "--root",
    ):
        assert part in said
    with pytest.raises(BadInput) as caught:
        ws.load_data("birds", tmp_path)
    assert "download" not in str(caught.value)
    monkeypatch.setenv("WITHSTAND_DATA", str(tmp_path / "there"))
    with pytest.raises(BadInput, match=r"there/vision/coil20\.npz"):
        ws.load_data("coil20")
    monkeypatch.delenv("WITHSTAND_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(BadInput, match=r"home/\.cache/withstand/data/vision/coil20\.npz"):
        ws.load_data("coil20")


def test_splits_that_a_set_lacks_are_refused(tmp_path):
    with pytest.raises(BadInput, match='split: got \'val\'; allowed: "test" or "train" for mnist'):
        ws.load_data("mnist", tmp_path, split="val")
    with pytest.raises(BadInput, match='split: got \'train\'; allowed: "all" or "test" for birds'):
        ws.load_data("birds", tmp_path, split="train")
    (tmp_path / "textures.zip").write_bytes(b"all of it is one part")
    with pytest.raises(BadInput, match=r"dtd \(train\) is not here"):
        ws.load_data("dtd", tmp_path, split="train")


def test_options_that_a_named_set_has_no_use_for_are_refused():
    with pytest.raises(BadInput, match="classes: got 10; allowed: None for a named set"):
        ws.load_data("digits", classes=10)
    with pytest.raises(BadInput, match="layout: got 'nhwc'"):
        ws.load_data("digits", layout="nhwc")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "data.tar"
    path.write_bytes(b"x")
    with pytest.raises(BadInput, match=r"the file .*data\.tar; allowed: a folder of images, an \.npz"):
        ws.load_data(path)


def test_a_name_wins_over_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert len(ws.load_data("digits")) == 500
    with pytest.raises(BadInput, match="an empty set"):
        ws.load_data("./digits")


def test_digits_can_be_enlarged_and_coloured():
    assert ws.load_data("digits", size=28, channels=3).batch([0]).x.shape == (1, 3, 28, 28)


def test_downloads_are_torchvisions_and_only_on_request(tmp_path, monkeypatch):
    asked = []

    class Fake:
        def __init__(self, root, download, train):
            asked.append((root, download, train))
            np.savez(Path(root) / "mnist.npz", x_train=np.zeros((2, 4, 4), np.uint8), y_train=[0, 1])

    monkeypatch.setattr("torchvision.datasets.MNIST", Fake)
    with pytest.raises(BadInput, match="is not here"):
        ws.load_data("mnist", tmp_path, split="train")
    assert not asked
    assert len(ws.load_data("mnist", tmp_path, split="train", download=True)) == 2
    assert len(ws.load_data("mnist", tmp_path, split="train", download=True)) == 2
    assert asked == [(tmp_path, True, True)]
    with pytest.raises(BadInput, match="which no downloader offers"):
        ws.load_data("birds", tmp_path, download=True)


@pytest.mark.parametrize("name", [e.name for e in catalogue.SETS if e.torchvision])
def test_a_failed_download_is_said(tmp_path, monkeypatch, name):
    import inspect

    import torchvision.datasets as tv

    real = getattr(tv, catalogue.find(name).torchvision)

    class Offline:
        def __init__(self, *args, **kwargs):
            inspect.signature(real.__init__).bind(self, *args, **kwargs)
            raise OSError("no network")

    monkeypatch.setattr(tv, real.__name__, Offline)
    with pytest.raises(Unavailable, match="the download failed: no network"):
        loading.load_data(name, tmp_path, download=True)
