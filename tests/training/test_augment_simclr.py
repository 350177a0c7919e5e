"""SimCLR's augmentations beside torchvision's functions, which they do example by example."""

import pytest
import torch
import torchvision.transforms.functional as V

from withstand.errors import BadInput
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import parse
from withstand.training.augment import simclr
from withstand.training.augment.simclr import ColourJitter, GaussianBlur, Grayscale, Intensity, RandomResizedCrop
from withstand.training.recipe import Step

ALL = ("random_resized_crop", "colour_jitter", "grayscale(0.5)", "gaussian_blur", "intensity")


def images(n: int = 6, c: int = 3, h: int = 12, w: int = 10) -> torch.Tensor:
    return Rows.count(0, n).uniform((c, h, w), "images")


def step(n: int, seed: int = 0) -> Step:
    return Step(0, 1, 0, 1, seed, Rows.count(seed, n))


def done(augmentation, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augmentation(Batch(x), step(len(x), seed), 10).x


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("shape", [(3, 12, 10), (1, 8, 8), (3, 4, 8, 8)])
def test_each_example_is_drawn_by_itself_and_stays_in_range(text, shape):
    x = Rows.count(0, 6).uniform(shape, "images")
    augmentation = parse(text, "augmentation")
    made = done(augmentation, x)
    assert made.shape == x.shape
    assert made.dtype == x.dtype
    assert made.min() >= 0
    assert made.max() <= 1
    few = torch.tensor([4, 1])
    whole = step(6)
    part = Step(0, 1, 0, 1, 0, whole.rows.take(few))
    assert torch.allclose(augmentation(Batch(x[few]), part, 10).x, made[few], atol=1e-6)
    if text != "grayscale(0.5)" or shape[0] == 3:
        assert not torch.equal(made, x)
        assert not torch.equal(made, done(augmentation, x, 1))


def test_all_frames_of_a_clip_get_the_same():
    frame = images(4, 3, 8, 8)
    clip = frame[:, :, None].expand(-1, -1, 5, -1, -1).contiguous()
    for text in ALL:
        augmentation = parse(text, "augmentation")
        made = done(augmentation, clip)
        assert torch.allclose(made[:, :, 0], made[:, :, 4], atol=1e-6)
        assert torch.allclose(made[:, :, 0], done(augmentation, frame), atol=1e-5), text


def test_jitter_turns_what_it_says_in_its_order():
    x = images(300)
    u = step(300).rows.uniform((5,), "colour jitter")
    made = done(ColourJitter(0.3, 0.5, 0.7, 0.2, 0.8), x)
    for i in range(20):
        b, c, s = (float(1 + reach * (2 * u[i, k] - 1)) for k, reach in enumerate((0.3, 0.5, 0.7)))
        image = V.adjust_saturation(V.adjust_contrast(V.adjust_brightness(x[i], b), c), s)
        expected = V.adjust_hue(image, float(0.2 * (2 * u[i, 3] - 1))) if u[i, 4] < 0.8 else x[i]
        assert torch.allclose(made[i], expected, atol=2e-3)  # torchvision rounds the weights of grey to four digits


def test_jitter_is_the_same_in_any_range():
    x, jitter = images(), ColourJitter(p=1.0)
    wide = Step(0, 1, 0, 1, 0, Rows.count(0, 6), box=(-2.0, 3.0))
    assert torch.allclose(jitter(Batch(5 * x - 2), wide, 10).x, 5 * done(jitter, x) - 2, atol=1e-5)
    with pytest.raises(BadInput, match="declared range"):
        jitter(Batch(x), Step(0, 1, 0, 1, 0, Rows.count(0, 6), box=None), 10)


@pytest.mark.parametrize("text", ALL[:4])
@pytest.mark.parametrize("shape", [(7,), (3, 20)])
def test_what_is_no_picture_is_refused(text, shape):
    with pytest.raises(BadInput, match=r"\[N, C, H, W\]"):
        done(parse(text, "augmentation"), torch.rand(6, *shape))


def test_hue_is_that_of_torchvision():
    x, turns = images(), torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.33, 0.5])
    x[0, :, 0, 0] = 0.5  # grey has no hue
    expected = torch.stack([V.adjust_hue(image, float(t)) for image, t in zip(x, turns)])
    assert torch.allclose(simclr.hue(x, turns), expected, atol=1e-5)


