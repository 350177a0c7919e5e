"""Digital kinds against colorsys, Pillow, scipy and OpenCV."""

import colorsys
import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from withstand.corruptions import corrupt, filters
from withstand.corruptions.digital import _affine, _grid, _sample, contrast, elastic_transform, pixelate, saturate
from withstand.corruptions.kinds import uniform


def test_contrast_keeps_the_mean_of_each_channel_of_each_image(pixels, job):
    x = pixels.float()
    out = contrast(x, 0.3, job(2))
    assert torch.allclose(out.mean((2, 3)), x.mean((2, 3)), atol=1e-3)
    assert torch.allclose(out.std((2, 3)), 0.3 * x.std((2, 3)), atol=1e-3)


@pytest.mark.parametrize("c", [(0.3, 0), (5, 0.1)])
def test_saturate_scales_the_saturation_of_hsv(c, job):
    x = torch.randint(0, 256, (1, 3, 9, 9), generator=torch.Generator().manual_seed(0)).float()
    x[0, :, 0, :3] = torch.tensor([0.0, 90, 255])  # black, grey and white have hue 0
    out = saturate(x, c, job(1))
    for row in range(9):
        for column in range(9):
            hue, saturation, value = colorsys.rgb_to_hsv(*(x[0, :, row, column] / 255).tolist())
            if value:
                expected = colorsys.hsv_to_rgb(hue, min(saturation * c[0] + c[1], 1), value)
                assert (out[0, :, row, column] / 255).tolist() == pytest.approx(expected, abs=1e-5)
    assert not out[0, :, 0, 0].any()


def through_pillow(x: torch.Tensor, change) -> torch.Tensor:
    made = [np.atleast_3d(np.asarray(change(Image.fromarray(np.squeeze(i.permute(1, 2, 0).numpy()))))) for i in x]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("scale", [0.95, 0.65, 0.6, 0.5, 0.4, 0.3, 0.25])
def test_pixelate_is_pillows_box_filter(pixels, scale, job):
    def change(image: Image.Image) -> Image.Image:
        small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BOX)

    assert torch.equal(pixelate(pixels.float(), scale, job(2)).byte(), through_pillow(pixels, change))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_jpeg(pixels, channels):
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=10)
        return Image.open(file)

    x = pixels[:, :channels]
    assert torch.equal(corrupt(x, "jpeg_compression", 4, preset="imagenet"), through_pillow(x, change))


@pytest.mark.parametrize("sigma", [0.5, 2.0, 40.0])
def test_gaussian_with_reflection_is_the_filter_of_scipy_however_wide(sigma):
    x = np.random.default_rng(0).random((2, 3, 20, 31))
    ours = filters.gaussian(torch.from_numpy(x).float(), sigma, 3.0, "reflect")
    expected = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="reflect", truncate=3)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_sample_with_reflection_is_map_coordinates_of_scipy():
    x = torch.rand(1, 1, 13, 17, generator=torch.Generator().manual_seed(0))
    place = torch.rand(1, 2, 13, 17, generator=torch.Generator().manual_seed(1)) * 60 - 20
    expected = ndimage.map_coordinates(x[0, 0].double().numpy(), place[0].double().numpy(), order=1, mode="reflect")
    np.testing.assert_allclose(_sample(x, place, "reflect")[0, 0].numpy(), expected, atol=1e-4)


def test_affine_step_is_warp_affine_of_opencv(photos):
    x = photos[:1].float()
    moved = torch.tensor([[[12.0, -9.0], [20.0, 15.0], [-18.0, 3.0]]])
    ours = _sample(x, _affine(moved, 224, 224), "mirror")[0].permute(1, 2, 0).numpy()
    corners = 112 + 74 * np.float32([[1, 1], [1, -1], [-1, -1]])
    matrix = cv2.getAffineTransform(corners, corners + moved[0].numpy())
    image = x[0].permute(1, 2, 0).numpy()
    expected = cv2.warpAffine(image, matrix, (224, 224), borderMode=cv2.BORDER_REFLECT_101)
    difference = np.abs(ours - expected)
    assert difference.mean() < 0.5  # OpenCV rounds positions to 1/32 pixel
    assert difference.max() < 20


def test_affine_of_points_that_stay_is_the_identity(pixels):
    place = _affine(torch.zeros(2, 3, 2), 37, 45)
    assert torch.allclose(place, _grid(37, 45, place.device).expand(2, -1, -1, -1), atol=1e-4)


def test_elastic_displacements_are_smooth_fields_times_alpha(job):
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    field = uniform(job(1).rows, (2, 32, 32), "displacement").double().numpy()[0] * 2 - 1
    smooth = ndimage.gaussian_filter(field, (0, 32 * 0.03, 32 * 0.03), mode="reflect", truncate=3)
    place = np.mgrid[:32, :32] + 32 * 0.1 * smooth
    expected = ndimage.map_coordinates(x[0, 0].double().numpy(), place, order=1, mode="reflect")
    np.testing.assert_allclose(elastic_transform(x, (0.1, 0.03, 0), job(1))[0, 0].numpy(), expected, atol=0.02)


def test_elastic_lengths_are_shares_of_the_side_and_of_244_pixels_for_imagenet(job):
    x = torch.arange(224.0).expand(1, 1, 224, 224)  # a ramp shows how far the affine map moves the centre
    moved = (uniform(job(1).rows, (3, 2), "affine") * 2 - 1)[0]
    for preset, unit in (("imagenet", 244), ("cifar", 224)):
        out = elastic_transform(x, (0, 0, 0.02), job(1, preset=preset))
        source = _affine(0.02 * unit * moved[None], 224, 224)[0, 1, 112, 112]
        assert out[0, 0, 112, 112] == pytest.approx(source.item(), abs=1e-3)
