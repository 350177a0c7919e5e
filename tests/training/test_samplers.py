"""Which examples make a batch."""

import numpy as np
import pytest
import torch

from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.training.feed import micro_batches, order
from withstand.training.samplers import LabelledAndNot, MPerClass


def drawn(labels, batch, images, seed=0):
    return MPerClass(images)(labels, len(labels), batch, torch.Generator().manual_seed(seed))


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
        MPerClass(4)(labels, 16, batch, torch.Generator())


def test_one_image_of_a_class_is_no_pair():
    with pytest.raises(BadInput, match="at least 2"):
        MPerClass(1)


def test_an_epoch_follows_the_sampler_and_another_epoch_differs():
    y = np.repeat(np.arange(4), 6)
    data = from_arrays(np.random.default_rng(0).random((24, 1, 2, 2), dtype=np.float32), y, name="points")
    expected = order(data, 8, 0, 3, MPerClass(4))
    ids = torch.cat([b.ids for b in micro_batches(data, 0, 3, 8, 1, 0, sampler=MPerClass(4))])
    assert torch.equal(ids, expected)
    assert not torch.equal(expected, order(data, 8, 1, 3, MPerClass(4)))
    halves = [b.ids for r in range(2) for b in micro_batches(data, 0, 3, 8, 1, 0, r, 2, MPerClass(4))]
    assert sorted(torch.cat(halves).tolist()) == sorted(expected.tolist())


FEW = np.concatenate([np.arange(6) % 3, np.full(50, -1)])


def mixed(batch=16, mu=3, labels=FEW, seed=0):
    return LabelledAndNot(mu)(labels, len(labels), batch, torch.Generator().manual_seed(seed)).view(-1, batch)


def test_every_batch_has_its_labelled_examples_first_and_mu_times_as_many_others():
    found = mixed()
    assert found.shape == (4, 16)
    assert (FEW[found[:, :4]] >= 0).all()
    assert (FEW[found[:, 4:]] == -1).all()


def test_an_epoch_goes_once_through_the_unlabelled_and_evenly_through_the_labelled():
    found = mixed()
    assert found[:, 4:].unique().numel() == 48
    counts = found[:, :4].flatten().bincount(minlength=6)
    assert counts.sum() == 16
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(found, mixed(seed=1))
    assert torch.equal(found, mixed())


def test_labelled_examples_come_twice_in_a_batch_where_there_are_too_few():
    found = mixed(batch=32, mu=3)
    assert found.shape == (2, 32)
    assert found[0, :8].unique().numel() == 6


def test_unlabelled_examples_too_few_for_a_batch_come_again():
    found = mixed(labels=np.array([0, 1, -1, -1, -1]), batch=16)
    assert found.shape == (1, 16)
    assert set(found[0, 4:].tolist()) == {2, 3, 4}


def test_every_process_gets_its_share_of_both():
    class Few:
        labels = FEW

        def __len__(self):
            return 56

        def batch(self, positions):
            return torch.tensor(FEW)[positions]

    for rank in range(2):
        for part in micro_batches(Few(), 0, 0, 16, 2, 0, rank, 2, LabelledAndNot(3)):
            assert (part >= 0).sum() == 1
            assert (part < 0).sum() == 3


@pytest.mark.parametrize(
    ("labels", "batch", "match"),
    [
        (np.zeros(56, int), 8, "56 labelled of 56"),
        (np.full(56, -1), 8, "0 labelled of 56"),
        (None, 8, "labelled and unlabelled"),
        (FEW, 15, "multiple of 1 \\+ mu = 4. Take 12"),
    ],
)
def test_what_cannot_be_mixed_is_refused(labels, batch, match):
    with pytest.raises(BadInput, match=match):
        LabelledAndNot(3)(labels, 56, batch, torch.Generator())


def test_no_unlabelled_examples_are_too_few():
    with pytest.raises(BadInput, match="mu"):
        LabelledAndNot(0)
