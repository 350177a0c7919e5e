"""Removal: what is outside the hole stays, and harmonic filling solves Laplace's equation."""

import pytest
import torch

from withstand.editing import remove_object
from withstand.editing.inpaint import dilated
from withstand.errors import BadInput


@pytest.mark.parametrize("method", ["telea", "navier_stokes", "harmonic"])
def test_only_the_object_and_three_pixels_around_it_change(picture, method):
    image, mask = picture
    made = remove_object(image, mask, method)
    distance = torch.tensor(dilated(mask.numpy(), 3))
    assert torch.equal(made[:, ~distance], image[:, ~distance])
    assert (made != image).any(0)[distance].float().mean() > 0.95
    assert made.min() >= 0
    assert made.max() <= 1
    assert made[0, mask].mean() < 0.6, "the red object is still there"


def test_a_mask_grows_by_a_disc():
    import numpy as np

    mask = np.zeros((15, 15), bool)
    mask[7, 7] = True
    y, x = np.nonzero(dilated(mask, 3))
    assert y.min() == x.min() == 4
    assert y.max() == x.max() == 10
    assert not dilated(mask, 3)[4, 4]
    assert dilated(mask, 0).sum() == 1


def test_harmonic_filling_restores_a_linear_ramp_and_averages_its_neighbours():
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 50), indexing="ij")
    ramp = torch.stack([x, y, (x + y) / 2])
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[10:25, 12:30] = True
    torch.testing.assert_close(remove_object(ramp, mask, "harmonic"), ramp, atol=1e-5, rtol=0)
    noise = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    mask[0:12, 0:14] = True  # at the border, where there are fewer neighbours
    made = remove_object(noise, mask, "harmonic", dilation=0)
    padded = torch.nn.functional.pad(made, (1, 1, 1, 1), mode="replicate")
    four = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    torch.testing.assert_close(made[:, mask], (four / 4)[:, mask], atol=1e-4, rtol=0)


def test_a_hole_that_is_everything_is_grey_and_unknown_methods_are_refused(picture):
    image, mask = picture
    assert (remove_object(image, torch.ones_like(mask)) == 0.5).all()
    with pytest.raises(BadInput, match="navier_stokes"):
        remove_object(image, mask, "navier")  # type: ignore[arg-type]
