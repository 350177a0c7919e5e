import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from withstand.corruptions.kinds import Job
from withstand.random import Rows


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """Four crops of real photographs, uint8 [4, 3, 224, 224]."""
    crops = [image[top : top + 224, 150:374] for image in load_sample_images().images for top in (0, 200)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="session")
def thumbs(photos: Tensor) -> Tensor:
    """The same at 32 pixels."""
    small = torch.nn.functional.interpolate(photos.float(), size=(32, 32), mode="area")
    return small.round().byte()


@pytest.fixture
def pixels() -> Tensor:
    """Random levels of an odd shape, uint8 [2, 3, 37, 45]."""
    return torch.randint(0, 256, (2, 3, 37, 45), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def job(n: int, seed: int = 0, **settings: object) -> Job:
    return Job(Rows.count(seed, n), **({"preset": "cifar"} | settings))  # type: ignore[arg-type]


@pytest.fixture(name="job")
def make_job():
    return job
