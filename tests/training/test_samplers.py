"""Which examples make a batch."""

import numpy as np
import pytest
import torch

from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.training.feed import micro_batches, order
from withstand.training.samplers import PerClass


def drawn(labels, batch, images, seed=0):
    return PerClass(images)(labels, len(labels), batch, torch.Generator().manual_seed(seed))


def test_a_batch_has_so_many_classes_with_so_many_examples_each():
    labels = np.repeat(np.arange(6), 10)
    found = drawn(labels, batch=12, images=4).view(-1, 12)
    assert len(found) == 5
    for rows in found.tolist():
        classes, counts = np.unique(labels[rows], return_counts=True)
        assert len(classes) == 3
        assert set(counts.tolist()) == {4}
        assert len(set(rows)) == 12


def test_the_order_within_a_batch_does_not_follow_the_classes():
    labels = np.repeat(np.arange(6), 10)
    rows = labels[drawn(labels, batch=24, images=8).numpy()][:24]
    assert (np.diff(rows) != 0).sum() > 8


def test_all_examples_of_a_class_come_before_one_comes_again():
    labels = np.repeat([0, 1], 9)
    found = drawn(labels, batch=6, images=3)
    ones = [i for i in found.tolist() if labels[i] == 1]
    assert sorted(ones[:9]) == list(range(9, 18))


def test_a_small_class_gives_examples_twice():
    labels = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    rows = drawn(labels, batch=8, images=4).tolist()
    assert sorted(i for i in rows if i < 2) == [0, 0, 1, 1]


def test_it_depends_on_the_generator_alone():
    labels = np.repeat(np.arange(6), 10)
    assert torch.equal(drawn(labels, 12, 4), drawn(labels, 12, 4))
    assert not torch.equal(drawn(labels, 12, 4), drawn(labels, 12, 4, seed=1))


@pytest.mark.parametrize(
    ("labels", "batch", "match"),
    [
        (None, 8, "no class labels"),
        (np.zeros((8, 2)), 8, "no class labels"),
        (np.array([0, 0, 0, 0, 1]), 4, "class 1 with one example"),
        (np.repeat([0, 1], 8), 7, "multiple of images=4"),
        (np.repeat([0, 1], 8), 12, "up to 8"),
    ],
)
def test_what_it_refuses(labels, batch, match):
    with pytest.raises(BadInput, match=match):
        PerClass(4)(labels, 16, batch, torch.Generator())


def test_one_image_of_a_class_is_no_pair():
    with pytest.raises(BadInput, match="at least 2"):
        PerClass(1)


def test_an_epoch_follows_the_sampler_and_another_epoch_differs():
    y = np.repeat(np.arange(4), 6)
    data = from_arrays(np.random.default_rng(0).random((24, 1, 2, 2), dtype=np.float32), y, name="points")
    expected = order(data, 8, 0, 3, PerClass(4))
    ids = torch.cat([b.ids for b in micro_batches(data, 0, 3, 8, 1, 0, sampler=PerClass(4))])
    assert torch.equal(ids, expected)
    assert not torch.equal(expected, order(data, 8, 1, 3, PerClass(4)))
    halves = [b.ids for r in range(2) for b in micro_batches(data, 0, 3, 8, 1, 0, r, 2, PerClass(4))]
    assert sorted(torch.cat(halves).tolist()) == sorted(expected.tolist())
