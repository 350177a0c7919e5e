"""Gradients of several functions of the logits at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from withstand.attacks.engine.problem import Problem, needs_gradient


def gradients_of(p: Problem, z: Tensor, parts: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Values [A, C] and gradients [A, C, ...] at inputs z of the alive rows; z is remembered as a candidate.

    parts: logits [A, K] -> [A, C]. Costs one forward and C backward passes.
    """
    point = z.detach().requires_grad_(True)
    with torch.enable_grad():
        seen = p._see(point)
        values = parts(seen.logits)
        needs_gradient(values)
        columns = values.sum(0).unbind()
        last = len(columns) - 1
        found = [torch.autograd.grad(v, point, retain_graph=i < last)[0] for i, v in enumerate(columns)]
    p.passes(1, len(columns))
    p._refuse_nan(seen, values)
    with torch.no_grad():
        p._remember(p.alive, z, seen, p.objective(seen, p.y_alive, p.state), p.state)
    return values.detach(), torch.stack(found, 1)
