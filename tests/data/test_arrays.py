import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import withstand as ws
from withstand.data import arrays, from_arrays
from withstand.errors import BadInput
from withstand.protocols import Dataset

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
Y = np.arange(20) % 4


def test_bytes_become_floats_in_the_unit_range_batch_by_batch():
    data = from_arrays(X, Y)
    assert isinstance(data, Dataset)
    batch = data.batch([3, 0, 19])
    assert batch.x.dtype == torch.float32
    assert torch.equal(batch.x, torch.from_numpy(X[[3, 0, 19]]).permute(0, 3, 1, 2) / 255)
    assert batch.y is not None
    assert batch.y.dtype == torch.int64
    assert batch.y.tolist() == [3, 0, 3]
    assert batch.ids is not None
    assert batch.ids.tolist() == [3, 0, 19]
    assert (data.space.shape, data.space.box, data.space.classes) == ((3, 6, 5), (0.0, 1.0), 4)
    assert len(data) == 20
    assert data.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (X, (3, 6, 5)),
        (X.transpose(0, 3, 1, 2), (3, 6, 5)),
        (X[..., :1], (1, 6, 5)),
        (X[..., 0], (1, 6, 5)),
        ((X / 255).astype(np.float64), (3, 6, 5)),
        (X > 100, (3, 6, 5)),
        (torch.from_numpy(X), (3, 6, 5)),
    ],
)
def test_layouts_and_types(x, shape):
    data = from_arrays(x, Y)
    assert data.space.shape == shape
    batch = data.batch(range(20)).x
    assert batch.shape == (20, *shape)
    assert 0 <= batch.min() <= batch.max() <= 1


def test_an_open_layout_must_be_told():
    square = rng.integers(0, 256, (4, 3, 8, 3), dtype=np.uint8)
    with pytest.raises(BadInput, match=r'1 or 3 channels .* layout="nhwc" or layout="nchw"'):
        from_arrays(square, Y[:4])
    assert from_arrays(square, Y[:4], layout="nhwc").space.shape == (3, 3, 8)
    assert from_arrays(square, Y[:4], layout="nchw").space.shape == (3, 8, 3)
    assert from_arrays(np.zeros((2, 8, 8, 5), np.uint8), Y[:2], layout="nhwc").space.shape == (5, 8, 8)
    with pytest.raises(BadInput, match="layout: got 'chwn'"):
        from_arrays(square, Y[:4], layout="chwn")


def broken(value):
    x = (X / 255).astype(np.float32)
    x[7, 1, 2, 0] = value
    return x


BAD = {
    "nan": (broken(np.nan), Y, "NaN in image 7; allowed: finite pixels"),
    "inf": (broken(np.inf), Y, "Inf in image 7; allowed: finite pixels"),
    "above": (broken(1.01), Y, r"to 1\.01 in image 7; allowed: float pixels in \[0, 1\]. Undo the normalisation"),
    "bytes as floats": (X.astype(np.float32), Y, "in image 0; .* Divide by 255, or store uint8"),
    "below": (broken(-0.1), Y, r"values -0\.1 to"),
    "rank": (X[0, 0], Y[:6], r"shape \[5, 3\]; allowed: \[N, H, W\]"),
    "rank 5": (X[None], Y[:1], r"allowed: \[N, H, W\]"),
    "four channels": (np.zeros((4, 8, 8, 4), np.uint8), Y[:4], "1 or 3 channels on one axis"),
    "int64 pixels": (X.astype(np.int64), Y, "dtype int64; allowed: uint8"),
    "objects": (X.astype(object), Y, "dtype object; allowed: uint8"),
    "no pixels": (np.zeros((4, 0, 8), np.uint8), Y[:4], "at least one pixel"),
    "float labels": (X, Y.astype(np.float32), r"y: got dtype float32; allowed: integer .* y.astype\(np.int64\)"),
    "bool labels": (X, Y > 1, "y: got dtype bool"),
    "text labels": (X, Y.astype(str), "y: got dtype <U"),
    "one-hot labels": (X, np.eye(4, dtype=int)[Y], r"y: got shape \[20, 4\]; allowed: \[20\], .* y.argmax\(1\)"),
    "too few labels": (X, Y[:19], r"y: got shape \[19\]; allowed: \[20\]"),
    "negative label": (X, Y - 1, "label -1 of image 0; allowed: 0 to 2"),
    "empty": (X[:0], Y[:0], "an empty set; allowed: at least one image"),
}


@pytest.mark.parametrize(("x", "y", "said"), BAD.values(), ids=BAD)
def test_bad_arrays_are_refused(x, y, said):
    with pytest.raises(BadInput, match=said):
        from_arrays(x, y)


def test_a_label_beyond_the_named_classes_is_refused():
    with pytest.raises(BadInput, match=r"label 3 of image 3; allowed: 0 to 2 \(3 classes\)"):
        from_arrays(X, Y, classes=["a", "b", "c"])
    assert from_arrays(X, Y, classes=10).space.classes == 10


