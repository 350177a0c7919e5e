"""Weather against loops, colorsys and the sheet's formulas."""

import colorsys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from withstand.corruptions import filters
from withstand.corruptions.frost import procedural, textures
from withstand.corruptions.kinds import luma, normal, uniform
from withstand.corruptions.weather import _drops, brightness, fog, frost, plasma, snow, spatter
from withstand.errors import BadInput


def test_brightness_raises_the_value_of_hsv(job):
    x = torch.randint(0, 256, (1, 3, 9, 9), generator=torch.Generator().manual_seed(0)).float()
    x[0, :, 0, 0] = 0
    out = brightness(x, 0.3, job(1))
    for row in range(9):
        for column in range(9):
            hue, saturation, value = colorsys.rgb_to_hsv(*(x[0, :, row, column] / 255).tolist())
            expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
            assert (out[0, :, row, column] / 255).tolist() == pytest.approx(expected, abs=1e-5)


def diamond_square(noise: np.ndarray, decay: float) -> np.ndarray:
    """Point by point on a torus; noise in [-1, 1) for every point."""
    side = len(noise)
    height = np.zeros((side, side))
    step, wibble = side, 100.0

    def mean(corners: list[tuple[int, int]]) -> float:
        return sum(height[r % side, q % side] for r, q in corners) / 4

    while step >= 2:
        half = step // 2
        for r in range(half, side, step):
            for q in range(half, side, step):
                around = [(r + a, q + b) for a in (-half, half) for b in (-half, half)]
                height[r, q] = mean(around) + noise[r, q] * wibble**2
        for r in range(0, side, half):
            for q in range(half if r % step == 0 else 0, side, step):
                around = [(r - half, q), (r + half, q), (r, q - half), (r, q + half)]
                height[r, q] = mean(around) + noise[r, q] * wibble**2
        step, wibble = half, wibble / decay
    height -= height.min()
    return height / height.max()


def test_plasma_is_diamond_square(job):
    noise = uniform(job(2).rows, (16, 16), "plasma").double().numpy() * 2 - 1
    ours = plasma(job(2), 16, 1.7).numpy()
    for row in range(2):
        np.testing.assert_allclose(ours[row], diamond_square(noise[row], 1.7), atol=1e-5)


def test_fog_lays_the_plasma_over_the_image_and_keeps_its_maximum(job):
    x = torch.randint(0, 200, (2, 3, 20, 32), generator=torch.Generator().manual_seed(0)).float()
    haze = plasma(job(2), 32, 2.0)[:, None, :20]
    most = x.amax((1, 2, 3), keepdim=True) / 255
    expected = 255 * (x / 255 + 1.5 * haze) * most / (most + 1.5)
    assert torch.allclose(fog(x, (1.5, 2.0), job(2)), expected, atol=1e-3)
    assert plasma(job(2), 256, 2.0).shape == (2, 256, 256)


def test_snow_whitens_and_adds_its_flakes_twice(job):
    x = torch.randint(0, 256, (1, 3, 38, 38), generator=torch.Generator().manual_seed(0)).float()
    loc, scale, zoom, threshold, radius, sigma, keep = 0.55, 0.3, 4, 0.9, 12, 8, 0.7
    noise = normal(job(1).rows, (1, 10, 10), "flakes").double().numpy()[0, 0] * scale + loc
    flakes = ndimage.zoom(noise, zoom, order=1)[1:39, 1:39]  # 40 pixels, trimmed
    flakes[flakes < threshold] = 0
    flakes = np.floor(np.clip(flakes, 0, 1) * 255)
    angle = uniform(job(1).rows, (), "angle") * 90 - 135
    assert -135 <= angle.item() <= -45
    layer = filters.motion(torch.from_numpy(flakes)[None, None].float(), radius, sigma, angle).round()[0, 0].numpy()
    pixels = x[0].numpy() / 255
    grey = np.tensordot([0.299, 0.587, 0.114], pixels, 1)
    expected = keep * pixels + (1 - keep) * np.maximum(pixels, 1.5 * grey + 0.5)
    expected = expected * 255 + layer + layer[::-1, ::-1]
    ours = snow(x, (loc, scale, zoom, threshold, radius, sigma, keep), job(1))[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1.01)  # one level where a flake's rounding falls the other way
    assert np.abs(ours - expected).mean() < 0.01


def numbered(tall: int, wide: int, count: int) -> list[np.ndarray]:
    """Textures whose pixels say where they come from: (row, column, texture)."""
    rows, columns = np.mgrid[:tall, :wide].astype(np.uint8)
    return [np.stack([rows, columns, np.full_like(rows, k)], -1) for k in range(count)]


def test_frost_adds_a_random_crop_of_one_of_the_first_five_textures(job):
    n, h, w = 200, 32, 24
    given = textures(numbered(64, 48, 6), "imagenet", h, w)
    out = frost(torch.zeros(n, 3, h, w), (1, 0.5), job(n, textures=given)) * 2
    assert set(out[:, 2].unique().tolist()) == {0, 1, 2, 3, 4}
    tops, lefts = out[:, 0, 0, 0], out[:, 1, 0, 0]
    for places, last in ((tops, 32), (lefts, 24)):  # every crop from the first to the last possible
        assert places.min() <= 2
        assert last - 2 <= places.max() <= last
    rows, columns = torch.arange(h).float(), torch.arange(w).float()
    assert torch.equal(out[:, 0], (tops[:, None, None] + rows[:, None]).expand(n, h, w))
    assert torch.equal(out[:, 1], (lefts[:, None, None] + columns).expand(n, h, w))
    bright = frost(torch.full((n, 3, h, w), 100.0), (0.8, 0.5), job(n, textures=given))
    assert torch.allclose(bright, 80 + out / 2)


