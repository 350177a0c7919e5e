"""Centre codes equal the best of all codes, and the sheet's examples."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from withstand.attacks.hashing.centres import as_codes, as_labels, centre_codes, sign
from withstand.errors import BadInput

CODES = torch.tensor([(1, 1, -1, 1), (1, -1, -1, 1), (-1, 1, 1, -1), (-1, -1, 1, 1), (1, 1, 1, -1)]).float()
LABELS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])


def costs(y: Tensor, codes: Tensor, labels: Tensor, weights: str, tried: Tensor) -> Tensor:
    """The objective of each code that is tried, pair by pair."""
    total = torch.zeros(len(tried), dtype=torch.float64)
    far = (codes.shape[1] - tried.double() @ codes.double().T) / 2
    for i, near in enumerate(labels):
        shared, either = int((y * near).sum()), int(((y + near) > 0).sum())
        if not shared:
            continue
        w = shared / either if weights == "jaccard" else 1.0
        for j, other in enumerate(labels):
            if not int((y * other).sum()):
                total += w * far[:, i] - far[:, j]
    return total


@pytest.mark.parametrize(
    ("y", "weights", "expected"),
    [
        ([1, 0, 0], "published", [1, -1, -1, 1]),
        ([1, 0, 0], "jaccard", [1, -1, -1, 1]),
        ([1, 1, 0], "published", [1, 1, -1, -1]),
        ([1, 1, 0], "jaccard", [1, 1, -1, -1]),
        ([0, 1, 0], "published", [1, 1, 1, -1]),
        ([0, 1, 0], "jaccard", [0, 1, 1, -1]),
    ],
)
def test_worked_examples(y: list[int], weights: str, expected: list[int]) -> None:
    assert centre_codes(torch.tensor([y]), CODES, LABELS, weights).tolist() == [expected]  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 14), st.sampled_from(["jaccard", "published"]))
def test_no_code_of_all_has_a_lower_cost(seed: int, bits: int, items: int, weights: str) -> None:
    g = torch.Generator().manual_seed(seed)
    codes = sign(torch.randn(items, bits, generator=g))
    labels = (torch.rand(items, 4, generator=g) < 0.4).float()
    y = (torch.rand(1, 4, generator=g) < 0.5).float()
    shared = (labels @ y[0]) > 0
    if not shared.any() or shared.all():
        return
    every = torch.tensor(list(product((-1.0, 1.0), repeat=bits)))
    cost = costs(y[0], codes, labels, weights, every)
    found = centre_codes(y, codes, labels, weights)  # type: ignore[arg-type]
    free = found[0] == 0
    for value in (-1.0, 1.0):  # ties cost the same either way
        filled = torch.where(free, value, found[0])[None]
        assert float(costs(y[0], codes, labels, weights, filled)[0]) == pytest.approx(float(cost.min()), abs=1e-9)


def test_one_label_each_gives_a_class_one_centre_whatever_the_weights() -> None:
    g = torch.Generator().manual_seed(0)
    codes, y = sign(torch.randn(40, 8, generator=g)), torch.randint(3, (40,), generator=g)
    found = centre_codes(y, codes, y)
    assert torch.equal(found, centre_codes(y, codes, y, "published"))
    for c in range(3):
        assert len(found[y == c].unique(dim=0)) == 1


def test_a_class_of_one_distinct_code_gets_that_code() -> None:
    own = torch.tensor([[1.0, -1.0, 1.0]])
    codes = torch.cat([own.expand(3, 3), -own, -own, own * torch.tensor([-1.0, -1.0, 1.0])])
    found = centre_codes(torch.tensor([0]), codes, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.equal(found, own)


def test_without_negatives_or_without_positives_there_is_a_centre() -> None:
    codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, -1.0]])
    assert centre_codes(torch.tensor([0]), codes, torch.tensor([0, 0, 0])).tolist() == [[1, -1]]
    assert centre_codes(torch.tensor([1]), codes, torch.tensor([0, 0, 0])).tolist() == [[-1, 1]]


@pytest.mark.parametrize(
    ("codes", "labels", "told"),
    [
        (torch.tensor([[0.5, 1.0]]), torch.tensor([0]), "-1 and 1"),
        (torch.zeros(0, 4), torch.tensor([0]), "one at least"),
        (torch.ones(2, 4), torch.tensor([0]), "one row of labels for each code"),
        (torch.ones(1, 4), torch.tensor([[0.5, 1.0]]), "zeros and ones"),
        (torch.ones(1, 4), torch.tensor([-1]), "class indices"),
    ],
)
def test_what_is_no_code_or_no_label_is_refused(codes: Tensor, labels: Tensor, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        centre_codes(torch.tensor([0]), codes, labels)


def test_other_weights_are_refused() -> None:
    with pytest.raises(BadInput, match="weights"):
        centre_codes(torch.tensor([0]), CODES, LABELS, "indicator")  # type: ignore[arg-type]


def test_labels_and_codes_are_read_in_either_form() -> None:
    assert as_labels(torch.tensor([2, 0]), classes=4).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert as_labels(torch.tensor([[1, 0]]), classes=3).tolist() == [[1, 0, 0]]
    assert as_codes([[1, -1]]).dtype == torch.float32
    assert sign(torch.tensor([0.0, -0.1, 0.1])).tolist() == [1, -1, 1]
