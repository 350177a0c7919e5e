"""Numbers with intervals: proportions, paired differences."""

import math

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


def bootstrap(
    values: np.ndarray, statistic=np.mean, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of values [N] (rows of [N, ...] are drawn together)."""
    generator = np.random.default_rng(seed)
    found = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
