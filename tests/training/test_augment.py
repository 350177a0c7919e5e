"""Augmentations against torchvision's functions, PIL or a loop, image by image."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from withstand.errors import BadInput
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import parse
from withstand.training import Step
from withstand.training.augment import photometric as light
from withstand.training.augment.cutout import window
from withstand.training.augment.randaugment import GEOMETRIC, POOL, apply
from withstand.training.augment.warp import compose, invert, rotation, scaling, shearing, translation, warp

N, SIDE = 8, 16


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def x(request) -> torch.Tensor:
    made = Rows.count(0, N).uniform((request.param, SIDE, SIDE), "images", high=0.9) + 0.05
    made[0] = 0.3  # one without contrast
    return (made * 255).round() / 255


def a_step(n: int = N, seed: int = 1, box=(0.0, 1.0)) -> Step:
    return Step(step=0, steps=1, epoch=0, epochs=1, seed=seed, rows=Rows.count(seed, n), box=box)


def each(x: torch.Tensor, change, *strengths) -> torch.Tensor:
    return torch.stack([change(image, *(s[i] for s in strengths)) for i, image in enumerate(x)])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (light.brightness, V.adjust_brightness),
        (light.contrast, V.adjust_contrast),
        (light.sharpness, V.adjust_sharpness),
        (light.colour, V.adjust_saturation),
        (light.solarise, V.solarize),
    ],
)
def test_a_strength_for_each_image_is_that_strength_alone(x, ours, theirs):
    strength = torch.linspace(0.05, 1.0 if ours is light.solarise else 1.4, N)
    expected = each(x, lambda image, s: theirs(image, float(s)), strength)
    assert torch.allclose(ours(x, strength), expected, atol=2e-4)  # torchvision's luma takes .2989 for .299
    assert not torch.allclose(ours(x, strength), x, atol=1e-3) or (ours is light.colour and x.shape[1] == 1)


def test_posterise_keeps_so_many_bits(x):
    bits = torch.arange(1, N + 1)
    expected = each(x, lambda image, b: V.posterize(image, int(b)), bits)
    assert torch.allclose(light.posterise(x, bits), expected, atol=1e-6)


def test_autocontrast_stretches_every_channel(x):
    assert torch.allclose(light.autocontrast(x), each(x, V.autocontrast), atol=1e-6)


def test_equalise_is_that_of_pil_to_the_level(x):
    large = Rows.count(1, 2).uniform((x.shape[1], 45, 45), "large")  # more than two pixels for each level
    assert_as_pil(large**2)
    assert_as_pil(torch.cat([x, x**3, (x > 0.5).float()]))


def assert_as_pil(x):
    for channel, ours in zip(x.flatten(0, 1), light.equalise(x).flatten(0, 1), strict=True):
        image = Image.fromarray((channel * 255).round().byte().numpy())
        assert np.array_equal((ours * 255).round().byte().numpy(), np.asarray(ImageOps.equalize(image)))
    levels = (x * 255).round().byte()
    assert torch.equal((light.equalise(x) * 255).round().byte(), V.equalize(levels))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_turns_shifts_and_sizes_are_those_of_torchvision(x, mode):
    angle, right, down = torch.linspace(-37, 37, N), torch.arange(N) - 3, 2 * torch.arange(N) - 5
    size = torch.linspace(0.8, 1.2, N)
    forth = compose(translation(right.float(), down.float()), rotation(angle.deg2rad()), scaling(size))
    how = InterpolationMode.NEAREST if mode == "nearest" else InterpolationMode.BILINEAR

    def theirs(image, a, r, d, s):
        return V.affine(image, -float(a), [int(r), int(d)], float(s), [0.0, 0.0], how)

    expected = each(x, theirs, angle, right, down, size)
    off = (warp(x, invert(forth), mode) - expected).abs() > 1e-3
    assert off.float().mean() < 0.01  # pixels exactly between two others may fall to either side


def test_an_inverted_map_leads_back():
    forth = compose(
        translation(torch.tensor([3.0]), torch.tensor([-2.0])), shearing(torch.tensor([0.3]), torch.tensor([0.2]))
    )
    whole = compose(forth, invert(forth))
    assert torch.allclose(whole, torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), atol=1e-6)
    with pytest.raises(BadInput, match="folds"):
        invert(shearing(torch.ones(1), torch.ones(1)))


def reference(name: str, image: torch.Tensor, s: float, sign: float) -> torch.Tensor:
    """FixMatch's operation `name`, by PIL's rules, on one image."""
    side, signed = image.shape[-1], s * sign
    levels = {"brightness": V.adjust_brightness, "contrast": V.adjust_contrast, "sharpness": V.adjust_sharpness}
    levels |= {"colour": V.adjust_saturation}
    if name in levels:
        return levels[name](image, 0.05 + 0.9 * s)
    shear, shift = 0.3 * signed, math.trunc(0.3 * signed * side)
    looks = {
        "shear_x": (1, shear, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shear, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }
    if name in looks:
        return by_pil(image, lambda p: p.transform(p.size, Image.Transform.AFFINE, looks[name]))
    return {
        "autocontrast": lambda: V.autocontrast(image),
        "equalise": lambda: by_pil(image, ImageOps.equalize),
        "identity": lambda: image,
        "posterise": lambda: V.posterize(image, 4 + math.floor(4 * s)),
        "solarise": lambda: V.solarize(image, 1 - s),
        "rotate": lambda: by_pil(image, lambda p: p.rotate(30 * signed)),
    }[name]()


def by_pil(image: torch.Tensor, change) -> torch.Tensor:
    planes = [Image.fromarray((plane * 255).round().byte().numpy()) for plane in image]
    return torch.from_numpy(np.stack([np.asarray(change(plane)) for plane in planes])) / 255


@pytest.mark.parametrize("name", POOL)
def test_an_operation_of_the_pool_is_fixmatchs_at_that_strength(x, name):
    strength = torch.linspace(0.03, 0.97, N)
    sign = torch.tensor([-1.0, 1.0]).repeat(N // 2)
    expected = torch.stack([reference(name, image, float(s), float(d)) for image, s, d in zip(x, strength, sign)])
    off = (apply([name] * N, x, strength, strength * sign, POOL, 30) - expected).abs() > 1e-3
    assert off.float().mean() < 0.01


def test_the_pool_is_fixmatchs():
    assert len(POOL) == 14
    assert set(GEOMETRIC) < set(POOL)


def test_mixed_operations_are_each_images_own(x):
    names = ["shear_x", "equalise", "rotate", "identity", "solarise", "equalise", "translate_y", "colour"]
    strength, sign = torch.linspace(0.1, 0.9, N), torch.ones(N)
    made = apply(names, x, strength, strength * sign, POOL, 30)
    for i, name in enumerate(names):
        one = slice(i, i + 1)
        alone = apply([name], x[one], strength[one], strength[one] * sign[one], POOL, 30)[0]
        assert torch.allclose(made[i], alone, atol=1e-6), name


@pytest.mark.parametrize("text", ["randaugment", "cutout(0.5)", "affine", "light", "add_noise(0.2)"])
def test_draws_depend_on_the_example_alone(x, text):
    """... whatever else is in the batch, and stay in the range."""
    augment = parse(text, "augmentation")
    whole = augment(Batch(x, None), a_step(), 3).x
    part = torch.tensor([5, 1, 6])
    step = a_step()
    step.rows = step.rows.take(part)
    assert torch.allclose(augment(Batch(x[part], None), step, 3).x, whole[part], atol=1e-6)
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    assert 0 <= whole.min() <= whole.max() <= 1
    assert not torch.equal(whole, augment(Batch(x, None), a_step(seed=2), 3).x)
    assert parse(repr(augment), "augmentation") == augment


@pytest.mark.parametrize("text", ["randaugment", "cutout(0.5)", "affine", "light"])
def test_another_range_of_values_is_obeyed(text):
    x = Rows.count(0, N).uniform((3, SIDE, SIDE), "images")
    augment = parse(text, "augmentation")
    unit = augment(Batch(x, None), a_step(), 3).x
    wide = augment(Batch(x * 4 - 1, None), a_step(box=(-1.0, 3.0)), 3).x
    assert torch.allclose(wide, unit * 4 - 1, atol=2e-2 if text == "randaugment" else 1e-5)


@pytest.mark.parametrize("text", ["randaugment", "affine", "light"])
def test_images_need_a_declared_range(text):
    augment = parse(text, "augmentation")
    with pytest.raises(BadInput, match="declared range"):
        augment(Batch(torch.rand(2, 3, 8, 8), None), a_step(2, box=None), 3)
    for bad in (torch.rand(2, 3, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(BadInput, match="float images"):
            augment(Batch(bad, None), a_step(2), 3)


@pytest.mark.parametrize(
    "text",
    [
        "randaugment(0)", "randaugment(2, share=1.5)", "cutout(0)", "cutout(1.5)", "affine(-1)", "affine(scale=1)",
        "light(2)", "light(contrast=-1)", "add_noise(-1)",
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(text):
    with pytest.raises(BadInput, match="allowed"):
        parse(text, "augmentation")


def test_images_without_a_luma_are_refused_whatever_is_drawn():
    with pytest.raises(BadInput, match="4 channels"):
        parse("randaugment(1, share=0)", "augmentation")(Batch(torch.rand(2, 4, 8, 8), None), a_step(2), 3)


def test_what_randaugment_draws_is_independent_and_of_the_whole_range(monkeypatch):
    drawn = []
    path = "withstand.training.augment.randaugment.apply"
    monkeypatch.setattr(path, lambda names, x, s, signed, *_: drawn.append((np.array(names), s, signed.sign())) or x)
    parse("randaugment", "augmentation")(Batch(torch.rand(4000, 1, 2, 2), None), a_step(4000), 3)
    assert len(drawn) == 2
    for names, strength, sign in drawn:
        counts = {name: (names == name).mean() for name in POOL}
        assert counts.pop("identity") == pytest.approx(0.5 + 0.5 / 14, abs=0.03)
        assert list(counts.values()) == pytest.approx([0.5 / 14] * 13, abs=0.012)
        made = torch.from_numpy(names != "identity")
        for part in (made, ~made):
            assert float(strength[part].mean()) == pytest.approx(0.5, abs=0.03)
            assert float(strength[part].std()) == pytest.approx(12**-0.5, abs=0.02)
            assert float(sign[part].mean()) == pytest.approx(0, abs=0.08)
    assert np.corrcoef(drawn[0][1], drawn[1][1])[0, 1] == pytest.approx(0, abs=0.06)


def test_affine_draws_each_of_its_moves(monkeypatch):
    backs = []
    monkeypatch.setattr("withstand.training.augment.warp.warp", lambda x, back, mode: backs.append(back) or x)

    def matrices(text):
        parse(text, "augmentation")(Batch(torch.zeros(500, 1, 10, 20), None), a_step(500), 3)
        return invert(backs[-1]).unbind(1)

    def assert_even(values, bound):
        assert values.abs().max() <= bound + 1e-5
        assert values.min() < -0.95 * bound < 0.95 * bound < values.max()

    turn, _ = matrices("affine(25, shear=0, shift=0, scale=0)")
    assert_even(torch.atan2(turn[:, 1], turn[:, 0]), math.radians(25))
    across, down = matrices("affine(0, shear=0.25, shift=0, scale=0)")
    assert_even(across[:, 1], 0.25)
    assert_even(down[:, 0], 0.25)
    across, down = matrices("affine(0, shear=0, shift=0.25, scale=0)")
    assert_even(across[:, 2], 5)
    assert_even(down[:, 2], 2.5)
    across, down = matrices("affine(0, shear=0, shift=0, scale=0.2)")
    assert_even(across[:, 0] - 1, 0.2)
    assert torch.allclose(across[:, 0], down[:, 1])


def test_light_changes_brightness_and_contrast_within_their_bounds():
    x = torch.tensor([0.4, 0.6]).view(1, 1, 1, 2).expand(500, 1, 1, 2)
    dim, bright = parse("light(0.3, contrast=0)", "augmentation")(Batch(x, None), a_step(500), 3).x.flatten(1).unbind(1)
    assert torch.allclose(bright, dim * 1.5)
    assert 0.279 < dim.min() < 0.29
    assert 0.51 < dim.max() < 0.521
    low, high = parse("light(0, contrast=0.3)", "augmentation")(Batch(x, None), a_step(500), 3).x.flatten(1).unbind(1)
    assert torch.allclose(low + high, torch.ones(500))
    assert 0.139 < (high - low).min() < 0.145
    assert 0.255 < (high - low).max() < 0.261


def test_operations_are_made_with_their_share():
    x = Rows.count(0, 4000).uniform((1, 4, 4), "images")
    step = a_step(4000)
    assert torch.equal(parse("randaugment(2, share=0)", "augmentation")(Batch(x, None), step, 3).x, x)
    moved = (parse("randaugment(1, share=0.5)", "augmentation")(Batch(x, None), step, 3).x != x).flatten(1).any(1)
    # not by the identity, nor by colour and equalise in grey images of 4x4; shifts of less than a pixel, small shears
    assert 0.5 * 8 / 14 < moved.float().mean() < 0.5 * 11 / 14


def test_a_window_is_cut_off_at_the_border():
    middle = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.99, 0.5]])
    found = window(middle, torch.Size((8, 8)), 0.375)[:, 0]
    assert found.sum((1, 2)).tolist() == [9, 4, 6]
    assert found[0, 3:6, 3:6].all()
    assert found[1, :2, :2].all()
    assert found[2, 6:, 3:6].all()
    assert window(torch.full((1, 2), 0.5), torch.Size((7, 7)), 0.5).sum() == 16  # 3.5 pixels are 4


def test_cutout_is_grey_in_images_and_nothing_in_series():
    cutout = parse("cutout(0.5)", "augmentation")
    image = cutout(Batch(torch.ones(N, 3, 8, 8), None), a_step(), 3).x
    assert set(image.unique().tolist()) == {0.5, 1.0}
    series = cutout(Batch(torch.ones(N, 2, 40), None), a_step(box=None), 3).x
    assert set(series.unique().tolist()) == {0.0, 1.0}
    assert (series == 0).any(1).sum(1).max() == 20
    with pytest.raises(BadInput, match="series"):
        cutout(Batch(torch.ones(N, 2), None), a_step(box=None), 3)


def test_affine_keeps_to_its_bounds():
    """A bright pixel in the middle shifts no further than was said."""
    x = torch.zeros(200, 1, 33, 33)
    x[:, :, 16, 16] = 1
    moved = parse("affine(30, shear=0, shift=0.1, scale=0)", "augmentation")(Batch(x, None), a_step(200), 3).x[:, 0]
    at = torch.arange(33.0) - 16
    mass = moved.sum((1, 2))
    across, along = (moved.sum(1) * at).sum(1) / mass, (moved.sum(2) * at).sum(1) / mass
    assert torch.cat([across, along]).abs().max() <= 3.3 + 0.1
    assert across.std() > 1
    assert along.std() > 1


def test_noise_has_its_deviation_and_no_range_where_there_is_none():
    x = torch.zeros(50, 1, 400)
    noisy = parse("add_noise(0.3)", "augmentation")(Batch(x, None), a_step(50, box=None), 3).x
    assert noisy.std() == pytest.approx(0.3, rel=0.03)
    assert noisy.min() < -0.5
