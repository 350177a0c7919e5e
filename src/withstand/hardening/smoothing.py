"""Randomised smoothing: the most probable class under Gaussian noise, with a radius within which it provably stays.

    g(x) = argmax_c P(f(x + e) = c), e ~ N(0, sigma^2 I);  if P(f(x + e) = c) >= p > 1/2, g is c within L2 sigma * Phi^-1(p).

Reference: Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, arXiv 1902.02918.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from withstand.errors import bad
from withstand.random import Rows

ABSTAIN = -1
CHUNK = 100
"""Draws that are made at once; the draws of an example do not depend on how many copies share a pass."""
BLOCK = 1000
"""Noisy copies per pass, a multiple of `CHUNK`."""


class Certified(NamedTuple):
    """prediction: the class of the smoothed classifier, long [N], -1 where it abstains; radius: L2, float64 [N], 0 there."""

    prediction: Tensor
    radius: Tensor


def certify(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: float = 0.25,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    seed: int = 0,
    ids: Tensor | None = None,
    block: int = BLOCK,
) -> Certified:
    """The smoothed class and its certified radius; each certificate is wrong with probability at most alpha.

    n0 draws choose the class, n others bound its probability from below by Clopper and Pearson at level 1 - alpha; below
    1/2 it abstains. model: float [N, ...] -> logits [N, K], in eval mode; noisy inputs leave [0, 1]. sigma: standard
    deviation of the noise. The draws of an example depend on seed and its id alone.

    Raises: BadInput for settings out of range.
    """
    _check(sigma, alpha, n0=n0, n=n)
    rows = Rows(seed, torch.arange(len(x), device=x.device) if ids is None else ids.to(x.device))
    found = [
        _one(model, x[i], rows.take(torch.tensor([i], device=x.device)), sigma, n0, n, alpha, block)
        for i in range(len(x))
    ]
    prediction, radius = zip(*found)
    return Certified(
        torch.tensor(prediction, device=x.device), torch.tensor(radius, dtype=torch.float64, device=x.device)
    )


def predict(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: float = 0.25,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    ids: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """The smoothed class, long [N]; -1 where the two most frequent classes cannot be told apart at level alpha.

    The test is the two-sided binomial one on the counts of the two. Arguments and errors as for `certify`.
    """
    _check(sigma, alpha, n=n)
    rows = Rows(seed, torch.arange(len(x), device=x.device) if ids is None else ids.to(x.device))
    classes = []
    for i in range(len(x)):
        counts = _counts(model, x[i], rows.take(torch.tensor([i], device=x.device)), sigma, n, "predict", block)
        first, second = np.argsort(-counts, kind="stable")[:2]
        p = stats.binomtest(int(counts[first]), int(counts[first] + counts[second]), 0.5).pvalue
        classes.append(ABSTAIN if p > alpha else int(first))
    return torch.tensor(classes, device=x.device)


def lower_bound(successes: int, draws: int, alpha: float) -> float:
    """The one-sided lower confidence bound of Clopper and Pearson for a share, at level 1 - alpha."""
    return 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, draws - successes + 1))


def _one(
    model: Callable[[Tensor], Tensor], x: Tensor, row: Rows, sigma: float, n0: int, n: int, alpha: float, block: int
) -> tuple[int, float]:
    guess = int(np.argmax(_counts(model, x, row, sigma, n0, "choose", block)))
    bound = lower_bound(int(_counts(model, x, row, sigma, n, "bound", block)[guess]), n, alpha)
    return (ABSTAIN, 0.0) if bound < 0.5 else (guess, sigma * float(stats.norm.ppf(bound)))


@torch.no_grad()
def _counts(
    model: Callable[[Tensor], Tensor], x: Tensor, row: Rows, sigma: float, n: int, stream: str, block: int
) -> np.ndarray:
    """How often each class is said under n draws of noise; int64 [K]."""
    counts: Tensor | None = None
    block = max(block // CHUNK, 1) * CHUNK
    for begin in range(0, n, block):
        steps = range(begin // CHUNK, -(-min(begin + block, n) // CHUNK))
        noise = torch.cat([row.normal((CHUNK, *x.shape), stream, step, dtype=x.dtype)[0] for step in steps])
        logits = model(x + sigma * noise[: n - begin])
        said = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        counts = said if counts is None else counts + said
    assert counts is not None
    return counts.cpu().numpy()


def _check(sigma: float, alpha: float, **draws: int) -> None:
    if not sigma > 0:
        raise bad("sigma", sigma, "a standard deviation > 0")
    if not 0 < alpha < 1:
        raise bad("alpha", alpha, "a probability between 0 and 1")
    for name, number in draws.items():
        if number < 1:
            raise bad(name, number, "a whole number >= 1")
