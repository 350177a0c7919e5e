"""Sets whose images have several labels, or none."""

import numpy as np
import pytest
import torch

from tests.data.test_compact import jpeg, write
from withstand.data import load_data
from withstand.data.arrays import from_arrays
from withstand.data.compact import zip_source
from withstand.data.images import Images, stratified
from withstand.errors import BadInput
from withstand.models import as_target
from withstand.models.compatible import check_compatible

Y = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], bool)


def small() -> Images:
    return from_arrays(np.zeros((4, 5, 5), np.uint8), Y, classes=["a", "b", "c"])


def test_batches_hold_a_row_of_zeros_and_ones_for_each_image() -> None:
    data = small()
    assert data.multilabel
    assert data.classes == ("a", "b", "c")
    y = data.batch([3, 0]).y
    assert y is not None
    assert y.dtype == torch.float32
    assert y.tolist() == [[1, 1, 1], [1, 0, 1]]
    assert data.subset([2]).labels.tolist() == [[0, 1, 0]]
    assert not from_arrays(np.zeros((2, 5, 5), np.uint8), np.array([0, 1])).multilabel


def test_the_fingerprint_changes_with_a_label() -> None:
    other = Y.copy()
    other[1, 1] = True
    changed = from_arrays(np.zeros((4, 5, 5), np.uint8), other, classes=["a", "b", "c"])
    assert small().fingerprint() != changed.fingerprint()


def test_integers_in_rows_are_refused_with_a_way_out() -> None:
    with pytest.raises(BadInput, match="several labels"):
        from_arrays(np.zeros((4, 5, 5), np.uint8), Y.astype(int))
    with pytest.raises(BadInput, match=r"\[4, 2\]"):
        from_arrays(np.zeros((4, 5, 5), np.uint8), Y, classes=2)


def test_a_stratified_order_keeps_the_share_of_each_combination() -> None:
    labels = np.repeat(np.array([[1, 0], [1, 1], [0, 1]], np.uint8), (60, 30, 30), axis=0)
    first = labels[stratified(labels, 120, 0)[:40]]
    assert [int((first == row).all(1).sum()) for row in ([1, 0], [1, 1], [0, 1])] == pytest.approx([20, 10, 10], abs=1)


def test_columns_of_a_zip_become_classes(tmp_path) -> None:
    rows = "file,cat,dog\na.jpg,1,0\nb.jpg,1,1\n"
    path = write(tmp_path / "x.zip", {"labels.csv": rows.encode(), "a.jpg": jpeg(), "b.jpg": jpeg()})
    source = zip_source(path, "all", "cat,dog", None, None)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [[1, 0], [1, 1]]
    path = write(
        tmp_path / "y.zip", {"labels.csv": rows.replace("1,1", "1,2").encode(), "a.jpg": jpeg(), "b.jpg": jpeg()}
    )
    with pytest.raises(BadInput, match="0 or 1"):
        zip_source(path, "all", "cat,dog", None, None)


def test_a_classifier_refuses_them_and_says_what_they_are_for() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    with pytest.raises(BadInput, match=r"several to an image.*hashing"):
        check_compatible(as_target(model), small())


@pytest.mark.data
def test_voc_has_five_classes_and_pairs_of_them(data_root) -> None:
    data = load_data("voc", root=data_root, limit=40, seed=0)
    assert data.multilabel
    assert data.classes == ("bus", "car", "cat", "person", "train")
    batch = data.batch(range(8))
    assert batch.x.shape == (8, 3, 128, 128)
    assert batch.y is not None
    assert batch.y.shape == (8, 5)
    counts = torch.from_numpy(data.labels).sum(1)
    assert int(counts.min()) >= 1
    assert int(counts.max()) >= 2
