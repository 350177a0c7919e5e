"""Seeded draws: distributions, and that a draw belongs to its example alone."""

import pytest
import torch
from scipy import stats

from withstand.random import Rows, derive


def test_a_draw_depends_on_seed_id_stream_and_step_alone():
    rows = Rows.count(7, 10)
    whole = rows.uniform((3, 2), "a", 4)
    part = Rows(7, torch.tensor([8, 1])).uniform((3, 2), "a", 4)
    assert torch.equal(part, whole[[8, 1]])
    assert torch.equal(rows.take(torch.tensor([5])).uniform((3, 2), "a", 4), whole[[5]])
    for other in (
        Rows.count(8, 10).uniform((3, 2), "a", 4),
        rows.uniform((3, 2), "b", 4),
        rows.uniform((3, 2), "a", 5),
    ):
        assert not (other == whole).any()


@pytest.mark.parametrize("ids", [torch.arange(200), torch.arange(200) * 2**40])
def test_draws_follow_their_distributions(ids):
    rows = Rows(3, ids)
    checks = [
        (rows.uniform((500,), "u", dtype=torch.float64), "uniform"),
        (rows.uniform((500,), "u32"), "uniform"),
        (rows.normal((500,), "n"), "norm"),
        (rows.exponential((500,), "e"), "expon"),
    ]
    for draws, law in checks:
        assert stats.kstest(draws.flatten().numpy(), law).pvalue > 1e-3
    signs = rows.signs((500,), "s")
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.015
    whole = rows.integers((500,), 2, 7, "i")
    assert stats.chisquare(torch.bincount(whole.flatten())[2:].numpy()).pvalue > 1e-3


def test_neighbouring_examples_and_elements_are_uncorrelated():
    u = Rows.count(0, 400).uniform((400,), "u", dtype=torch.float64)
    for a, b in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.01


def test_ranges_are_half_open():
    u = Rows.count(0, 1000).uniform((1000,), "u", low=-2, high=3)
    assert u.min() >= -2
    assert u.max() < 3 + 1e-6


def test_derived_seeds_differ_by_name():
    seeds = {derive(0), derive(1), derive(0, "a"), derive(0, "b"), derive(0, "a", "b"), derive(0, "ab")}
    assert len(seeds) == 6
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive(0, "a") == derive(0, "a")
