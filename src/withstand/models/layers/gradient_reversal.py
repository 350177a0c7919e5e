"""The identity whose gradient is turned round."""

from typing import Any

import torch
from torch import Tensor


def gradient_reversal(x: Tensor, scale: float) -> Tensor:
    """x itself; the gradient that comes back is multiplied by -scale.

    Reference: Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", 2015, arXiv 1409.7495.
    """
    return _Reversal.apply(x, scale)  # type: ignore[no-any-return]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradients[0] * -ctx.scale, None
