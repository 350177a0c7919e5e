"""Grounds and objects to put on them."""

import numpy as np
import torch
from PIL import Image


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


def photo(seed: int, height: int = 48, width: int = 64) -> tuple[Image.Image, Image.Image]:
    """A photograph with a red ellipse, and its mask."""
    ground, mask = scene(height, width, seed), blob(height, width, 12 + seed % 3, 20, 20, 24)
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    pixels = torch.where(mask, red, ground).mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels), Image.fromarray(mask.numpy().astype(np.uint8) * 255)
