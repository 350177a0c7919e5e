"""Data sets that are made of another one."""

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.data.derived import Derived, Part


@pytest.fixture
def digits():
    return ws.load_data("digits", limit=9)


def test_what_is_not_said_is_as_in_the_source(digits):
    same = Derived(digits)
    assert (same.name, same.space, same.classes, len(same)) == (digits.name, digits.space, digits.classes, 9)
    assert torch.equal(same.batch([2, 0]).x, digits.batch([2, 0]).x)


def test_a_part_has_its_examples_in_the_order_given(digits):
    part = Part(digits, [8, 0, 3])
    assert len(part) == 3
    assert part.batch([0, 2]).ids.tolist() == [8, 3]
    assert part.labels.tolist() == digits.batch([8, 0, 3]).y.tolist()
    assert Part(part, range(0, 3, 2)).batch([1]).ids.tolist() == [3]


def test_a_part_tells_no_labels_that_the_source_does_not():
    class Silent:
        pass

    assert not hasattr(Part(Silent(), [0]), "labels")
    Silent.labels = None
    assert Part(Silent(), [0]).labels is None


def test_fingerprints_are_of_the_source_and_of_every_field(digits):
    seen = {
        digits.fingerprint(),
        *(Part(digits, at).fingerprint() for at in ([0, 1], [1, 0], [0, 2], np.array([0, 1, 2]), range(0, 9, 2))),
        Part(ws.load_data("digits", limit=8), [0, 1]).fingerprint(),
    }
    assert len(seen) == 7
    assert Part(digits, [0, 1]).fingerprint() == Part(digits, [0, 1]).fingerprint()
