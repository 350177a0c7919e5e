"""Small networks and images of a few classes, and one training of them."""

from typing import Any

import pytest
import torch
from torch import nn

from withstand.data.arrays import from_arrays
from withstand.random import Rows
from withstand.training import Trainer


def cnn(norm: bool = True, seed: int = 0) -> nn.Module:
    """Two blocks on images [1, 8, 8] and a head of three classes, whatever the data have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norms = [nn.BatchNorm2d(c) if norm else nn.Identity() for c in (6, 8)]
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), norms[0], nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), norms[1], nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip


@pytest.fixture(scope="session")
def strokes() -> Any:
    """48 images [1, 8, 8] of six classes, which differ in where a stroke lies."""
    y = torch.arange(48) % 6
    x = Rows.count(0, 48).uniform((1, 8, 8), "strokes", high=0.4)
    for i, c in enumerate(y.tolist()):
        x[i, 0, c + 1] += 0.5
    return from_arrays(x.numpy(), y.numpy(), name="strokes")


def trained(recipe: Any, data: Any, model: nn.Module | None = None, **more: Any) -> Any:
    """What a short training on batches of four classes with four examples each gives."""
    settings = {**recipe.defaults, "epochs": 2, "batch": 16, "sampler": "m_per_class(4)", "accelerator": "cpu", **more}
    return Trainer(**settings).fit(recipe, model or cnn(), data)
