"""Noise against the distributions it is named after."""

import numpy as np
import pytest
import torch
from scipy import stats

from withstand.corruptions.kinds import normal, uniform, words
from withstand.corruptions.noise import _alias_tables, gaussian_noise, impulse_noise, shot_noise, speckle_noise
from withstand.random import Rows

GREY = 100


def flat(n: int = 2, level: int = GREY) -> torch.Tensor:
    return torch.full((n, 3, 101, 101), float(level))


def test_words_of_odd_count_are_independent_of_the_row_order():
    rows = Rows(3, torch.tensor([5, 9, 2]))
    drawn = words(rows, (3, 5), "s")
    assert drawn.dtype == torch.int32
    assert drawn.shape == (3, 3, 5)
    assert torch.equal(words(rows.take(torch.tensor([2])), (3, 5), "s"), drawn[2:])


def test_uniform_and_normal_have_their_distributions():
    rows = Rows.count(1, 3)
    u, z = uniform(rows, (20_001,), "u").double().numpy(), normal(rows, (20_002,), "z").double().numpy()
    for row in range(3):
        assert stats.kstest(u[row], "uniform").pvalue > 1e-3
        assert stats.kstest(z[row], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z[0, :10_001], z[0, 10_001:])[0, 1]) < 0.05  # the two halves of Box-Muller
    assert abs(np.corrcoef(z[0], z[1])[0, 1]) < 0.05
    assert np.array_equal(normal(rows, (5,), "z").numpy(), normal(rows, (6,), "z").numpy()[:, :5])


@pytest.mark.parametrize("c", [3, 25, 500])
def test_alias_tables_hold_the_poisson_distribution_with_its_tail_at_the_end(c):
    keep, jump = (t.view(256, c + 1).double().numpy() for t in _alias_tables(c))
    for level in (0, 1, 128, 255):
        chance = keep[level] / (c + 1)
        np.add.at(chance, np.arange(c + 1) + jump[level].astype(int), (1 - keep[level]) / (c + 1))
        expected = stats.poisson.pmf(np.arange(c + 1), level * c / 255)
        expected[c] = stats.poisson.sf(c - 1, level * c / 255)
        np.testing.assert_allclose(chance, expected, atol=1e-7)


def test_shot_noise_draws_poisson_counts(job):
    c = 25
    counts = shot_noise(flat(), c, job(2)) * c / 255
    assert torch.allclose(counts, counts.round(), atol=1e-4)
    rate = GREY * c / 255
    assert counts.mean() == pytest.approx(rate, rel=0.01)
    assert counts.var() == pytest.approx(rate, rel=0.03)
    observed = np.bincount(counts.round().int().flatten().numpy(), minlength=c + 1)[4:17]
    expected = stats.poisson.pmf(np.arange(4, 17), rate) * counts.numel()
    assert ((observed - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, 13)


def test_gaussian_noise_has_its_deviation_in_every_channel(job):
    noise = gaussian_noise(flat(), 0.1, job(2)) - GREY
    assert noise.std((0, 2, 3)) == pytest.approx(np.full(3, 25.5), rel=0.02)
    assert stats.kstest(noise.flatten()[:20_000].double().numpy() / 25.5, "norm").pvalue > 1e-3
    channels = noise.transpose(0, 1).flatten(1)
    assert torch.corrcoef(channels).fill_diagonal_(0).abs().max() < 0.03


def test_speckle_noise_scales_with_the_pixel(job):
    assert (speckle_noise(flat(), 0.2, job(2)) - GREY).std() == pytest.approx(0.2 * GREY, rel=0.02)
    assert not speckle_noise(flat(level=0), 0.2, job(2)).any()


def test_impulse_noise_sets_half_of_its_share_black_and_half_white(job):
    out = impulse_noise(flat(), 0.2, job(2))
    assert set(out.unique().tolist()) == {0.0, float(GREY), 255.0}
    assert (out == 0).float().mean() == pytest.approx(0.1, abs=0.005)
    assert (out == 255).float().mean() == pytest.approx(0.1, abs=0.005)
    assert ((out != GREY).sum(1) == 1).any()  # channels of one pixel are hit one by one
