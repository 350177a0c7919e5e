"""A small hashing model, images with several labels, and the database that they make."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from withstand.attacks.hashing.database import Database
from withstand.models.hashing import Hasher
from withstand.random import Rows

BITS, CLASSES = 8, 4


@pytest.fixture(scope="module")
def model() -> Hasher:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        made = Hasher(body, 6 * 64, BITS).double()
        nn.init.normal_(made.head.weight, 0.0, 0.2)
    return made.eval()


@pytest.fixture(scope="module")
def queries() -> tuple[Tensor, Tensor]:
    """x [12, 1, 8, 8], y 0/1 [12, 4] that leave at least one class free."""
    x = Rows.count(0, 12).uniform((1, 8, 8), "x", dtype=torch.float64)
    y = (Rows.count(1, 12).uniform((CLASSES,), "y") < 0.3).float()
    y[torch.arange(12), torch.arange(12) % CLASSES] = 1
    y[torch.arange(12), (torch.arange(12) + 2) % CLASSES] = 0
    return x, y


@pytest.fixture(scope="module")
def base(model: Any) -> Database:
    x = Rows.count(5, 30).uniform((1, 8, 8), "x", dtype=torch.float64)
    y = (Rows.count(6, 30).uniform((CLASSES,), "y") < 0.3).float()
    y[torch.arange(30), torch.arange(30) % CLASSES] = 1
    y[:CLASSES] = torch.eye(CLASSES)
    with torch.no_grad():
        return Database.of(model.codes(x).float(), y)
