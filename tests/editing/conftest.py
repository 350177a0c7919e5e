"""Pictures with objects whose place is known, as tensors and as files."""

from pathlib import Path

import pytest
import torch

from tests.editing.pictures import blob, photo, scene


@pytest.fixture
def picture() -> tuple[torch.Tensor, torch.Tensor]:
    """An image [3, 96, 128] with a speckled red ellipse of 36 x 48 pixels, and its mask."""
    image, mask = scene(96, 128), blob(96, 128, 30, 20, 36, 48)
    g = torch.Generator().manual_seed(1)
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None] + 0.1 * torch.rand(3, 96, 128, generator=g) - 0.05
    return torch.where(mask, red, image).clamp(0, 1), mask


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four photographs in two class folders under photos/, and their masks under masks/."""
    for i, name in enumerate(("cat/a", "cat/b", "dog/c", "dog/d")):
        for image, place in zip(photo(i), ("photos", "masks")):
            file = tmp_path / place / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    return tmp_path
