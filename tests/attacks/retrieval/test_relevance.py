import math

import pytest
import torch

import withstand as ws
from withstand.attacks.retrieval.relevance import Relevance, gains, overlap, relevance_loss
from withstand.errors import BadInput
from withstand.protocols import Seen

CLEAN = [0, 1, 2, 3, 4]
LISTS = {
    "clean": [0, 1, 2, 3, 4],
    "reversed": [4, 3, 2, 1, 0],
    "first two swapped": [1, 0, 2, 3, 4],
    "shifted by one": [9, 0, 1, 2, 3],
    "item 0 alone, last": [9, 8, 7, 6, 0],
    "disjoint": [9, 8, 7, 6, 5],
}
EXPONENTIAL = (0.383195, 0.061865, 0.304401, 0.182825, 0.009541, 0.0)
LINEAR = (0.244444, 0.155556, 0.24, 0.177778, 0.022222, 0.0)
COUNT = (1.0, 1.0, 1.0, 0.8, 0.2, 0.0)


@pytest.mark.parametrize(("gain", "values"), [("exponential", EXPONENTIAL), ("linear", LINEAR), ("count", COUNT)])
def test_values_of_the_sheet(gain, values):
    for now, value in zip(LISTS.values(), values):
        assert relevance_loss(CLEAN, now, gain) == pytest.approx(value, abs=5e-7)
    found = overlap(torch.tensor([CLEAN] * len(LISTS)), torch.tensor(list(LISTS.values())), gain)
    assert torch.allclose(found, torch.tensor(values, dtype=torch.float64), atol=5e-7)


def naive(clean, now, gain):
    n = len(clean)
    rel = [n - i for i in range(n)]
    g = [2**r - 1 for r in rel] if gain == "exponential" else rel
    w = [v / sum(g) for v in g]
    return sum(w[i] * w[now.index(item)] for i, item in enumerate(clean) if item in now)


@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_lists_of_any_length_agree_with_a_loop(gain):
    draw = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 16):
        lists = torch.stack([torch.randperm(2 * n, generator=draw)[:n] for _ in range(20)])
        again = torch.stack([torch.randperm(2 * n, generator=draw)[:n] for _ in range(20)])
        found = overlap(lists, again, gain).tolist()
        wanted = [naive(a, b, gain) for a, b in zip(lists.tolist(), again.tolist())]
        assert found == pytest.approx(wanted, abs=1e-12)
        assert [relevance_loss(a, b, gain) for a, b in zip(lists.tolist(), again.tolist())] == pytest.approx(wanted)


@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_the_same_list_alone_has_the_largest_value(gain):
    w = gains(6, gain)
    most = float((w * w).sum())
    clean = torch.arange(6)[None]
    assert float(overlap(clean, clean, gain)) == pytest.approx(most)
    draw = torch.Generator().manual_seed(1)
    for _ in range(200):
        other = torch.randperm(9, generator=draw)[:6][None]
        value = float(overlap(clean, other, gain))
        assert 0 <= value <= most + 1e-12
        assert (value > most - 1e-12) == bool((other == clean).all())
        assert (value == 0) == (not set(other[0].tolist()) & set(range(6)))


def test_names_and_absent_items_play_no_part():
    names = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e", 9: "x", 8: "y"}
    now = [9, 0, 3, 8, 1]
    assert relevance_loss(CLEAN, now) == relevance_loss([names[i] for i in CLEAN], [names[i] for i in now])
    assert relevance_loss(CLEAN, now) == relevance_loss(CLEAN, [8, 0, 3, 9, 1])
    assert relevance_loss([0, 1], [5, 6, 0]) == 0.0  # a rank beyond the clean list has no weight


def test_gains_turn_linear_beyond_16_ranks():
    assert torch.equal(gains(16), gains(16, "exponential"))
    assert torch.equal(gains(17), gains(17, "linear"))
    assert float(gains(16)[0]) == pytest.approx((2**16 - 1) / sum(2**r - 1 for r in range(1, 17)))
    assert float(gains(200)[0]) == pytest.approx(200 / (200 * 201 / 2))
    assert math.isclose(float(gains(1000).sum()), 1.0)


def test_the_objective_is_minus_the_value_and_its_goal_a_disjoint_list():
    objective = Relevance()
    clean, now = (
        torch.tensor([CLEAN] * 3, dtype=torch.float64),
        torch.tensor([LISTS["reversed"], LISTS["item 0 alone, last"], LISTS["disjoint"]], dtype=torch.float64),
    )
    state = objective.begin(Seen(clean, clean), torch.zeros(3), None)
    seen = Seen(now, now)
    assert torch.allclose(objective(seen, torch.zeros(3), state), -overlap(clean, now))
    assert objective.criterion(seen, torch.zeros(3), state).tolist() == [False, False, True]
    assert ws.parse("relevance(gain='linear')", "objective") == Relevance("linear")


@pytest.mark.parametrize(("clean", "now"), [([], [1]), ([1], []), ([1, 1], [1, 2]), ([1, 2], [3, 3])])
def test_lists_that_are_none_are_refused(clean, now):
    with pytest.raises(BadInput, match=r"(clean|now): got .*; allowed: (at least one|each) id"):
        relevance_loss(clean, now)
