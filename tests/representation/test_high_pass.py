"""The high-pass view against waves whose frequency is known, and against a mask written out."""

import math

import pytest
import torch

from withstand.errors import BadInput
from withstand.random import Rows
from withstand.representation.high_pass import high_pass


def wave(u: int, v: int, height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return torch.cos(2 * math.pi * (u * y / height + v * x / width) + 0.3)


@pytest.mark.parametrize("shape", [(16, 16), (15, 15), (12, 20)])
def test_waves_stay_or_go_whole(shape):
    for u, v in ((3, 4), (4, 3), (-3, 4), (5, 0), (0, 5), (2, 4), (0, 4)):
        stays = math.hypot(u, v) >= 5
        x = wave(u, v, *shape)
        assert torch.allclose(high_pass(x, 5.0), x if stays else torch.zeros_like(x), atol=1e-12), (u, v)
    mixed = high_pass(0.5 + wave(3, 4, *shape) + wave(1, 1, *shape), 5.0)
    assert torch.allclose(mixed, wave(3, 4, *shape), atol=1e-12)


def test_the_published_mask_of_32_pixels():
    x = Rows.count(0, 2).uniform((3, 32, 32), "x")
    mask = torch.tensor([[float(math.hypot(i - 16, j - 16) >= 8) for j in range(32)] for i in range(32)])
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)) * mask
    expected = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
    assert torch.allclose(high_pass(x, 8.0), expected, atol=1e-5)


def test_each_image_and_frame_is_for_itself_and_keeps_its_type():
    x = Rows.count(0, 2).uniform((3, 4, 9, 9), "x")
    assert torch.allclose(high_pass(x, 2.0)[1, 2, 3], high_pass(x[1, 2, 3], 2.0), atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(high_pass(x, 2.0), high_pass(x, 2.0).float())
        assert high_pass(x.bfloat16(), 2.0).dtype == torch.bfloat16


def test_a_radius_of_nothing_is_refused():
    with pytest.raises(BadInput, match="radius"):
        high_pass(torch.zeros(1, 1, 4, 4), 0.0)
