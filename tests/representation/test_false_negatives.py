"""Which negatives are taken for false."""

import pytest
import torch

from withstand.errors import BadInput
from withstand.random import Rows
from withstand.representation.contrastive import other_views, two_views
from withstand.representation.false_negatives import FalseNegativeSchedule, scores, select_false_negatives


def drawn(m: int = 12, seed: int = 0) -> torch.Tensor:
    return Rows.count(seed, m).uniform((m,), "scores", low=-1.0)


def by_hand(s, q, threshold, pairs):
    m = len(s)
    found = torch.zeros(m, m, dtype=torch.bool)
    for i in range(m):
        candidates = [a for a in range(m) if a not in (i, int(pairs[i]))]
        candidates.sort(key=lambda a: -float(s[i, a]))
        for a in candidates[: int(q * len(candidates))]:
            found[i, a] = threshold is None or bool(s[i, a] > threshold)
    return found


@pytest.mark.parametrize("q", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("threshold", [None, 0.2, 2.0])
def test_the_highest_scores_above_the_threshold_are_chosen(q, threshold):
    s, pairs = drawn(), two_views(6)
    found = select_false_negatives(s, q, threshold, exclude=pairs)
    assert torch.equal(found, by_hand(s, q, threshold, pairs))


def test_neither_anchor_nor_positive_is_ever_chosen():
    pairs = two_views(6)
    everything = select_false_negatives(torch.ones(12, 12), 0.999, exclude=pairs)
    assert not everything.diagonal().any()
    assert not everything[torch.arange(12), pairs].any()
    assert (everything.sum(1) == 9).all()  # floor(0.999 * 10)
    assert (select_false_negatives(torch.ones(12, 12), 0.5).sum(1) == 5).all()  # floor(0.5 * 11)


def test_none_of_several_views_is_chosen_and_any_may_find():
    others = other_views(3, 4)
    everything = select_false_negatives(torch.ones(12, 12), 0.999, exclude=others)
    own = torch.arange(3).repeat(4)
    assert not (everything & (own[:, None] == own)).any()
    assert (everything.sum(1) == 7).all()  # floor(0.999 * 8)
    z = drawn(12)
    s = scores(z)
    expected = torch.stack([s[[i, *others[i].tolist()]].amax(0) for i in range(12)])
    assert torch.equal(scores(z, others), expected)


def test_scores_are_cosines_that_carry_no_gradient():
    z = drawn(6).requires_grad_(True)
    s = scores(z)
    assert not s.requires_grad
    assert torch.allclose(s, torch.cosine_similarity(z[:, None], z[None], dim=2).detach(), atol=1e-6)
    pairs = two_views(3)
    expected = torch.stack([torch.maximum(s[i], s[pairs[i]]) for i in range(6)])
    assert torch.equal(scores(z, pairs), expected)


def test_the_schedule_grows_from_nothing_to_its_most():
    q = FalseNegativeSchedule(0.1, 0.2, 0.6)
    ts = [i / 100 for i in range(101)]
    values = [q(t) for t in ts]
    assert all(v == 0 for t, v in zip(ts, values) if t <= 0.2)
    assert all(v == pytest.approx(0.1) for t, v in zip(ts, values) if t >= 0.6)
    assert values == sorted(values)
    assert q(0.4) == pytest.approx(0.05)
    assert FalseNegativeSchedule(0.1, 0, 0)(0.0) == 0.1
    jump = FalseNegativeSchedule(0.1, 0.5, 0.5)
    assert (jump(0.49), jump(0.5)) == (0.0, 0.1)


@pytest.mark.parametrize(
    "settings", [(1.0, 0.2, 0.6), (-0.1, 0.2, 0.6), (0.1, 0.7, 0.6), (0.1, -0.1, 0.6), (0.1, 0, 1.1)]
)
def test_a_schedule_out_of_range_is_refused(settings):
    with pytest.raises(BadInput):
        FalseNegativeSchedule(*settings)


def test_bad_scores_are_refused():
    with pytest.raises(BadInput, match="share in"):
        select_false_negatives(drawn(), 1.0)
    with pytest.raises(BadInput, match=r"\[M, M\]"):
        select_false_negatives(drawn()[:5], 0.1)
    with pytest.raises(BadInput, match="NaN"):
        select_false_negatives(drawn() * torch.nan, 0.5)
