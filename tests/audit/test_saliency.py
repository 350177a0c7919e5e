"""The measures of saliency maps against closed forms and slow references."""

import itertools

import numpy as np
import pytest
import torch

from withstand.audit.saliency import alignment, exchanged, gini, magnitude


def test_the_gini_index_is_half_the_relative_mean_difference():
    v = torch.rand(5, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = v.flatten(1)
    slow = (flat[:, :, None] - flat[:, None, :]).abs().sum((1, 2)) / (2 * 14 * flat.sum(1))
    torch.testing.assert_close(gini(v), slow)
    torch.testing.assert_close(gini(3 * v), slow)


def test_the_gini_index_at_its_ends():
    one = torch.zeros(1, 4, 4)
    assert gini(one).item() == 0
    one[0, 1, 2] = 5
    assert gini(one).item() == pytest.approx(1 - 1 / 16)
    assert gini(torch.ones(1, 4, 4)).item() == pytest.approx(0)


def test_the_alignment_is_the_images_length_along_the_gradient():
    x = torch.tensor([[[[3.0, 4.0]]]]).repeat(4, 1, 1, 1)
    g = torch.tensor([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [0.0, 0.0]]).view(4, 1, 1, 2)
    assert alignment(x, g).tolist() == pytest.approx([5, 5, 0, 0])


def test_a_pixel_counts_by_its_strongest_channel():
    g = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    assert magnitude(g).tolist() == [[[3.0, 2.0]]]


@pytest.mark.parametrize("steps", [1, 3, 5, 12])
def test_pixels_are_exchanged_from_the_most_salient_on(steps):
    draws = np.random.default_rng(0)
    x, other, saliency = draws.random((4, 3, 2, 3)), draws.random((4, 3, 2, 3)), draws.random((4, 2, 3))
    weights = torch.as_tensor(draws.random((3, 2, 3)))
    score = lambda z: (z * weights).sum((1, 2, 3)) ** 2  # noqa: E731
    areas = []
    for i in range(4):
        z, values = x[i].copy(), []
        order = sorted(np.ndindex(2, 3), key=lambda p, i=i: -saliency[i][p])
        for k in range(steps + 1):
            for a, b in order[: round(k / steps * 6)]:
                z[:, a, b] = other[i][:, a, b]
            values.append(float(score(torch.as_tensor(z)[None])))
        areas.append(sum((a + b) / 2 / steps for a, b in itertools.pairwise(values)))
    found = exchanged(score, *(torch.as_tensor(v) for v in (x, other, saliency)), steps)
    assert found.tolist() == pytest.approx(areas)
