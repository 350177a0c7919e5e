"""Halves of the classes, of sets of one part and of two."""

import numpy as np
import pytest
import torch
from PIL import Image

import withstand as ws
from withstand.data import load as loading
from withstand.errors import BadInput
from withstand.protocols import Dataset


@pytest.fixture
def letters(tmp_path):
    """Ten images of five classes in one part, each of its own grey."""
    y = np.array([4, 0, 1, 2, 3, 4, 0, 1, 2, 3])
    x = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((10, 4, 4), np.uint8)
    path = tmp_path / "letters.npz"
    np.savez(path, x=x, y=y, classes=np.array(["a", "b", "c", "d", "e"]))
    return path


def test_halves_are_disjoint_numbered_anew_and_whole(letters):
    seen, unseen = (ws.load_data(letters, split=split) for split in ("seen", "unseen"))
    assert isinstance(seen, Dataset)
    assert (seen.classes, unseen.classes) == (("a", "b"), ("c", "d", "e"))
    assert (seen.space.classes, unseen.space.classes) == (2, 3)
    for half, places, labels in ((seen, [1, 2, 6, 7], [0, 1, 0, 1]), (unseen, [0, 3, 4, 5, 8, 9], [2, 0, 1, 2, 0, 1])):
        batch = half.batch(range(len(half)))
        assert (batch.x[:, 0, 0, 0] * 255).round().int().tolist() == places
        assert batch.y.tolist() == half.labels.tolist() == labels
        assert batch.ids.tolist() == list(range(len(half)))


def test_a_limit_keeps_the_share_of_every_class_of_the_half(letters):
    few = ws.load_data(letters, split="unseen", limit=3, seed=0)
    assert sorted(few.labels.tolist()) == [0, 1, 2]
    whole = ws.load_data(letters, split="unseen")
    assert torch.equal(few.batch([0]).x, whole.batch(few.positions[:1]).x)


def test_fingerprints_tell_halves_apart(letters, tmp_path):
    prints = [ws.load_data(letters, split=split).fingerprint() for split in ("seen", "unseen", "test", "seen")]
    assert prints[0] == prints[3]
    assert len(set(prints)) == 3
    names = {"x": np.zeros((4, 4, 4), np.uint8), "classes": np.array(["a", "a"])}  # nothing but the places differ
    np.savez(tmp_path / "same.npz", y=np.array([0, 1, 0, 1]), **names)
    assert len({ws.load_data(tmp_path / "same.npz", split=s).fingerprint() for s in ("seen", "unseen")}) == 2


def test_of_sets_with_two_parts_one_is_learned_from_and_the_other_searched():
    train, test = ws.load_data("digits", split="train"), ws.load_data("digits")
    seen, unseen = ws.load_data("digits", split="seen"), ws.load_data("digits", split="unseen")
    assert (seen.classes, unseen.classes) == (tuple("01234"), tuple("56789"))
    for half, part, kept in ((seen, train, train.labels < 5), (unseen, test, test.labels >= 5)):
        assert torch.equal(half.batch(range(len(half))).x, part.batch(np.flatnonzero(kept)).x)


def test_sets_of_one_part_give_halves_where_they_have_no_train_split(tmp_path):
    x = np.zeros((40, 32, 32), np.uint8)
    (tmp_path / "vision").mkdir()
    np.savez(tmp_path / "vision" / "coil20.npz", x=x, obj=np.arange(40) % 20)
    seen, unseen = (ws.load_data("coil20", tmp_path, split=split) for split in ("seen", "unseen"))
    assert seen.classes == tuple(map(str, range(10)))
    assert unseen.classes == tuple(map(str, range(10, 20)))
    assert len(seen) == len(unseen) == 20
    with pytest.raises(BadInput, match=r"'train'; allowed: \"all\" or \"test\" for coil20, or half .* \"seen\""):
        ws.load_data("coil20", tmp_path, split="train")


def test_a_compact_file_stands_for_both_parts_of_a_public_set():
    entry = loading.catalogue.find("dtd")
    for split in ("seen", "unseen"):
        places = [str(path) for path, _ in loading._places(entry, loading.data_root("there"), split)]
        assert "there/vision/textures.zip" in places


def test_folders_and_series_have_halves(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), ord(name[0]), np.uint8)).save(tmp_path / "pets" / name / "0.png")
    assert ws.load_data(tmp_path / "pets", split="seen").classes == ("ant",)
    assert ws.load_data(tmp_path / "pets", split="unseen").classes == ("bee", "cat")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).normal(size=(6, 2, 9)), y=np.arange(6) % 3)
    unseen = ws.load_data(tmp_path / "s.npz", split="unseen", series="normalised")
    assert (unseen.labels.tolist(), unseen.space.shape) == ([0, 1, 0, 1], (2, 9))
    (tmp_path / "timeseries").mkdir()
    archive = {f"UMD_X_{part}": np.ones((6, 150)) * np.arange(150) for part in ("train", "test")}
    archive |= {f"UMD_y_{part}": np.arange(6) % 3 for part in ("train", "test")}
    np.savez(tmp_path / "timeseries" / "ucr.npz", **archive)
    assert ws.load_data("UMD", tmp_path, split="seen").labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.array([[True, False]] * 4), "several labels"),
        (np.zeros(4, int), "a single class"),
    ],
)
def test_classes_that_cannot_be_halved_are_refused(tmp_path, y, said):
    np.savez(tmp_path / "set.npz", x=np.zeros((4, 4, 4), np.uint8), y=y)
    with pytest.raises(BadInput, match=f"split: got 'seen' of set.npz, which has {said}"):
        ws.load_data(tmp_path / "set.npz", split="seen")


def test_a_folder_without_labels_has_no_halves(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(BadInput, match="no labels"):
        ws.load_data(tmp_path, split="unseen")


@pytest.mark.data
def test_half_of_the_cars_is_learned_from(data_root):
    seen, unseen = (ws.load_data("cars", data_root, split=split, size=32) for split in ("seen", "unseen"))
    assert (len(seen), len(unseen)) == (400, 400)
    assert not {*seen.classes} & {*unseen.classes}
    assert (*seen.classes, *unseen.classes) == ws.load_data("cars", data_root).classes
    with pytest.raises(BadInput, match="several labels"):
        ws.load_data("voc", data_root, split="seen")
