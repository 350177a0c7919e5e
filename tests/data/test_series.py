"""Time series by name and from arrays."""

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.data import catalogue, from_series, load_data
from withstand.errors import BadInput
from withstand.protocols import Dataset

SERIES = [e for e in catalogue.SETS if e.series]


def waves(n=6, c=2, t=12):
    return ws.Rows.count(0, n).normal((c, t), "waves", dtype=torch.float64).numpy() * 3 + 5


def test_channels_come_with_mean_zero_and_deviation_one():
    raw = waves()
    data = from_series(raw, np.arange(6) % 3)
    assert isinstance(data, Dataset)
    assert repr(data) == "<series: 6 series [2, 12], 3 classes>"
    assert data.space == ws.protocols.Space((2, 12), None, 3)
    batch = data.batch([4, 1])
    assert batch.x.dtype == torch.float32
    for i, row in enumerate((4, 1)):
        for c in range(2):
            v = raw[row, c]
            np.testing.assert_allclose(batch.x[i, c], (v - v.mean()) / v.std(), atol=1e-5)
    assert batch.y.tolist() == [1, 1]
    assert batch.ids.tolist() == [4, 1]
    np.testing.assert_allclose(from_series(raw, normalise=False).batch([0]).x[0], raw[0], rtol=1e-6)


def test_one_channel_may_go_without_its_axis_and_lists_are_stacked():
    raw = waves(c=1)
    flat = from_series(raw[:, 0]).batch(range(6)).x
    assert flat.shape == (6, 1, 12)
    assert torch.equal(flat, from_series(list(raw)).batch(range(6)).x)
    assert torch.equal(flat, from_series(torch.from_numpy(raw)).batch(range(6)).x)


def test_a_part_of_the_set_is_a_set_of_series():
    data = from_series(waves(30), np.arange(30) % 3, limit=9, seed=0)
    assert np.bincount(data.labels).tolist() == [3, 3, 3]
    part = data.subset([2, 5])
    assert part.space.box is None
    assert repr(part) == "<series: 2 series [2, 12], 3 classes>"
    prints = {from_series(waves()).fingerprint(), from_series(waves() + 1).fingerprint(), part.fingerprint()}
    assert len({*prints, from_series(waves(), normalise=False).fingerprint()}) == 4


def spoiled(value):
    raw = waves()
    raw[3, 1, 2:4] = value
    return raw


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (spoiled(np.nan), "NaN or Inf in channel 1 of series 3.*interpolate"),
        (spoiled(np.inf), "NaN or Inf in channel 1 of series 3"),
        (np.concatenate([waves(), np.ones((1, 2, 12))]), "a constant channel 0 in series 6.*normalise=False"),
        ([np.arange(5.0), np.arange(7.0)], "series of 5 to 7 steps; allowed: series of one length.*pad or resample"),
        ([np.ones((2, 5)), np.ones((3, 5))], "numbers of channels"),
        (np.zeros((2, 3, 4, 5)), r"\[N, T\] or \[N, C, T\]"),
        (np.array([["a", "b"]]), "numbers"),
        (np.zeros((0, 1, 4)), "at least one series"),
    ],
)
def test_bad_series_are_refused(x, said):
    with pytest.raises(BadInput, match=said):
        from_series(x)


def test_bad_labels_are_refused():
    with pytest.raises(BadInput, match="6"):
        from_series(waves(), [0, 1])


def own(folder, **arrays):
    np.savez(folder / "own.npz", **{"x": waves(), "y": np.arange(6) % 3, **arrays})
    return folder / "own.npz"


def test_own_series_come_from_an_npz(tmp_path):
    path = own(tmp_path)
    data = load_data(path, series="normalised")
    assert repr(data) == "<own: 6 series [2, 12], 3 classes>"
    assert torch.equal(data.batch(range(6)).x, from_series(waves()).batch(range(6)).x)
    raw = load_data(path, series="raw", limit=4)
    np.testing.assert_allclose(raw.batch(range(4)).x, waves()[:4], rtol=1e-6)
    assert raw.space.box is None
    parts = own(tmp_path, x_train=waves(3), y_train=np.arange(3), classes=np.array(["a", "b", "c"]))
    assert load_data(parts, split="train", series="raw").classes == ("a", "b", "c")
    assert len(load_data(parts, split="train", series="raw")) == 3


