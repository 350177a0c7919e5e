"""Gradients of several functions of the logits at once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from withstand.attacks.engine.outputs import needs_gradient, usable
from withstand.attacks.engine.problem import Problem


def gradients_of(p: Problem, z: Tensor, parts: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Values [A, C] and gradients [A, C, ...] at inputs z of the alive rows; z is remembered as a candidate.

    parts: logits [A, K] -> [A, C]. Costs one forward and C backward passes.
    """
    values, gradients = zip(*each_gradient(p, z, parts))
    return torch.stack(values, 1), torch.stack(gradients, 1)


def each_gradient(p: Problem, z: Tensor, parts: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """`gradients_of` one function after the other, values [A] and gradients [A, ...], so that no more than one is held."""
    point = z.detach().requires_grad_(True)
    with torch.enable_grad():
        seen = p._see(point)
        values = parts(seen.logits)
        needs_gradient(values)
        columns = values.sum(0).unbind()
    p.passes(1, len(columns))
    p._refuse_nan(seen, values)
    with torch.no_grad():
        p._remember(p.alive, z, seen, p.objective(seen, p.y_alive, p.state), p.state)
    for i, column in enumerate(columns):
        (gradient,) = torch.autograd.grad(column, point, retain_graph=i < len(columns) - 1)
        yield values[:, i].detach(), usable(gradient)
