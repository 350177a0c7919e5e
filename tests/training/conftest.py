"""Small things to train."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from withstand.protocols import Batch, Space


@dataclass(frozen=True)
class Points:
    """Points of the plane, labelled by the side of a line on which they lie. labels: whether the batches say so."""

    n: int = 48
    labels: bool = True
    name: str = "points"
    classes: tuple[str, ...] = ("left", "right")

    @property
    def space(self) -> Space:
        return Space((2,), None, 2)

    def __len__(self) -> int:
        return self.n

    def batch(self, positions):
        at = torch.as_tensor(list(positions))
        x = torch.stack([torch.sin(at * 1.7), torch.cos(at * 2.3)], 1)
        return Batch(x, (x[:, 0] > x[:, 1]).long() if self.labels else None, at)

    def fingerprint(self) -> str:
        return f"points{self.n}{self.labels}"


def net(seed: int = 0, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    parts = [
        nn.Linear(2, 16),
        *([nn.BatchNorm1d(16)] if norm else []),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(16, 2),
    ]
    return nn.Sequential(*parts)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def points() -> Points:
    return Points()