def test_two_dimensions_can_only_be_series_and_three_are_images_unless_told(tmp_path):
    assert load_data(own(tmp_path, x=waves()[:, 0])).space.shape == (1, 12)
    assert load_data(own(tmp_path, x=np.full((6, 5, 5), 0.5))).space.shape == (1, 5, 5)
    with pytest.raises(BadInput, match=r"float pixels in \[0, 1\].*If these are time series.*--series"):
        load_data(own(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"x": spoiled(np.nan)}, {"series": "raw"}, "NaN or Inf in channel 1 of series 3"),
        ({"x": np.ones((6, 1, 9))}, {"series": "normalised"}, "a constant channel 0 in series 0.*--series raw"),
        ({"x": np.array([np.ones(3 + i) for i in range(6)], object)}, {"series": "raw"}, "unequal length"),
        ({"y": np.arange(5)}, {"series": "raw"}, "one label for each"),
        ({}, {"series": "yes"}, '"normalised", "raw" or None'),
        ({}, {"series": "raw", "size": 8}, "size: got 8; allowed: nothing for the time series"),
    ],
)
def test_bad_files_of_series_are_refused(tmp_path, arrays, options, said):
    with pytest.raises(BadInput, match=said):
        load_data(own(tmp_path, **arrays), **options)


def test_only_arrays_and_sets_of_series_can_be_series(tmp_path):
    with pytest.raises(BadInput, match="a set of images"):
        load_data("digits", series="raw")
    with pytest.raises(BadInput, match=r"come as an \.npz"):
        load_data(tmp_path, series="raw")
    with pytest.raises(BadInput, match="None or 'normalised' for SyntheticControl"):
        load_data("SyntheticControl", series="raw")


def archive(folder, **arrays):
    (folder / "timeseries").mkdir()
    np.savez(folder / "timeseries" / "ucr.npz", **arrays)
    return folder


def test_a_set_is_read_from_an_archive_of_many(tmp_path):
    raw = waves(c=1)[:, 0].astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1], np.int16)
    root = archive(
        tmp_path,
        CBF_X_train=raw[:2],
        CBF_y_train=labels[:2] + 1,
        CBF_X_test=raw,
        CBF_y_test=labels,
        GunPoint_X_test=raw,
    )
    data = load_data("cbf", root)
    assert repr(data) == "<CBF: 6 series [1, 12], 3 classes>"
    assert len(load_data("CBF", root, split="train")) == 2
    assert data.fingerprint() != load_data("CBF", root, split="train").fingerprint()
    with pytest.raises(BadInput, match="no array GunPoint_y_test"):
        load_data("GunPoint", root)
    with pytest.raises(BadInput, match="split"):
        load_data("CBF", root, split="all")
    with pytest.raises(BadInput, match="size"):
        load_data("CBF", root, size=8)
    with pytest.raises(BadInput, match=r"Epilepsy \(test\) is not here. Looked at: .*uea.npz"):
        load_data("Epilepsy", root)


@pytest.mark.data
@pytest.mark.parametrize("entry", SERIES, ids=lambda e: e.name)
def test_sets_are_what_the_catalogue_says(entry, data_root):
    if not (data_root / entry.compact["test"]).is_file():
        pytest.skip(f"{entry.compact['test']} is not in {data_root}")
    for split in ("train", "test"):
        data = load_data(entry.name, data_root, split=split)
        c, t = data.space.shape
        assert f"{t} steps, {len(data.classes)} classes" in entry.summary
        assert c == 1 or f"{c} channels" in entry.summary
        x = data.batch(range(min(20, len(data)))).x
        assert x.mean(2).abs().max() < 1e-4
        assert (x.std(2, correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("length", [15, 24, 60, 131])
def test_the_series_network_takes_any_length(length):
    target = ws.load_model("zoo:series_cnn", classes=4, pretrained=False)
    assert target.space == ws.protocols.Space((1, None), None, 4)
    assert target(torch.randn(3, 1, length)).shape == (3, 4)
