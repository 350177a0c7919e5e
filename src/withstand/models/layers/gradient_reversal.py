"""A layer that passes values on and turns gradients round.

Reference: Ganin, Lempitsky, "Unsupervised domain adaptation by backpropagation", ICML 2015, arXiv:1409.7495.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad


class GradientReversal(nn.Module):
    """y = x, dL/dx = -strength dL/dy: what stands before it works against the loss that what stands after it lowers.

    strength: the lambda of the paper, a finite number >= 0; the attribute may be changed between passes (a schedule).

    Raises: BadInput for another strength, in the pass too.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        _checked(strength)

    def forward(self, x: Tensor) -> Tensor:
        return reverse_gradient(x, self.strength)

    def extra_repr(self) -> str:
        return f"strength={self.strength}"


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """x with its gradient multiplied by -strength, a finite number >= 0. Raises BadInput for another."""
    return _Reverse.apply(x, _checked(strength))  # pyright: ignore[reportReturnType]


def _checked(strength: float) -> float:
    if not (math.isfinite(strength) and strength >= 0):
        raise bad("strength", strength, "a finite number >= 0", "The sign is turned by the layer itself.")
    return strength


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None
