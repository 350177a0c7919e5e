"""A small classifier with batch norm and dropout, and tiny images to train it on."""

from typing import Any

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.data.arrays import from_arrays
from withstand.registry import entries

ATTACK = "pgd(linf(0.1), steps=2)"


def cnn(seed: int = 0, norm: bool = True) -> nn.Module:
    """Two blocks of convolution, batch norm and ReLU, pooled, dropout, linear; takes [N, 1, 8, 8]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        normal = [nn.BatchNorm2d] if norm else [lambda c: nn.Identity()]
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), normal[0](8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1), normal[0](8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 3),
        )  # fmt: skip


def images(n: int = 24) -> Any:
    """Stripes, squares and noise, [n, 1, 8, 8], three classes."""
    rows = ws.Rows.count(0, n)
    y = torch.arange(n) % 3
    x = rows.uniform((1, 8, 8), "images", low=0.0, high=0.3)
    x[y == 0, :, ::2] += 0.6
    x[y == 1, :, 2:6, 2:6] += 0.6
    return from_arrays(x.numpy(), y.numpy(), name="shapes")


def recipes() -> dict[str, Any]:
    """Every registered recipe of `harden` with a small attack, by name."""
    made = {}
    for entry in entries("recipe"):
        cls = entry.load()
        if cls.verb != "harden":
            continue
        fields = {f.name for f in cls.__dataclass_fields__.values()}
        settings: dict[str, Any] = {"attack": ATTACK} if "attack" in fields else {}
        settings |= {"recipe": f"pgd_at(attack={ATTACK})"} if "recipe" in fields else {}
        settings |= SPECIAL.get(entry.name, {})
        made[entry.name] = cls(**settings)
    return made


SPECIAL: dict[str, dict[str, Any]] = {"hat": {"helper": f"{__file__}:cnn"}, "advcl": {"clusters": (2, 3)}}
"""What a recipe cannot do without."""


def network_for(name: str, seed: int = 0) -> nn.Module:
    """What a recipe is tried on: recipes without normalisation refuse batch norm."""
    return cnn(seed, norm=name not in WITHOUT_NORM)


WITHOUT_NORM = ("nofrost",)


@pytest.fixture(scope="session")
def shapes() -> Any:
    return images()
