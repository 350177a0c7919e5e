"""Grounds and objects to put on them."""

import torch


def scene(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth ground with some grain, float [3, H, W] in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    ground = torch.stack([0.3 + 0.3 * x, 0.3 + 0.3 * y, 0.5 - 0.2 * x * y])
    return (ground + 0.05 * torch.randn(3, height, width, generator=g)).clamp(0, 1)


def blob(height: int, width: int, top: float, left: float, h: float, w: float) -> torch.Tensor:
    """A filled ellipse in that box, bool [H, W]."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return ((y - top - h / 2) / (h / 2)) ** 2 + ((x - left - w / 2) / (w / 2)) ** 2 <= 1
