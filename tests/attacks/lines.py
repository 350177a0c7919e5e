"""Linear models, on which the truth is known, for the tests of this folder."""

import torch
from torch import Tensor, nn

import withstand as ws

D = 8


class Line(nn.Module):
    """Two classes on the two sides of a plane through the middle of the unit cube; margin m = 2 scale (w.x - w.1/2)."""

    def __init__(self, scale: float = 5.0, d: int = D) -> None:
        super().__init__()
        self.w = ws.Rows.count(3, 1).normal((d,), "w", dtype=torch.float64)[0]
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x) * self.scale
        return torch.stack([side, -side], 1)

    def side(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w - self.w.sum() / 2


def inside(n: int = 20, d: int = D) -> Tensor:
    """Points far enough from the bounds that the box binds nowhere."""
    return 0.35 + 0.3 * ws.Rows.count(3, n).uniform((d,), "x", dtype=torch.float64)