def test_frost_textures_shrink_for_cifar_and_grow_to_the_image(tmp_path):
    given = numbered(100, 150, 1)
    assert textures(given, "imagenet", 32, 32)[0].shape == (3, 100, 150)
    assert textures(given, "cifar", 8, 8)[0].shape == (3, 20, 30)
    assert textures(given, "cifar", 32, 32)[0].shape == (3, 32, 48)
    assert textures(given, "imagenet", 224, 60)[0].shape == (3, 224, 336)
    for k in range(7):
        Image.fromarray(np.full((50, 50, 3), 10 * k, np.uint8)).save(tmp_path / f"frost{k}.png")
    assert [t.mean().item() for t in textures(tmp_path, "imagenet", 8, 8)] == [0, 10, 20, 30, 40]


def test_bad_frost_textures_are_refused(tmp_path):
    (tmp_path / "frost1.png").write_bytes(b"not an image")
    for given in (tmp_path / "none", [], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3))], tmp_path):
        with pytest.raises(BadInput, match="frost_textures"):
            textures(given, "cifar", 8, 8)


def test_procedural_frost_has_the_mean_and_contrast_of_the_photographs():
    # Mean RGB and deviation of the grey value of the five published textures that are drawn.
    published = [(131, 18), (207, 22), (207, 22), (152, 29), (123, 43)]
    made = procedural()
    assert len(made) == 5
    for texture, (mean, deviation) in zip(made, published):
        grey = texture.mean(-1)
        assert texture.shape == (480, 640, 3)
        assert grey.mean() == pytest.approx(mean, abs=10)
        assert grey.std() == pytest.approx(deviation, abs=5)


def test_mud_is_mixed_in_where_the_blurred_liquid_is_dense(job):
    x = torch.full((1, 3, 48, 48), 200.0)
    liquid = normal(job(1).rows, (1, 48, 48), "liquid").double().numpy()[0, 0] * 0.3 + 0.65
    mask = ndimage.gaussian_filter(liquid, 1, mode="nearest") > 0.65
    mask = ndimage.gaussian_filter(mask.astype(float), 1.5, mode="nearest")
    mask[mask < 0.8] = 0
    assert 0.05 < (mask > 0).mean() < 0.6
    colour = np.array([63, 42, 20])[:, None, None]
    ours = spatter(x, (0.65, 0.3, 1, 0.65, 1.5, 1), job(1))[0].numpy()
    wrong = np.abs(ours - (200 * (1 - mask) + colour * mask)) > 1e-2
    assert wrong.mean() < 1e-3  # a mask value at the threshold itself may fall either way


def test_water_is_turquoise_light_that_is_strongest_at_its_full_strength(job):
    x = torch.zeros(3, 3, 64, 64)
    added = spatter(x, (0.65, 0.3, 2, 0.68, 0.5, 0), job(3))
    assert (added >= 0).all()
    assert torch.allclose(added / torch.tensor([175.0, 238, 238]).view(3, 1, 1), added[:, :1] / 175, atol=1e-6)
    assert (added[:, 0].amax((1, 2)) / 175).tolist() == pytest.approx([0.5] * 3, rel=1e-4)
    liquid = filters.gaussian(normal(job(3).rows, (1, 64, 64), "liquid") * 0.3 + 0.65, 2)
    assert not added[(liquid < 0.68).expand(-1, 3, -1, -1)].any()
    assert not spatter(x, (0.1, 0.01, 2, 0.68, 0.5, 0), job(3)).any()  # no liquid at all


def test_drops_shine_at_a_distance_from_the_edges_of_the_liquid():
    liquid = np.zeros((90, 90), np.uint8)
    liquid[5:75, 10:80] = 200
    liquid[12:20, 20:40] = 0
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    assert distance[liquid > 0].max() > 22  # so that the cut at 20 matters
    distance = (ndimage.uniform_filter(np.minimum(distance, 20).astype(float), 3, mode="mirror") + 1e-4).astype(int)
    counts = np.bincount(distance.ravel(), minlength=256)
    first = np.flatnonzero(counts)[0]
    equalised = np.round(255 * (np.cumsum(counts) - counts[first]) / (distance.size - counts[first]))[distance]
    relief = np.clip(
        ndimage.correlate(equalised, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror"), 0, 255
    )
    shine = liquid * np.round(ndimage.uniform_filter(relief, 3, mode="mirror"))
    np.testing.assert_allclose(_drops(liquid), shine / shine.max(), atol=1e-5)


def test_luma_weights_sum_to_one():
    assert torch.allclose(luma(torch.full((1, 3, 2, 2), 77.0)), torch.full((1, 1, 2, 2), 77.0))
