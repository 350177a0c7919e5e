"""Statistical features of series, and the threat that keeps them close to the original's."""

import math
from typing import Literal

import torch
from torch import Tensor

from withstand.errors import bad
from withstand.registry import component
from withstand.threats import Radius, Threat

Feature = Literal["mean", "std", "skew", "kurtosis", "rms"]
FEATURES: tuple[Feature, ...] = ("mean", "std", "skew", "kurtosis", "rms")
_FLAT = 1e-8  # a deviation or quartile range below this is none


def stat_features(
    x: Tensor, which: tuple[Feature, ...] = FEATURES, skew: Literal["bowley", "released"] = "bowley"
) -> Tensor:
    """Features of each channel, [N, m, C] in the order of `which`; differentiable.

    mean; std = sqrt(mean((x - mean)^2)); skew = (Q1 + Q3 - 2 median) / (Q3 - Q1), quartiles halfway between the ranks
    around them; kurtosis = mean((x - mean)^4) / std^4 - 3; rms = sqrt(mean(x^2)). Skew is 0 where the quartiles meet,
    kurtosis where the channel is constant.

    x: [N, C, ...] with at least 4 values in a channel, or [N, T]. skew: "released" is the official code's (Q1 - mean) /
    (Q3 - Q1), which is no measure of skewness.

    Raises: BadInput for fewer values, and unknown features.
    """
    x = x[:, None] if x.dim() == 2 else x.flatten(2)
    if x.shape[2] < 4:
        raise bad("x", f"series of {x.shape[2]} steps", "at least 4, which quartiles need")
    if not which or set(which) - set(FEATURES) or len(set(which)) < len(which):
        raise bad("features", which, f"some of {', '.join(FEATURES)}, each once")
    mean = x.mean(2)
    centred = x - mean[..., None]
    variance = centred.square().mean(2)
    found = {"mean": mean, "std": _root(variance), "rms": _root(x.square().mean(2))}
    if "kurtosis" in which:
        bends = variance > _FLAT**2
        fourth = (centred / _root(variance).clamp_min(_FLAT)[..., None]).pow(4).mean(2)
        found["kurtosis"] = torch.where(bends, fourth - 3, 0.0)
    if "skew" in which:
        first, median, third = _quartiles(x)
        spread = third - first
        above = first - mean if skew == "released" else first + third - 2 * median
        found["skew"] = torch.where(spread > _FLAT, above / spread.clamp_min(_FLAT), 0.0)
    return torch.stack([found[name] for name in which], 1)


def _root(value: Tensor) -> Tensor:
    """The square root with slope 0 at 0, where autograd's is infinite."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)


def _quartiles(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ranked = x.sort(2).values

    def between(share: float) -> Tensor:
        place = share * (x.shape[2] - 1)
        return (ranked[..., math.floor(place)] + ranked[..., math.ceil(place)]) / 2

    return between(0.25), between(0.5), between(0.75)


@component("threat", "statistics", systems=("tsa_stat",))
class Statistics(Threat):
    """The statistical features of a series stay within eps: sum_i a_i max_c |S_i(z)_c - S_i(x)_c| <= eps.

    There is no projection into this set: an attack approaches it by a penalty (the objective `penalised`), and what ends
    outside counts as failed. A small distance says that the features are kept, not that the series looks the same.

    eps: bound of the weighted sum over features of the largest change over channels; None only measures. features: which.
    weights: a_i, one for each feature; None takes 1. skew: see `stat_features`. Skew and kurtosis are left out in channels
    where the clean series does not define them (quartiles that meet, a constant channel).

    >>> float(Statistics().distance(torch.arange(4.0)[None, None], torch.arange(4.0)[None, None]))
    0.0

    Reference: Belkhouja, Doppa, "Adversarial Framework with Certified Robustness for Time-Series Domain via Statistical
    Features", JAIR 73, 2022, arXiv 2207.04307.
    """

    eps: Radius = None
    features: tuple[Feature, ...] = FEATURES
    weights: tuple[float, ...] | None = None
    skew: Literal["bowley", "released"] = "bowley"

    def __post_init__(self) -> None:
        if not self.features or len(set(self.features)) < len(self.features):
            raise bad("features", self.features, f"some of {', '.join(FEATURES)}, each once")
        if self.weights is not None and (len(self.weights) != len(self.features) or min(self.weights) < 0):
            raise bad("weights", self.weights, f"{len(self.features)} numbers >= 0, one for each feature")

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """The weighted sum over features of the largest change over channels, [N]; differentiable in z."""
        change = (stat_features(z, self.features, self.skew) - stat_features(x, self.features, self.skew)).abs()
        weights = change.new_tensor(self.weights or [1.0] * len(self.features))
        return (torch.where(self.defined(x), change, 0.0).amax(2) * weights).sum(1)

    def defined(self, x: Tensor) -> Tensor:
        """Which features the clean series define, bool [N, m, C]."""
        flat = x[:, None] if x.dim() == 2 else x.flatten(2)
        bends = flat.std(2, unbiased=False) > _FLAT
        first, _, third = _quartiles(flat)
        always = torch.ones_like(bends)
        known = {"skew": bends & (third - first > _FLAT), "kurtosis": bends}
        return torch.stack([known.get(name, always) for name in self.features], 1)

    def check(self, x: Tensor) -> None:
        """Refuse series that these features cannot describe. Raises: BadInput for short series and constant channels."""
        stat_features(x[:1], self.features, self.skew)
        shaped = {"skew", "kurtosis"} & set(self.features)
        flat = x[:, None] if x.dim() == 2 else x.flatten(2)
        constant = (flat.std(2, unbiased=False) <= _FLAT).nonzero()
        if shaped and len(constant):
            row, channel = constant[0].tolist()
            mend = (
                "Drop that series or channel, or leave these features out: statistics(features=('mean', 'std', 'rms'))."
            )
            got = f"a constant channel {channel} in series {row}"
            raise bad("x", got, f"series that vary, for {' and '.join(sorted(shaped))}", mend)
