import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from withstand import metrics
from withstand.errors import BadInput


def test_wilson_solves_its_defining_equation():
    low, high = metrics.wilson(7, 20)
    z = stats.norm.ppf(0.975)
    for p in (low, high):
        assert abs(7 / 20 - p) == pytest.approx(z * math.sqrt(p * (1 - p) / 20))
    assert metrics.wilson(0, 5)[0] == 0
    assert metrics.wilson(5, 5)[1] == 1


def test_paired_difference_is_that_of_the_discordant_pairs():
    before, after = np.array([1, 1, 0, 0, 0, 1], bool), np.array([1, 0, 1, 1, 0, 1], bool)
    difference, low, high, p = metrics.paired_difference(before, after)
    assert difference == pytest.approx(1 / 6)
    assert low < difference < high
    assert p == pytest.approx(stats.binomtest(2, 3).pvalue)


# Separation


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_separation_equals_scikit_learn_with_ties_and_weights(seed, n, levels):
    g = np.random.default_rng(seed)
    scores = g.integers(0, levels, n).astype(float)
    positive = g.integers(0, 2, n).astype(bool)
    positive[:2] = True, False
    for weights in (None, g.integers(1, 5, n)):
        assert metrics.auroc(scores, positive, weights) == pytest.approx(
            sk.roc_auc_score(positive, scores, sample_weight=weights)
        )
        assert metrics.aupr(scores, positive, weights) == pytest.approx(
            sk.average_precision_score(positive, scores, sample_weight=weights)
        )
        false, true, _ = sk.roc_curve(positive, scores, sample_weight=weights, drop_intermediate=False)
        for tpr in (0.5, 0.95, 1.0):
            assert metrics.fpr_at_tpr(scores, positive, tpr, weights) == pytest.approx(false[true >= tpr - 1e-12].min())
    ours = metrics.roc(scores, positive)
    theirs = sk.roc_curve(positive, scores, drop_intermediate=False)
    assert np.allclose(ours[0], theirs[0])
    assert np.allclose(ours[1], theirs[1])


def test_auroc_is_the_share_of_pairs_in_order_with_ties_half():
    scores, positive = np.array([3.0, 1.0, 2.0, 2.0, 0.0]), np.array([1, 1, 0, 1, 0], bool)
    pairs = [np.sign(a - b) / 2 + 0.5 for a in scores[positive] for b in scores[~positive]]
    assert metrics.auroc(scores, positive) == pytest.approx(np.mean(pairs))


def test_fpr_at_tpr_keeps_the_stated_share_of_positives_and_not_one_more():
    scores = np.r_[np.arange(100), [4.5, 5.5, 200]]
    positive = np.r_[np.ones(100), np.zeros(3)].astype(bool)
    # 95 of 100 positives score 5 or more, and so do two of the three negatives
    assert metrics.fpr_at_tpr(scores, positive, 0.95) == pytest.approx(2 / 3)


def test_separation_needs_both_kinds():
    for function in (metrics.auroc, metrics.aupr, metrics.fpr_at_tpr):
        with pytest.raises(BadInput, match="one kind"):
            function(np.arange(3.0), np.ones(3, bool))
    with pytest.raises(BadInput, match="NaN"):
        metrics.auroc(np.array([np.nan, 1.0]), np.array([True, False]))
    with pytest.raises(BadInput, match="shape"):
        metrics.auroc(np.zeros(3), np.array([True, False]))
    with pytest.raises(BadInput, match="tpr"):
        metrics.fpr_at_tpr(np.zeros(2), np.array([True, False]), 0.0)


# Calibration


def naive_calibration(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            gap = np.mean([right[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.sampled_from([1, 4, 15]))
@settings(max_examples=40, deadline=None)
def test_calibration_error_is_the_weighted_gap_over_bins(seed, n, bins):
    g = np.random.default_rng(seed)
    confidence, right = g.random(n), g.integers(0, 2, n)
    confidence[0] = g.choice([0.0, 0.25, 0.5, 1.0])
    assert metrics.calibration_error(confidence, right, bins) == pytest.approx(
        naive_calibration(confidence, right, bins)
    )


# Quantiles


@pytest.mark.parametrize(("n", "q"), [(30, 0.5), (101, 0.5), (60, 0.1)])
def test_quantile_intervals_cover_as_often_as_they_say(n, q):
    g = np.random.default_rng(0)
    truth = stats.expon.ppf(q)
    found = (metrics.quantile_interval(g.exponential(size=n), q) for _ in range(2000))
    hits = [low <= truth <= high for _, low, high in found]
    exact = stats.binom.cdf(stats.binom.ppf(0.975, n, q), n, q) - stats.binom.cdf(
        stats.binom.ppf(0.025, n, q) - 1, n, q
    )
    assert exact >= 0.95
    assert np.mean(hits) == pytest.approx(exact, abs=0.015)


def test_quantiles_are_order_statistics_and_bear_infinite_values():
    assert metrics.quantile_interval(np.array([3.0, 1.0, 2.0]))[0] == 2
    assert metrics.quantile_interval(np.array([4.0, 3.0, 1.0, 2.0]))[0] == 2
    assert metrics.quantile_interval(np.array([1.0, 2.0])) == (1.0, -np.inf, np.inf)
    value, low, high = metrics.quantile_interval(np.r_[np.arange(40.0), np.full(30, np.inf)])
    assert (value, np.isfinite(low), high) == (34.0, True, np.inf)
    with pytest.raises(BadInput):
        metrics.quantile_interval(np.array([np.nan]))
    with pytest.raises(BadInput):
        metrics.quantile_interval(np.zeros(0))


# Clusters


def test_cluster_bootstrap_of_the_mean_has_the_spread_of_the_cluster_means():
    g = np.random.default_rng(0)
    cluster = g.random(300)
    values = (g.random((300, 40)) < cluster[:, None]).astype(float)  # cells of a row are dependent
    low, high = metrics.cluster_bootstrap(values, lambda m: m.mean(1), draws=2000)
    spread = values.mean(1).std() / math.sqrt(300)
    assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.1)
    assert (high - low) / (2 * 1.96) > 1.5 * values.std() / math.sqrt(values.size)  # what independence would give


def test_cluster_bootstrap_repeats_and_is_exact_without_spread():
    values = np.random.default_rng(1).random((5, 3))
    assert metrics.cluster_bootstrap(values, lambda m: m.max(1)) == metrics.cluster_bootstrap(
        values, lambda m: m.max(1)
    )
    assert metrics.cluster_bootstrap(np.ones((4, 2)), lambda m: m.sum(1)) == (2.0, 2.0)
    with pytest.raises(BadInput):
        metrics.cluster_bootstrap(np.zeros((0, 2)), lambda m: m.sum(1))


def test_the_difference_of_independent_proportions_is_newcombes():
    # Newcombe 1998, table II, method 10: contrasts (a) 56/70 and 48/80, (b) 9/10 and 3/10
    d, low, high = metrics.independent_difference(48, 80, 56, 70)
    assert (round(d, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)
    d, low, high = metrics.independent_difference(3, 10, 9, 10)
    assert (round(d, 4), round(low, 4), round(high, 4)) == (0.6, 0.1705, 0.809)
