"""Mixtures of pairs of examples."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.recipe import Step


@component("augmentation", "mixup")
class Mixup:
    """Convex combinations of pairs: lam * x + (1 - lam) * x', labels alike, with one lam ~ Beta(alpha, alpha) per batch.

    The pairs are drawn within the batch of a process. Labels become shares [N, K].

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018, arXiv 1710.09412.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise bad("alpha", self.alpha, "a number > 0")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        lam, order = pairs(len(batch), self.alpha, step, "mixup")
        y = as_shares(batch.y, classes)
        order = order.to(batch.x.device)
        return replace(batch, x=mix(batch.x, lam, order), y=mix(y, lam, order))


def pairs(n: int, alpha: float, step: Step, stream: str) -> tuple[float, Tensor]:
    """One lam ~ Beta(alpha, alpha), 1 for alpha = 0, and a permutation of the batch."""
    generator = step.generator(stream)
    order = torch.randperm(n, generator=generator)
    if alpha == 0:
        return 1.0, order
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    return (a / (a + b) if a + b > 0 else 1.0), order


def mix(u: Tensor, lam: float, order: Tensor) -> Tensor:
    """lam * u + (1 - lam) * u[order]."""
    return u * lam + u[order] * (1 - lam)


def as_shares(y: Any, classes: int) -> Tensor:
    """Labels as shares of the classes: float [N, K]."""
    if not isinstance(y, Tensor):
        raise bad("y", "no labels", "labels, which mixup mixes")
    if y.dim() == 1 and bool((y < 0).any()):
        raise bad("y", "unlabelled examples (-1)", "labels, which mixup mixes", "Train without mixup.")
    return F.one_hot(y, classes).float() if y.dim() == 1 else y