def test_only_the_chosen_images_are_checked():
    assert len(from_arrays(broken(np.nan), Y, limit=7)) == 7


def test_pixels_are_checked_in_pieces(monkeypatch):
    monkeypatch.setattr("withstand.data.checks._CHUNK", 2 * 6 * 5 * 3)
    with pytest.raises(BadInput, match="NaN in image 7"):
        from_arrays(broken(np.nan), Y)


def test_sets_without_labels():
    data = from_arrays(X, None)
    assert data.batch([1]).y is None
    assert data.labels is None
    assert data.classes == ()
    assert data.space.classes is None


def test_limit_takes_the_start_and_a_seed_shuffles():
    assert from_arrays(X, Y, limit=5).positions.tolist() == [0, 1, 2, 3, 4]
    first, again = from_arrays(X, Y, limit=8, seed=1), from_arrays(X, Y, limit=8, seed=1)
    assert first.positions.tolist() == again.positions.tolist() != list(range(8))
    assert from_arrays(X, Y, limit=4, seed=1).positions.tolist() == first.positions[:4].tolist()
    assert from_arrays(X, Y, limit=8, seed=2).positions.tolist() != first.positions.tolist()
    assert len(from_arrays(X, Y, limit=99)) == 20
    assert sorted(from_arrays(X, None, seed=3).positions) == list(range(20))
    assert torch.equal(first.batch([0]).x[0], torch.from_numpy(X[first.positions[0]]).permute(2, 0, 1) / 255)
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(BadInput, match="limit: got"):
            from_arrays(X, Y, limit=wrong)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5), st.integers(1, 60))
def test_every_beginning_keeps_each_class_share(labels, seed, n):
    y = np.array(labels)
    chosen = from_arrays(np.zeros((len(y), 1, 1), np.uint8), y, limit=n, seed=seed, classes=5)
    assert len(set(chosen.positions.tolist())) == len(chosen)
    for c in set(labels):
        assert abs((y[chosen.positions] == c).sum() - len(chosen) * (y == c).mean()) < len(set(labels))
    if len(set(y.tolist())) == 2:
        a = min(y.tolist())
        assert abs((y[chosen.positions] == a).sum() - len(chosen) * (y == a).mean()) <= 1.0001


def test_a_sample_of_a_balanced_set_is_balanced():
    y = np.repeat(np.arange(4), 50)
    for n in (4, 20, 41, 100):
        chosen = from_arrays(np.zeros((200, 1, 1), np.uint8), y, limit=n, seed=n)
        counts = np.bincount(y[chosen.positions], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_within_a_class_every_image_may_come_first():
    firsts = {int(from_arrays(X, Y, limit=1, seed=s).positions[0]) for s in range(200)}
    assert len(firsts) == 20


def test_subsets_keep_their_ids():
    part = from_arrays(X, Y, limit=10).subset([2, 5]).subset([1])
    batch = part.batch([0])
    assert (len(part), batch.ids.tolist()) == (1, [5])  # type: ignore[union-attr]
    assert len(from_arrays(X, Y).subset([])) == 0


@pytest.mark.parametrize("positions", [[20], [-1], [0.5], [[0]], [True]])
def test_positions_outside_are_refused(positions):
    with pytest.raises(BadInput, match="whole numbers from 0 to 19"):
        from_arrays(X, Y).batch(positions)


def test_an_empty_batch_is_a_batch():
    assert from_arrays(X, Y).batch([]).x.shape == (0, 3, 6, 5)


def test_the_fingerprint_follows_pixels_labels_classes_and_selection():
    base = from_arrays(X, Y).fingerprint()
    assert from_arrays(X.copy(), Y, name="other").fingerprint() == base
    changed, relabelled = X.copy(), Y.copy()
    changed[3, 0, 0, 0] ^= 1
    relabelled[0] = 1
    others = [
        from_arrays(changed, Y),
        from_arrays(X, relabelled),
        from_arrays(X, Y, classes=list("abcd")),
        from_arrays(X, Y, classes=5),
        from_arrays(X, Y, limit=5),
        from_arrays(X, Y, seed=0),
        from_arrays(X, Y).subset(range(5)),
    ]
    prints = [o.fingerprint() for o in others]
    assert base not in prints
    assert len(set(prints)) == len(prints) - 1  # limit=5 and subset(range(5)) are one and the same
    assert prints[4] == prints[6]


def test_the_fingerprint_of_a_file_follows_the_selection(tmp_path):
    np.savez(tmp_path / "set.npz", x=X, y=np.zeros(20, int))
    data = ws.load_data(tmp_path / "set.npz")
    assert data.subset([1]).fingerprint() != data.subset([2]).fingerprint() != data.fingerprint()


# .npz ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("large", [0, 1 << 30])
def test_npz_files_read_the_same_from_memory_and_from_disk(tmp_path, monkeypatch, save, large):
    monkeypatch.setattr(arrays, "_LARGE", large)
    for x in (X, X / 255, np.asfortranarray(X)):
        save(tmp_path / "set.npz", x=x, y=Y, classes=np.array(list("abcd")))
        data = ws.load_data(tmp_path / "set.npz")
        assert data.classes == ("a", "b", "c", "d")
        assert data.name == "set"
        assert torch.allclose(data.batch([0, 13]).x, torch.from_numpy(X[[0, 13]]).permute(0, 3, 1, 2) / 255, atol=1e-7)


def test_a_large_stored_array_is_mapped_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_LARGE", 0)
    np.savez(tmp_path / "set.npz", x=X, y=Y)
    mapped = arrays.Npz(tmp_path / "set.npz")["x"]
    assert isinstance(mapped, np.memmap)
    assert mapped.filename == tmp_path / "set.npz"
    assert np.array_equal(mapped, X)


def test_splits_inside_an_npz(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3])
    assert len(ws.load_data(tmp_path / "set.npz")) == 3
    assert len(ws.load_data(tmp_path / "set.npz", split="train")) == 20
    with pytest.raises(BadInput, match=r"x_train, y_train, x_test, y_test; allowed: x .* Or x_val and y_val"):
        ws.load_data(tmp_path / "set.npz", split="val")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keep", [0.99, 0.5, 0.1, 0])
