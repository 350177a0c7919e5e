"""Objectives against their formulas, worked by hand."""

import math

import pytest
import torch

from withstand.errors import BadInput
from withstand.objectives import (
    DLR,
    KL,
    CrossEntropy,
    Margin,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
    as_objective,
)
from withstand.protocols import Seen
from withstand.random import Rows

LOGITS = torch.tensor([[3.0, 1.0, 0.0, -2.0]])
Y = torch.tensor([0])


def value(objective, logits=LOGITS, y=Y, clean=None):
    begin = getattr(objective, "begin", None)
    clean = logits if clean is None else clean
    state = begin(Seen(clean, clean), y, Rows.count(0, len(clean))) if begin else {}
    return objective(Seen(logits, logits), y, state)


def test_dlr_by_hand():
    assert value(DLR()).item() == pytest.approx(-2 / 3)
    assert value(TargetedDLR(target=1)).item() == pytest.approx(-2 / (3 - (0 - 2) / 2))


def test_margin_and_its_cap():
    assert value(Margin()).item() == -2
    assert value(Margin(), y=torch.tensor([2])).item() == 3
    assert value(Margin(kappa=0.5), y=torch.tensor([2])).item() == 0.5
    assert value(TargetedMargin(target=1)).item() == -2
    assert value(TargetedMargin(target=0, kappa=1.0)).item() == 1


def test_cross_entropy_is_minus_log_probability():
    p = [math.exp(z) for z in (3, 1, 0, -2)]
    assert value(CrossEntropy()).item() == pytest.approx(-math.log(p[0] / sum(p)), rel=1e-5)
    assert value(TargetedCrossEntropy(target=2)).item() == pytest.approx(math.log(p[2] / sum(p)), rel=1e-5)


def test_kl_is_zero_at_the_clean_point_and_matches_its_sum():
    other = torch.tensor([[0.0, 1.0, 2.0, 0.5]])
    assert value(KL()).item() == pytest.approx(0, abs=1e-7)
    p, q = LOGITS.softmax(1), other.softmax(1)
    assert value(KL(), logits=other, clean=LOGITS).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR(target=2)])
def test_dlr_ignores_shift_and_scale_where_cross_entropy_ignores_only_shift(objective):
    moved = 7 * LOGITS + 3
    assert value(objective, logits=moved).item() == pytest.approx(value(objective).item(), rel=1e-5)
    assert value(CrossEntropy(), logits=LOGITS + 3).item() == pytest.approx(value(CrossEntropy()).item(), rel=1e-4)
    assert value(CrossEntropy(), logits=moved).item() != pytest.approx(value(CrossEntropy()).item(), rel=1e-2)


def test_targets_by_rank_leave_the_label_out():
    logits = torch.tensor([[3.0, 1.0, 0.0, -2.0], [3.0, 1.0, 0.0, -2.0]])
    y = torch.tensor([0, 2])
    state = TargetedDLR(rank=2).begin(Seen(logits, logits), y, Rows.count(0, 2))
    assert state["target"].tolist() == [1, 0]
    state = TargetedDLR(rank=4).begin(Seen(logits, logits), y, Rows.count(0, 2))
    assert state["target"].tolist() == [3, 3]


def test_too_few_classes_and_bad_targets_are_refused():
    two = torch.zeros(1, 2)
    with pytest.raises(BadInput, match="at least 3"):
        value(DLR(), logits=two)
    with pytest.raises(BadInput, match="at least 4"):
        value(TargetedDLR(target=1), logits=LOGITS[:, :3])
    with pytest.raises(BadInput, match="rank"):
        value(TargetedDLR(rank=5))
    with pytest.raises(BadInput, match="below 4"):
        value(TargetedDLR(target=4))
    with pytest.raises(BadInput, match="target"):
        TargetedMargin(target=-1)


def test_a_plain_function_is_an_objective():
    assert value(as_objective(lambda logits, y: logits.sum(1))).item() == 2
    with pytest.raises(BadInput, match="objective"):
        as_objective(3)
