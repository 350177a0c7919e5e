"""A small network and kNN classifiers on its layers."""

import pytest
import torch
from torch import nn

from withstand.attacks.neighbours.block import FitBlock
from withstand.data import from_arrays
from withstand.models import DeepKNN, HiddenKNN
from withstand.training import Adam, Trainer


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of noisy 4 x 4 patterns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(9))
    y = torch.randint(0, 3, (n,), generator=generator)
    return (0.45 * patterns[y] + 0.55 * torch.rand(n, 1, 4, 4, generator=generator)).clamp(0, 1), y


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer, (x, y) = torch.optim.Adam(net.parameters(), 0.02), blobs(200, 1)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def references():
    return blobs(120, 0)


@pytest.fixture(scope="session")
def batch():
    return blobs(24, 2)


@pytest.fixture(scope="session")
def knn(references):
    return HiddenKNN(network(), ["4"], *references, k=15, classes=3)


@pytest.fixture(scope="session")
def deep(references):
    return DeepKNN(network(), ["2", "4", "logits"], *references, k=15, classes=3, calibration=blobs(60, 3))


def fitted(model, recipe=None, epochs=40, **more):
    trainer = Trainer(
        epochs=epochs, batch=30, optimizer=Adam(0.02), schedule="constant", accelerator="cpu", checkpoint_seconds=0
    )
    return trainer.fit(recipe or FitBlock(), model, from_arrays(*blobs(120, 0), classes=3), **more)


@pytest.fixture(scope="session")
def block(knn):
    return fitted(knn).last


@pytest.fixture(scope="session")
def deep_block(deep):
    return fitted(deep).last
