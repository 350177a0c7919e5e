"""Views: wrappers around the oracle that look at the model in another way. They chain, the first one named
outermost."""

from typing import Any

import torch
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Oracle
from withstand.random import Rows
from withstand.registry import component


@component("view", "eot", systems=("classic_attacks",))
class EOT:
    """Expectation over transformations: the mean of gradient and value over several passes of a randomised model.

    The model draws its own randomness; the engine seeds it, so that a run repeats.

    Reference: Athalye, Engstrom, Ilyas, Kwok, "Synthesizing Robust Adversarial Examples", 2018, arXiv 1707.07397.
    """

    samples: int = 20

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise bad("samples", self.samples, "a whole number >= 1")

    def __call__(self, oracle: Oracle) -> Oracle:
        def averaged(x: Tensor, rows: Rows, step: int) -> tuple[Tensor, Tensor]:
            gradient, value = oracle(x, rows, step * self.samples)
            for i in range(1, self.samples):
                g, v = oracle(x, rows, step * self.samples + i)
                gradient, value = gradient + g, value + v
            return gradient / self.samples, value / self.samples

        return averaged


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Any, backward: Any) -> Tensor:
        ctx.backward_as = backward
        ctx.save_for_backward(x)
        return forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = grads
        if ctx.backward_as is None:
            return gradient, None, None
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            (through,) = torch.autograd.grad(ctx.backward_as(point), point, gradient)
        return through, None, None


class BPDA(torch.nn.Module):
    """Backward pass differentiable approximation: a step of a defence that runs as it is and differentiates as another.

    forward: the non-differentiable step, [N, ...] -> [N, ...]. backward: a differentiable stand-in for it; None takes
    the identity, for steps that keep shape and meaning (quantisation, JPEG). Use it inside the model under attack:
    `nn.Sequential(BPDA(jpeg), network)`.

    Reference: Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", 2018, arXiv 1802.00420.
    """

    def __init__(self, forward: Any, backward: Any = None) -> None:
        super().__init__()
        self.step, self.stand_in = forward, backward

    def forward(self, x: Tensor) -> Tensor:
        return _StraightThrough.apply(x, lambda v: self.step(v.detach()), self.stand_in)  # type: ignore[no-any-return]
