"""The published loops written out one example and one pass at a time, to compare with."""

import torch
from torch import Tensor, nn


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the cross-entropy, for each example on its own."""
    point = x.clone().requires_grad_(True)
    loss = nn.functional.cross_entropy(net(point), y, reduction="sum")
    return torch.autograd.grad(loss, point)[0]


def ascend(x: Tensor, eps: float, steps: int, look, decay: float = 1.0) -> Tensor:
    """look(z, t, m) -> g; momentum over g / mean|g|; signed steps of eps / steps; clipped to ball and [0, 1]."""
    z, m = x.clone(), torch.zeros_like(x)
    for t in range(steps):
        g = look(z, t, m)
        m = decay * m + torch.stack([row / row.abs().mean() for row in g])
        z = torch.max(torch.min(z + eps / steps * m.sign(), x + eps), x - eps).clamp(0, 1)
    return z
