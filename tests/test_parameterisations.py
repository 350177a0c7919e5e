"""Pyramids against a naive reference."""

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks import PGD
from withstand.errors import BadInput
from withstand.objectives import TargetedCrossEntropy
from withstand.parameterisations import Pyramid
from withstand.registry import parse

EPS = 3 / 255


@pytest.fixture
def images():
    return ws.Rows.count(0, 5).uniform((3, 8, 8), "images")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 4))


def attack(pyramid, **settings):
    target = TargetedCrossEntropy(target=torch.tensor([1, 2, 3, 0, 1]))
    return PGD(
        ws.Linf(EPS), steps=4, step=1 / 6, random_start=False, objective=target, parameterisation=pyramid,
        keep="last", active=False, **settings,
    )  # fmt: skip


def naive(model, x, scales, multipliers, clip):
    """Sign steps on every level, the levels blown up by loops; numpy but for the model."""
    levels = [np.zeros((len(x), 3, 8 // s, 8 // s), np.float32) for s in scales]
    target = torch.tensor([1, 2, 3, 0, 1])

    def point():
        """The point, and for each level the pixels through which its gradient passes all later clips."""
        z, passed = x.numpy().copy(), []
        for s, m, d in zip(scales, multipliers, levels, strict=True):
            z = z + np.float32(m) * d.repeat(s, 2).repeat(s, 3)
            passed.append((z >= 0) & (z <= 1) if clip == "each" else np.ones(z.shape, bool))
            z = z.clip(0, 1) if clip == "each" else z
        passed.append((z >= 0) & (z <= 1))
        return z.clip(0, 1), [np.logical_and.reduce(passed[k:]) for k in range(len(scales))]

    for _ in range(4):
        z, free = point()
        z = torch.from_numpy(z).requires_grad_(True)
        loss = nn.functional.cross_entropy(model(z), target, reduction="sum")
        pixels = torch.autograd.grad(loss, z)[0].numpy()
        for s, m, d, through in zip(scales, multipliers, levels, free, strict=True):
            sums = m * (pixels * through).reshape(5, 3, 8 // s, s, 8 // s, s).sum((3, 5))
            d[:] = (d - np.float32(EPS / 6) * np.sign(sums)).clip(-EPS, EPS)
    return point()[0]


@pytest.mark.parametrize("clip", ["once", "each"])
def test_steps_are_those_of_a_naive_loop(model, images, clip):
    scales, multipliers = (4, 2, 1), (20.0, 10.0, 1.0)
    found = attack(Pyramid(scales, multipliers, clip=clip))(model, images, torch.zeros(5, dtype=torch.long))
    np.testing.assert_allclose(found, naive(model, images, scales, multipliers, clip), atol=1e-5)
    assert float((found - images).abs().max()) <= 31 * EPS + 1e-6
    assert float((found - images).abs().max()) > 0.1


def test_one_scale_of_pixels_is_the_plain_attack(model, images):
    y = torch.zeros(5, dtype=torch.long)
    plain = attack(None)(model, images, y)
    torch.testing.assert_close(attack(Pyramid((1,), (1,)))(model, images, y), plain, rtol=0, atol=1e-6)
    assert float((plain - images).abs().max()) > EPS / 2


def test_the_order_of_the_levels_does_not_matter_with_one_clip(model, images):
    y = torch.zeros(5, dtype=torch.long)
    one = attack(Pyramid((4, 1), (20, 1)))(model, images, y)
    other = attack(Pyramid((1, 4), (1, 20)))(model, images, y)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_clipping_after_each_level_differs_where_a_coarse_one_saturates():
    z = {"0": torch.full((1, 1, 1, 1), 0.4), "1": torch.full((1, 1, 2, 2), -0.3)}
    x = torch.full((1, 1, 2, 2), 0.9)
    assert Pyramid((2, 1), (1, 1)).decode(z, x).flatten().tolist() == pytest.approx([1.0] * 4)
    assert Pyramid((2, 1), (1, 1), clip="each").decode(z, x).flatten().tolist() == pytest.approx([0.7] * 4)


def test_grids_serve_images_that_no_scale_divides():
    x = torch.zeros(1, 1, 7, 5)
    pyramid = Pyramid(grids=(2, 7), multipliers=(1, 1))
    leaves = pyramid.leaves(x, ws.Linf(EPS), (0, 1))
    assert [tuple(leaf.origin.shape[2:]) for leaf in leaves.values()] == [(2, 2), (7, 5)]
    z = {"0": torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]]), "1": torch.zeros(1, 1, 7, 5)}
    assert sorted(set(pyramid.decode(z, x).flatten().tolist())) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_box_that_is_not_the_inputs_is_refused(model, images):
    x = 2 * images - 1
    with pytest.raises(BadInput, match="pyramid box"):
        attack(Pyramid((4, 1), (10, 1)))(model, x, torch.arange(5) % 4, box=(-1.0, 1.0))
    wide = attack(Pyramid((4, 1), (10, 1), box=(-1.0, 1.0)))
    assert wide(model, x, torch.arange(5) % 4, box=(-1.0, 1.0)).min() < -0.5


def test_it_is_written_and_read():
    made = parse("pgd(linf(3/255), steps=5, parameterisation=pyramid((8, 4, 1), (20, 10, 1)))")
    assert made.parameterisation == Pyramid((8, 4, 1), (20, 10, 1))
    assert parse(repr(made)) == made


def test_bad_pyramids_are_refused(model):
    with pytest.raises(BadInput, match="multipliers: got 1 for 2 scales"):
        Pyramid((4, 1), (20,))
    with pytest.raises(BadInput, match="scales: got"):
        Pyramid((0,), (1,))
    with pytest.raises(BadInput, match="scales: got 3 for images of 8x8"):
        attack(Pyramid((3, 1), (20, 1)))(model, torch.rand(5, 3, 8, 8), torch.zeros(5, dtype=torch.long))
    with pytest.raises(BadInput, match="scales: got 4 for images of 8x6"):
        attack(Pyramid((4, 1), (20, 1)))(model, torch.rand(5, 3, 8, 6), torch.zeros(5, dtype=torch.long))
