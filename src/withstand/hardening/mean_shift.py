"""A certificate for time series: the smoothed class does not change under shifts of the mean below a radius.

Noise is independent over time, N(0, S) across channels. With p1 and p2 the probabilities of the two most likely classes
under it, every shift d [C, T] with sum_t d_t' S^-1 d_t < R(p1, p2)^2 leaves the smoothed class, where

R^2 = sup_{alpha > 1} -(2 / alpha) log(1 - p1 - p2 + 2 M), M = ((p1^(1-alpha) + p2^(1-alpha)) / 2)^(1/(1-alpha)).

References: Belkhouja, Doppa, "Adversarial Framework with Certified Robustness for Time-Series Domain via Statistical
Features", JAIR 73, 2022, arXiv 2207.04307; the lemma on Renyi divergences: Li, Chen, Wang, Carin, "Certified Adversarial
Robustness with Additive Noise", NeurIPS 2019, arXiv 1809.03113.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from withstand.errors import bad
from withstand.hardening.smoothing import ABSTAIN, Certified, lower_bound
from withstand.random import Rows

_CHUNK = 100  # draws made at once
_ORDERS = 1 + np.logspace(-7, 3, 4001)  # any order gives a valid bound; the best of so many is near the supremum
_RELEASED_ORDERS = np.delete(np.linspace(0.1, 10, 990_001), 90_000)  # 0.1 to 10 in steps of 1e-5 without 1
_RELEASED_SHIFT, _RELEASED_MATRICES = 0.01, 10


def certify_mean_shift(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    covariance: float | ArrayLike = 0.1,
    n: int = 500,
    confidence: float = 0.999,
    n0: int = 100,
    bound: Literal["renyi", "released"] = "renyi",
    seed: int = 0,
    ids: Tensor | None = None,
) -> Certified:
    """The smoothed class of each series, and the size of a mean shift below which it provably stays.

    The radius bounds |mu| for one constant mu added to every channel and step: mu^2 < R^2 / (T * 1' S^-1 1). n0 draws
    choose the class; n others bound p1 from below and p2 from above (Clopper and Pearson, all classes together at the
    given confidence, and p2 <= 1 - p1); where the bounds cross it abstains: class -1, radius 0. Each certificate is wrong
    with probability at most 1 - confidence.

    model: float [N, C, T] -> logits [N, K], in eval mode. covariance: S, [C, C], or a variance for independent channels.

    bound="released" is what the official code prints and NO GUARANTEE: it divides by the sum of S instead of T times that
    of S^-1, takes raw frequencies for probabilities, and draws noise whose sample mean is fixed at 0.01. It can claim many
    times the largest shift that is safe; radius is infinite where only one class was seen.

    Raises: BadInput for a covariance that is not symmetric and positive definite, and settings out of range.
    """
    s = _covariance(covariance, x)
    if bound not in {"renyi", "released"}:
        raise bad("bound", repr(bound), "'renyi' or 'released'")
    if not 0 < confidence < 1:
        raise bad("confidence", confidence, "a probability between 0 and 1")
    for name, number in (("n", n), ("n0", n0)):
        if number < 1:
            raise bad(name, number, "a whole number >= 1")
    rows = Rows(seed, torch.arange(len(x), device=x.device) if ids is None else ids.to(x.device))
    found = []
    for i in range(len(x)):
        row = rows.take(torch.tensor([i], device=x.device))
        if bound == "released":
            found.append(_released(model, x[i], row, float(np.diag(s).mean()), n))
        else:
            guess = int(_counts(model, x[i], row, s, n0, "choose").argmax())
            p1, p2 = bounds(_counts(model, x[i], row, s, n, "bound"), guess, confidence)
            sure = p1 > p2
            found.append((guess, mean_shift_radius(p1, p2, s, x.shape[2])) if sure else (ABSTAIN, 0.0))
    classes, radii = zip(*found)
    return Certified(torch.tensor(classes, device=x.device), torch.tensor(radii, dtype=torch.float64, device=x.device))


def renyi_radius(p1: float, p2: float) -> float:
    """R(p1, p2): how far, in standard deviations of the noise, the smoothed class provably stays; 0 <= p2, p1 + p2 <= 1.

    >>> round(renyi_radius(0.9, 0.1), 5)
    1.03193
    """
    if not 0 <= p2 <= 1 or not 0 <= p1 <= 1 or p1 + p2 > 1 + 1e-9:
        raise bad("p1, p2", (p1, p2), "two probabilities with a sum of at most 1")
    return 0.0 if p1 <= p2 else math.sqrt(float(_exponents(p1, p2, _ORDERS).max()))


def mean_shift_radius(p1: float, p2: float, covariance: ArrayLike, steps: int) -> float:
    """The largest |mu| below which the shift of every channel and step by mu is certified: R / sqrt(T * 1' S^-1 1)."""
    s = np.atleast_2d(np.asarray(covariance, np.float64))
    return renyi_radius(p1, p2) / math.sqrt(steps * np.linalg.solve(s, np.ones(len(s))).sum())


def released_radius(p1: float, p2: float, covariance: ArrayLike) -> float:
    """What the official code prints for these frequencies; no guarantee, see `certify_mean_shift`."""
    best = float(_exponents(p1, p2, _RELEASED_ORDERS).max())
    return math.sqrt(max(best, 0.0) / float(np.sum(covariance)))


def bounds(counts: np.ndarray, guess: int, confidence: float) -> tuple[float, float]:
    """A lower bound of the guessed class's probability and an upper bound of the largest other one, jointly valid.

    counts: int64 [K]. Each of the K bounds gets an equal part of 1 - confidence (Bonferroni).
    """
    draws, alpha = int(counts.sum()), (1 - confidence) / len(counts)
    p1 = lower_bound(int(counts[guess]), draws, alpha)
    others = [1 - lower_bound(draws - int(c), draws, alpha) for k, c in enumerate(counts) if k != guess]
    return p1, min(max(others, default=0.0), 1 - p1)


def _exponents(p1: float, p2: float, orders: np.ndarray) -> np.ndarray:
    """-(2 / alpha) log(1 - p1 - p2 + 2 M) for each order; powers in logarithms, since p^(1 - alpha) overflows."""
    with np.errstate(divide="ignore"):
        logs = np.log([p1, p2])
        power = (np.logaddexp((1 - orders) * logs[0], (1 - orders) * logs[1]) - math.log(2)) / (1 - orders)
        return -2 / orders * np.log(np.maximum(1 - p1 - p2, 0.0) + 2 * np.exp(power))


@torch.no_grad()
def _counts(model: Callable[[Tensor], Tensor], x: Tensor, row: Rows, s: np.ndarray, n: int, stream: str) -> np.ndarray:
    root = torch.from_numpy(np.linalg.cholesky(s)).to(x)
    said = []
    for step in range(-(-n // _CHUNK)):
        noise = row.normal((_CHUNK, *x.shape), stream, step, x.dtype)[0][: n - step * _CHUNK]
        logits = model(x + torch.einsum("cd,ndt->nct", root, noise))
        said.append(torch.bincount(logits.argmax(1), minlength=logits.shape[1]))
    return torch.stack(said).sum(0).cpu().numpy()


@torch.no_grad()
def _released(model: Callable[[Tensor], Tensor], x: Tensor, row: Rows, variance: float, n: int) -> tuple[int, float]:
    """Noise of random correlation between channels, moved to a sample mean of 0.01 in each channel and draw."""
    (generator,) = row.generators("released")
    channels, counts, s = len(x), np.zeros(1, np.int64), np.eye(len(x))
    for part in range(_RELEASED_MATRICES):
        size = n // _RELEASED_MATRICES + (part < n % _RELEASED_MATRICES)
        if not size:
            continue
        factor = torch.randn(channels, 2 * channels, generator=generator, dtype=torch.float64)
        s = np.corrcoef(factor.numpy()).reshape(channels, channels)
        root = torch.from_numpy(np.linalg.cholesky(s * variance)).to(x)
        noise = row.normal((size, *x.shape), "released", part, x.dtype)[0]
        noise = torch.einsum("cd,ndt->nct", root, noise)
        logits = model(x + noise - noise.mean(2, keepdim=True) + _RELEASED_SHIFT)
        counts = counts + torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu().numpy()
    top, second = np.argsort(-counts, kind="stable")[:2]
    clean = int(model(x[None]).argmax(1))
    if clean != top:
        return ABSTAIN, 0.0
    p1, p2 = (float(counts[k]) / n for k in (top, second))
    return int(top), released_radius(p1, p2, s * variance) if p2 > 0 else math.inf


def _covariance(value: float | ArrayLike, x: Tensor) -> np.ndarray:
    if x.dim() != 3 or not bool(torch.isfinite(x).all()):
        raise bad("x", f"shape {tuple(x.shape)}", "finite series [N, C, T]")
    s = np.asarray(value, np.float64)
    s = s * np.eye(x.shape[1]) if s.ndim == 0 else s
    if s.shape != (x.shape[1],) * 2 or not np.allclose(s, s.T) or not (np.linalg.eigvalsh(s) > 0).all():
        allowed = f"a variance > 0, or a symmetric positive definite matrix [{x.shape[1]}, {x.shape[1]}]"
        raise bad("covariance", value if s.ndim == 0 else f"a matrix of shape {list(s.shape)}", allowed)
    return s
