"""The two conventions of label smoothing."""

import pytest
import torch
import torch.nn.functional as F

from withstand.random import Rows
from withstand.training.recipe import Step

K = 5


def step(s):
    return Step(step=0, steps=1, epoch=0, epochs=1, seed=0, rows=Rows.count(0, 6), smoothing=s)


@pytest.fixture
def batch():
    rows = Rows.count(1, 6)
    return 3 * rows.normal((K,), "z"), rows.integers((), 0, K, "y")


def naive(z, y, label, other):
    """Cross-entropy with so much on the label and on each other class."""
    total = 0.0
    for i in range(len(y)):
        log_p = z[i] - z[i].exp().sum().log()
        total -= sum((label if k == y[i] else other) * float(log_p[k]) for k in range(K))
    return torch.tensor(total / len(y))


def test_no_smoothing_is_the_cross_entropy(batch):
    assert torch.equal(step(0.0).cross_entropy(*batch), F.cross_entropy(*batch))


@pytest.mark.parametrize("s", [0.1, 0.3])
def test_the_share_is_spread_over_all_classes_the_label_among_them(batch, s):
    found = step(s).cross_entropy(*batch)
    torch.testing.assert_close(found, naive(*batch, 1 - s + s / K, s / K))
    assert (found - naive(*batch, 1 - s, s / (K - 1))).abs() > 1e-2


@pytest.mark.parametrize("s", [0.1, 0.3])
def test_the_other_convention_is_reached_by_k_over_k_minus_1_as_much(batch, s):
    found = step(s * K / (K - 1)).cross_entropy(*batch)
    torch.testing.assert_close(found, naive(*batch, 1 - s, s / (K - 1)))


def test_soft_labels_are_smoothed_likewise(batch):
    z, y = batch
    hard, soft = step(0.3).cross_entropy(z, y), step(0.3).cross_entropy(z, F.one_hot(y, K).float())
    torch.testing.assert_close(hard, soft)
