"""Augmentations: batched on tensors, drawn per example, the same on every device and in every order."""

from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import coerce, component
from withstand.training.recipe import Step


@component("augmentation", "crop_flip")
class CropFlip:
    """A random crop of the zero-padded image at its own size, then a mirror image with probability 1/2.

    padding: pixels on each side. flip: whether mirror images occur (not for digits or letters).
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise bad("padding", self.padding, "pixels >= 0")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        return replace(batch, x=crop_flip(batch.x, step, self.padding, self.flip))


def crop_flip(x: Tensor, step: Step, padding: int, flip: bool) -> Tensor:
    """x [N, C, H, W] cropped at one random place per example and mirrored by a coin per example."""
    n, _, h, w = x.shape
    draws = step.rows.integers((2,), 0, 2 * padding + 1, "crop")
    ys = draws[:, 0, None] + torch.arange(h, device=x.device)
    xs = draws[:, 1, None] + torch.arange(w, device=x.device)
    if flip:
        xs = torch.where(step.rows.bits((1,), "flip") < 0, xs.flip(1), xs)
    padded = F.pad(x, (padding,) * 4)
    return (
        padded[torch.arange(n, device=x.device)[:, None, None], :, ys[:, :, None], xs[:, None, :]]
        .permute(0, 3, 1, 2)
        .contiguous()
    )


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
    return F.one_hot(y, classes).float() if y.dim() == 1 else y


def _augmentations(value: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    made = tuple(coerce("augmentation")(item) for item in items)
    for item in made:
        if not callable(item):
            raise bad("augment", repr(item), "augmentations or their text, e.g. 'crop_flip(padding=4)'")
    return made


AugmentationsField = Annotated[tuple[Any, ...], PlainValidator(_augmentations)]
