"""Complexity against its closed forms and a sum over plain numpy; the spectral painter against its definition."""

import itertools
import math

import numpy as np
import pytest
import torch

from withstand.editing import Spectral, complexity
from withstand.editing.spectrum import reshape_spectrum
from withstand.errors import BadInput

G = torch.Generator()


def naive(image):
    return float(np.mean([np.abs(np.fft.fft2(channel)).mean() for channel in image.numpy().astype(np.float64)]))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (9, 6), (1, 5), (5, 1), (64, 48)])
def test_complexity_is_the_mean_magnitude_of_all_frequencies(size):
    image = torch.rand(3, *size, generator=G.manual_seed(0))
    assert complexity(image) == pytest.approx(naive(image), rel=1e-5)


def test_complexity_of_what_is_known_in_closed_form():
    assert complexity(torch.full((3, 32, 20), 0.3)) == pytest.approx(0.3, rel=1e-5)
    pixel = torch.zeros(3, 16, 16)
    pixel[:, 5, 11] = 1
    assert complexity(pixel) == pytest.approx(1, rel=1e-5)
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(3, -1, -1)
    assert complexity(board) == pytest.approx(1, rel=1e-5)
    ramp = (torch.arange(64) / 64).expand(3, 64, 64)
    assert complexity(ramp) == pytest.approx(1.86, abs=0.01)
    noise = 0.1 * torch.randn(3, 96, 128, generator=G.manual_seed(0))
    assert complexity(noise) == pytest.approx(0.1 * math.sqrt(96 * 128 * math.pi) / 2, rel=0.02)


@pytest.mark.parametrize("exponent", [-0.5, 0.3])
@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_the_spectrum_is_multiplied_as_defined(exponent, size):
    scene = torch.rand(3, *size, generator=G.manual_seed(1))
    f = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1]))
    expected = np.fft.ifft2(np.fft.fft2(scene.numpy()) * (1 + f / 0.05) ** exponent).real
    np.testing.assert_allclose(reshape_spectrum(scene, exponent).numpy(), expected, atol=1e-5)


def test_complexity_grows_strictly_with_the_exponent_and_zero_changes_no_bit():
    scene = torch.rand(3, 32, 32, generator=G.manual_seed(2))
    found = [complexity(reshape_spectrum(scene, e)) for e in (-1, -0.5, -0.1, 0, 0.1, 0.5, 1)]
    assert all(a < b for a, b in itertools.pairwise(found))
    assert torch.equal(reshape_spectrum(scene, 0), scene)


def test_the_painter_maps_lambda_to_the_exponent_and_stays_in_range():
    scene = torch.rand(3, 32, 32, generator=G.manual_seed(3))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    painted = Spectral().paint(scene, scene, mask, 20.0, G)
    assert torch.equal(painted, reshape_spectrum(scene, 0.5).clamp(0, 1))
    assert painted.min() >= 0
    assert painted.max() <= 1
    assert torch.equal(Spectral().paint(scene, scene, mask, 0, G), scene)
    for strength in (math.inf, math.nan, 401, -401):
        with pytest.raises(BadInput, match="complexity"):
            Spectral().paint(scene, scene, mask, strength, G)
    assert Spectral().paint(scene, scene, mask, 400, G).isfinite().all()  # and not NaN, as 1500 would be
