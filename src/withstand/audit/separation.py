"""How well scores tell two kinds of examples apart, with intervals."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from withstand.protocols import Metric

DRAWS = 300
"""Of the bootstrap; each draws the examples of either kind anew."""

Statistic = tuple[str, Callable[..., float], Literal["higher", "lower"], dict[str, Any]]
"""Name of the metric; its function of (scores, positive, weights); which way is better; condition."""


def separation(scores: np.ndarray, positive: np.ndarray, statistics: Sequence[Statistic]) -> list[Metric]:
    """The statistics of scores [N] with positive bool [N], both kinds present; bootstrap intervals."""
    generator = np.random.default_rng(0)
    groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    drawn: list[list[float]] = [[] for _ in statistics]
    for _ in range(DRAWS):
        weights = np.zeros(len(scores))
        for group in groups:
            weights[group] = generator.multinomial(len(group), np.full(len(group), 1 / len(group)))
        for values, (_, statistic, _, _) in zip(drawn, statistics):
            values.append(statistic(scores, positive, weights))
    found = []
    for values, (name, statistic, better, condition) in zip(drawn, statistics):
        low, high = (float(q) for q in np.quantile(values, [0.025, 0.975]))
        value = statistic(scores, positive)
        found.append(Metric(name, value, low, high, "bootstrap", len(scores), "share", better, dict(condition)))
    return found
