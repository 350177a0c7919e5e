"""How photographs are shown: the same pixels as torchvision's and timm's own transforms."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from withstand.data.shift.view import View
from withstand.errors import BadInput

SHAPES = [(300, 200), (200, 311), (256, 256), (224, 224), (90, 150), (257, 255)]


def photo(size: tuple[int, int]) -> Image.Image:
    """A random picture of (width, height)."""
    values = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_is_torchvisions_resize_256_and_centre_crop_224(shape):
    theirs = Compose([Resize(256, InterpolationMode.BILINEAR), CenterCrop(224)])(photo(shape))
    assert (np.asarray(View()(photo(shape))) == np.asarray(theirs)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(("size", "crop", "interpolation"), [(224, 0.9, "bicubic"), (96, 1.0, "bilinear")])
def test_a_crop_ratio_means_what_timm_means_by_it(shape, crop_mode, size, crop, interpolation):
    from timm.data.transforms_factory import transforms_imagenet_eval

    theirs = transforms_imagenet_eval(
        (size, size), crop_pct=crop, crop_mode=crop_mode, interpolation=interpolation, use_prefetcher=True
    )(photo(shape))
    view = View.cropped(size, crop, interpolation, squash=crop_mode == "squash")
    assert (np.asarray(view(photo(shape))).transpose(2, 0, 1) == theirs.numpy()).all()


def test_whole_leaves_a_file_of_the_right_size_alone_and_never_crops():
    right = photo((224, 224))
    assert View()(right, "whole") is right
    other = photo((448, 448))
    assert (np.asarray(View()(other, "whole")) == np.asarray(other.resize((224, 224), Image.Resampling.BILINEAR))).all()


def test_inside_takes_a_border_of_two_pixels_off_before_anything_else():
    framed = np.zeros((228, 228, 3), np.uint8)
    framed[2:-2, 2:-2] = 255
    assert np.asarray(View()(Image.fromarray(framed), "inside")).min() == 255
    wide = photo((304, 204))
    cut = Image.fromarray(np.asarray(wide)[2:-2, 2:-2])
    theirs = Compose([Resize(224, InterpolationMode.BILINEAR), CenterCrop(224)])(cut)
    assert (np.asarray(View()(wide, "inside")) == np.asarray(theirs)).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: View(interpolation="bicubical"), "Did you mean bicubic"),
        (lambda: View(224, 200), "224 cut out of 200"),
        (lambda: View.cropped(224, 1.1, "bilinear"), "a share in"),
        (lambda: View.cropped(224, 0, "bilinear"), "a share in"),
    ],
)
def test_views_that_cannot_be_are_refused(make, said):
    with pytest.raises(BadInput, match=said):
        make()