def test_a_truncated_npz_is_refused(tmp_path, save, keep):
    path = tmp_path / "set.npz"
    save(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(BadInput, match=rf"{re.escape(str(path))}: not a whole \.npz file"):
        ws.load_data(path)


@pytest.mark.parametrize("large", [0, 1 << 30])
def test_a_damaged_npz_is_refused(tmp_path, monkeypatch, large):
    monkeypatch.setattr(arrays, "_LARGE", large)
    path = tmp_path / "set.npz"
    np.savez_compressed(path, x=X, y=Y)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"not a whole \.npz file"):
        ws.load_data(path)


@pytest.mark.parametrize("large", [0, 1 << 30])
def test_a_short_array_inside_a_whole_npz_is_refused(tmp_path, monkeypatch, large):
    monkeypatch.setattr(arrays, "_LARGE", large)
    np.save(tmp_path / "x.npy", X)
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-5])
        archive.writestr("y.npy", (tmp_path / "x.npy").read_bytes())
    with pytest.raises(BadInput, match=r"not a whole \.npz file"):
        ws.load_data(tmp_path / "set.npz")


def test_pickled_objects_and_missing_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}, []], object), y=Y)
    with pytest.raises(BadInput, match="x: got pickled objects"):
        ws.load_data(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", images=X, y=Y)
    with pytest.raises(
        BadInput, match=r"the arrays images, y; allowed: x \(images or series\) and y \(integer labels\)"
    ):
        ws.load_data(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=X)
    with pytest.raises(BadInput, match="the arrays x; allowed"):
        ws.load_data(tmp_path / "c.npz")


def test_no_room_to_unpack_is_said(tmp_path, monkeypatch):
    from withstand.errors import Unavailable

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, block):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays, "_LARGE", 0)
    monkeypatch.setattr(arrays.tempfile, "TemporaryFile", Full)
    np.savez_compressed(tmp_path / "set.npz", x=X, y=Y)
    with pytest.raises(Unavailable, match=r"no room in .* No space left on device"):
        ws.load_data(tmp_path / "set.npz")


# Bringing to a shape ---------------------------------------------------------------------------------------------


def test_size_and_channels(tmp_path):
    grey = rng.integers(0, 256, (4, 28, 20), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", x=grey, y=Y[:4])
    wide = ws.load_data(tmp_path / "grey.npz", size=32, channels=3)
    assert wide.space.shape == (3, 32, 32)
    x = wide.batch([0, 1]).x
    assert x.shape == (2, 3, 32, 32)
    assert torch.equal(x[:, 0], x[:, 2])
    assert 0 <= x.min() <= x.max() <= 1
    np.savez(tmp_path / "rgb.npz", x=X, y=Y)
    grey = ws.load_data(tmp_path / "rgb.npz", channels=1).batch([0]).x
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    assert np.allclose(grey[0, 0].numpy(), (X[0] / 255) @ weights, atol=1e-6)
    flat = np.full((2, 10, 14), 77, np.uint8)
    np.savez(tmp_path / "flat.npz", x=flat, y=Y[:2])
    assert torch.allclose(ws.load_data(tmp_path / "flat.npz", size=8).batch([0]).x, torch.tensor(77 / 255))
    same = ws.load_data(tmp_path / "rgb.npz").batch([0]).x
    square = from_arrays(X[:, :5], Y)
    assert torch.equal(same[:, :, :5], square.batch([0]).x)
    for wrong in ({"size": 0}, {"channels": 2}):
        with pytest.raises(BadInput, match=f"{next(iter(wrong))}: got"):
            ws.load_data(tmp_path / "rgb.npz", **wrong)
