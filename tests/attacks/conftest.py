import pytest
import torch
from torch import Tensor, nn

from withstand.random import Rows


@pytest.fixture(scope="session")
def net() -> nn.Module:
    """A small smooth network in float64 on images [1, 6, 6], five classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 5)).double().eval()
    for parameter in net.parameters():
        parameter.data.mul_(3)
    net[3].bias.data -= net(torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64))[0].detach()  # no class is favoured
    return net.requires_grad_(False)


@pytest.fixture(scope="session")
def points(net: nn.Module) -> tuple[Tensor, Tensor]:
    """24 images that the network gets right, and their labels."""
    x = Rows.count(1, 24).uniform((1, 6, 6), "x", dtype=torch.float64)
    return x, net(x).argmax(1)


@pytest.fixture(scope="session")
def linear_problem():
    """Linear classifiers, on which every answer is known in closed form."""

    def problem(seed: int, n: int = 60, d: int = 24, classes: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
        """A linear model on images [n, 1, 4, d / 4], points in the box (some on its faces) and mostly right labels."""
        rows = Rows.count(seed, n)
        model = nn.Sequential(nn.Flatten(), nn.Linear(d, classes)).double()
        draws = Rows.count(seed + 1, classes)
        model[1].weight.data = draws.normal((d,), "w", dtype=torch.float64)
        model[1].bias.data = draws.normal((), "b", dtype=torch.float64) / 4
        x = rows.uniform((1, 4, d // 4), "x", low=-0.1, high=1.1, dtype=torch.float64).clamp(0, 1)
        with torch.no_grad():
            y = model(x).argmax(1)
        y[::9] = (y[::9] + 1) % classes
        return model.requires_grad_(False), x, y

    return problem


@pytest.fixture(scope="session")
def withstands():
    """The closed form of robustness of a linear model under Linf."""

    def withstands(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """Whether no point of the Linf ball inside the box is misclassified: each class has its own worst point."""
        w, b = model[1].weight, model[1].bias
        safe = torch.ones(len(x), dtype=torch.bool)
        for k in range(len(w)):
            towards = w[k] - w[y]
            worst = (x.flatten(1) + eps * towards.sign()).clamp(0, 1)
            safe &= (y == k) | ((towards * worst).sum(1) + b[k] - b[y] < 0)
        return safe

    return withstands
