"""A set of which few examples keep their label."""

import numpy as np
import pytest
import torch

from tests.training.conftest import Points
from withstand.data.arrays import from_arrays
from withstand.data.few_labels import few_labels, labels_of
from withstand.errors import BadInput

Y = np.array([0, 1, 2] * 7 + [0, 0])


def images(n=23, y=Y, start=0):
    x = np.broadcast_to(np.arange(start, start + n, dtype=np.uint8)[:, None, None], (n, 4, 4))
    return from_arrays(x, None if y is None else y[:n], name="grey")


def test_so_many_of_each_class_keep_their_label_and_all_stand_without():
    few = few_labels(images(), 2)
    assert len(few) == 6 + len(Y)
    assert np.bincount(few.labels[:6]).tolist() == [2, 2, 2]
    assert (few.labels[6:] == -1).all()
    batch = few.batch(range(len(few)))
    value = (batch.x[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(batch.y, torch.from_numpy(few.labels))
    assert torch.equal(batch.y[:6], torch.from_numpy(Y)[value[:6]])
    assert value[6:].tolist() == list(range(len(Y)))
    assert torch.equal(batch.extra["truth"], torch.from_numpy(Y)[value])
    assert batch.ids.tolist() == list(range(len(few)))


def test_batches_come_in_the_order_asked_for():
    few = few_labels(images(), 2)
    whole = few.batch(range(len(few)))
    at = [7, 0, 20, 3, 3, 6]
    part = few.batch(at)
    for have, want in ((part.x, whole.x), (part.y, whole.y), (part.extra["truth"], whole.extra["truth"])):
        assert torch.equal(have, want[at])
    assert few.batch([1]).y.tolist() == [few.labels[1]]
    assert few.batch([9]).y.tolist() == [-1]


def test_the_choice_is_the_seeds():
    one, two, other = (few_labels(images(), 3, seed) for seed in (0, 0, 1))
    assert np.array_equal(one.chosen, two.chosen)
    assert one.fingerprint() == two.fingerprint()
    assert not np.array_equal(one.chosen, other.chosen)
    assert one.fingerprint() != other.fingerprint()
    # a smaller budget is part of a larger one
    assert set(few_labels(images(), 1).chosen) < set(one.chosen)


def test_none_leaves_all_labels():
    few = few_labels(images(), None)
    assert np.array_equal(few.labels[: len(Y)], Y)
    assert len(few) == 2 * len(Y)


def test_unlabelled_examples_of_another_set():
    few = few_labels(images(), 2, unlabelled=images(10, y=None, start=100))
    batch = few.batch([0, 6, 15])
    assert len(few) == 16
    assert (batch.x[1:, 0, 0, 0] * 255).round().tolist() == [100, 109]
    assert "truth" not in batch.extra


def test_labels_of_another_labelled_set_are_told_to_the_log_alone():
    few = few_labels(images(), 2, unlabelled=images(10, start=100))
    batch = few.batch([0, 6, 8])
    assert batch.y[1:].tolist() == [-1, -1]
    assert batch.extra["truth"][1:].tolist() == [0, 2]
    other = images(10, y=np.arange(10) % 2)  # other classes, whose numbers mean something else
    assert "truth" not in few_labels(images(), 2, unlabelled=other).batch([0, 6, 8]).extra


def test_labels_are_read_where_a_set_does_not_tell_them():
    points = Points()
    assert np.array_equal(labels_of(points, block=7), points.batch(range(48)).y.numpy())
    with pytest.raises(BadInput, match="without labels"):
        labels_of(Points(labels=False))


@pytest.mark.parametrize(
    ("per_class", "pool", "match"),
    [
        (8, None, "at most 7, the examples of class '1'"),
        (0, None, "whole number"),
        (True, None, "whole number"),
        (1.5, None, "whole number"),
        (2, from_arrays(np.zeros((3, 5, 5), np.uint8), None), r"shape \(1, 4, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(per_class, pool, match):
    with pytest.raises(BadInput, match=match):
        few_labels(images(), per_class, unlabelled=pool)


def test_an_unlabelled_part_of_nothing_is_refused():
    with pytest.raises(BadInput, match="empty"):
        few_labels(images(), 2, unlabelled=images().subset([]))