def test_blur_is_that_of_torchvision():
    x, sigmas = images(), torch.tensor([0.1, 0.4, 0.8, 1.0, 1.5, 2.0])
    expected = torch.stack([V.gaussian_blur(image, [5, 5], [float(s)] * 2) for image, s in zip(x, sigmas)])
    assert torch.allclose(simclr.blur(x, sigmas, 2), expected, atol=1e-5)


def test_a_crop_of_whole_pixels_is_a_slice_enlarged():
    x = images(2, 3, 12, 12)
    boxes = torch.tensor([[3.0, 2.0, 6.0, 6.0], [0.0, 0.0, 12.0, 12.0]])
    made = simclr.crop(x, boxes)
    assert torch.allclose(made[1], x[1], atol=1e-5)
    inner = V.resize(x[0, :, 3:9, 2:8], [12, 12], antialias=False)
    assert torch.allclose(made[0, :, 1:-1, 1:-1], inner[:, 1:-1, 1:-1], atol=1e-5)
    flipped = simclr.crop(x, boxes, torch.tensor([True, False]))
    assert torch.allclose(flipped[0], made[0].flip(-1), atol=1e-5)
    assert torch.allclose(flipped[1], made[1], atol=1e-6)


def test_crops_lie_inside_with_area_and_shape_as_said():
    augmentation = RandomResizedCrop((0.2, 0.7), (0.5, 2.0))
    top, left, height, width = augmentation.boxes(Rows.count(0, 5000), 20, 30).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 20 + 1e-4).all()
    assert (left + width <= 30 + 1e-4).all()
    area, ratio = height * width / 600, width / height
    assert area.min() > 0.2 - 1e-4
    assert area.max() < 0.7 + 1e-4
    assert area.min() < 0.21
    assert area.max() > 0.67
    assert ratio.min() > 0.5 - 1e-4
    assert ratio.max() < 2 + 1e-4


def test_where_no_draw_fits_the_whole_image_is_taken():
    boxes = RandomResizedCrop((1.0, 1.0), (1.5, 2.0)).boxes(Rows.count(0, 3), 8, 8)
    assert torch.equal(boxes, torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(3, 4))


def test_shares_are_kept():
    x = images(4000, 3, 4, 4)
    for augmentation, share in ((ColourJitter(p=0.3), 0.3), (Grayscale(0.2), 0.2), (GaussianBlur(p=0.6), 0.6)):
        changed = (done(augmentation, x) != x).flatten(1).any(1).float().mean()
        assert abs(float(changed) - share) < 0.03
    assert torch.equal(done(Grayscale(1.0), x)[:, 0], done(Grayscale(1.0), x)[:, 2])


def test_intensity_is_one_factor_of_an_example():
    x = images(5) * 0.5
    ratio = (done(Intensity(0.5, 1.5), x) / x).flatten(1)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5)
    assert ratio.min() >= 0.5 - 1e-5
    assert ratio.max() <= 1.5 + 1e-5


@pytest.mark.parametrize(
    "text",
    [
        "random_resized_crop(scale=(0, 1))", "random_resized_crop(ratio=(2, 1))", "colour_jitter(brightness=-1)",
        "colour_jitter(hue=0.6)", "colour_jitter(p=2)", "grayscale(-1)", "gaussian_blur(sigma=(0, 1))",
        "gaussian_blur(kernel=0)", "intensity(2, 1)",
    ],
)  # fmt: skip
def test_bad_settings_are_refused(text):
    with pytest.raises(BadInput):
        parse(text, "augmentation")
