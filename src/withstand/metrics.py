"""Numbers with intervals: proportions, paired differences, quantiles, calibration, and how well a score separates.

Intervals have level 0.95 unless told otherwise, and each function names its method.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from withstand.errors import bad


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).

    Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if n < 1 or not 0 <= successes <= n:
        raise bad("successes", f"{successes} of {n}", "0 <= successes <= n with n >= 1")
    z = float(stats.norm.ppf(0.5 + level / 2))
    p, scale = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # at the ends the exact bounds are 0 and 1; rounding would leave a hair
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def paired_difference(before: np.ndarray, after: np.ndarray, level: float = 0.95) -> tuple[float, float, float, float]:
    """How much a proportion changes between two models on the same examples.

    before, after: bool [N]. Returns (difference, low, high, p): after - before with the interval of Agresti and Min for
    matched pairs (Wald after adding half a count to each cell), and the exact McNemar test's two-sided p-value.

    Reference: Agresti, Min, "Simple improved confidence intervals for comparing matched proportions", Stat. Med. 2005.
    """
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise bad("after", f"shape {after.shape}", f"the shape of before, {before.shape}, with at least one example")
    return paired_counts(int((after & ~before).sum()), int((before & ~after).sum()), len(before), level)


def paired_counts(gained: int, lost: int, n: int, level: float = 0.95) -> tuple[float, float, float, float]:
    """`paired_difference` from the numbers of examples that only the second or only the first got right, out of n."""
    z = float(stats.norm.ppf(0.5 + level / 2))
    b, c, m = gained + 0.5, lost + 0.5, n + 2
    centre = (b - c) / m
    half = z * math.sqrt(max(b + c - (b - c) ** 2 / m, 0.0)) / m
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return (gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half), p


def independent_difference(before: int, n: int, after: int, m: int, level: float = 0.95) -> tuple[float, float, float]:
    """(difference, low, high) of two proportions, after / m - before / n, of different examples (or of the same where it is
    not known which of them changed: then the interval is rather too wide).

    With d the difference and (l, u) Wilson's limits of each: d - sqrt((p2 - l2)^2 + (u1 - p1)^2) to
    d + sqrt((u2 - p2)^2 + (p1 - l1)^2).

    Reference: Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
    methods", Stat. Med. 1998, method 10.
    """
    (l1, u1), (l2, u2) = wilson(before, n, level), wilson(after, m, level)
    p1, p2 = before / n, after / m
    d = p2 - p1
    return d, d - math.hypot(p2 - l2, u1 - p1), d + math.hypot(u2 - p2, p1 - l1)


def bootstrap(
    values: np.ndarray, statistic=np.mean, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of values [N] (rows of [N, ...] are drawn together)."""
    generator = np.random.default_rng(seed)
    found = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def cluster_bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a function of column means, where rows are drawn whole.

    values: [N, M], one row for each cluster (an image with all its corrupted versions). statistic: takes means [D, M] of
    D draws and returns [D].

    Reference: Davison, Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    n = len(values)
    if values.ndim != 2 or not n:
        raise bad("values", f"shape {values.shape}", "[N, M] with N >= 1")
    generator = np.random.default_rng(seed)
    step = max(1, (1 << 20) // n)
    found = []
    for start in range(0, draws, step):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start))
        found.append(statistic(counts @ values / n))
    low, high = np.quantile(np.concatenate(found), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def quantile_interval(values: np.ndarray, q: float = 0.5, level: float = 0.95) -> tuple[float, float, float]:
    """A quantile with its distribution-free interval between two order statistics: (quantile, low, high).

    The quantile is the smallest x_(k) with k >= q n. The number of values at or below the true one is Binomial(n, q), so
    [x_(l), x_(u)] with l = F^-1(a/2), u = F^-1(1 - a/2) + 1 covers it with probability 1 - a or more. Where such a
    statistic does not exist the bound is infinite. Values may be infinite (a search that found nothing).

    Reference: Conover, "Practical Nonparametric Statistics", 1999, section 3.2.
    """
    n = len(values)
    if not n or not 0 < q < 1 or np.isnan(values).any():
        raise bad("values", f"{n} values, q = {q}", "at least one value, none NaN, and 0 < q < 1")
    ordered = np.concatenate([[-np.inf], np.sort(values), [np.inf]])
    low = int(stats.binom.ppf(0.5 - level / 2, n, q))
    high = int(stats.binom.ppf(0.5 + level / 2, n, q)) + 1
    return float(ordered[math.ceil(q * n - 1e-9)]), float(ordered[low]), float(ordered[high])


# Calibration ---------------------------------------------------------------------------------------------------------


def confidence_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of every confidence, 0..bins - 1; bins are ((b) / bins, (b + 1) / bins], zero counts to the first."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error, sum over bins of n_b / n * |accuracy_b - confidence_b|, bins of equal width.

    confidence: [N] in [0, 1]; right: bool or 0/1 [N].

    Reference: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599.
    """
    gap = np.bincount(confidence_bins(confidence, bins), weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


# Separation ----------------------------------------------------------------------------------------------------------


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The chance that a positive scores above a negative; ties count half. scores [N], positive bool [N]."""
    found, false = _counts(scores, positive, weights)
    return float(np.trapezoid(np.r_[0, found], np.r_[0, false]) / (found[-1] * false[-1]))


def aupr(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The area under precision against recall as average precision: sum of (R_i - R_{i-1}) P_i over thresholds."""
    found, false = _counts(scores, positive, weights)
    precision = found / np.maximum(found + false, 1e-300)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def fpr_at_tpr(scores: np.ndarray, positive: np.ndarray, tpr: float = 0.95, weights: np.ndarray | None = None) -> float:
    """The share of negatives that score at or above the highest threshold which at least `tpr` of positives reach."""
    if not 0 < tpr <= 1:
        raise bad("tpr", tpr, "a share in (0, 1]")
    found, false = _counts(scores, positive, weights)
    return float(false[np.argmax(found >= tpr * found[-1] * (1 - 1e-12))] / false[-1])


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false, true) positive rates at every threshold, from (0, 0) to (1, 1)."""
    found, false = _counts(scores, positive, None)
    return np.r_[0, false / false[-1]], np.r_[0, found / found[-1]]


def _counts(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The weight of positives and of negatives at or above each distinct score, from the highest score down."""
    positive = positive.astype(bool)
    if scores.shape != positive.shape or np.isnan(scores).any():
        raise bad("scores", f"shape {scores.shape}", f"the shape of positive, {positive.shape}, without NaN")
    weights = np.ones(len(scores)) if weights is None else weights.astype(float)
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1] if len(scores) else np.zeros(0, int)
    found = np.cumsum((weights * positive)[order])[last]
    false = np.cumsum((weights * ~positive)[order])[last]
    if not len(last) or not found[-1] or not false[-1]:
        raise bad("positive", "one kind of example only", "at least one positive and one negative")
    return found, false
