"""Masks in every form, masks that are unusable, and masks that are found."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.editing.pictures import blob, scene
from withstand.editing import GrabCut, as_mask
from withstand.editing.masks import fault, largest
from withstand.errors import BadInput


def test_masks_of_every_form_are_binarised_alike(tmp_path):
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    expected = torch.tensor([[False, False, True, True]])
    Image.fromarray(levels).save(tmp_path / "mask.png")
    forms = levels, torch.tensor(levels)[None], levels / 255, expected, expected.numpy(), tmp_path / "mask.png"
    for form in (*forms, levels.astype(int)):
        assert torch.equal(as_mask(form, 1, 4), expected)
    Image.fromarray(levels).convert("RGB").save(tmp_path / "colour.png")
    assert torch.equal(as_mask(str(tmp_path / "colour.png"), 1, 4), expected)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((4, 5), bool), "4 x 5; allowed: 4 x 4"),
        (np.eye(4, dtype=np.uint8), "0 and 1 as whole numbers"),
        (np.full((4, 4), 300), "300"),
        (np.full((4, 4), 1.5), "outside 0..1"),
        (np.full((4, 4), np.nan), "outside 0..1"),
        (np.full((4, 4), "x"), "dtype"),
    ],
)
def test_what_is_no_mask_is_refused(mask, said):
    with pytest.raises(BadInput, match=said):
        as_mask(mask, 4, 4)


@pytest.mark.parametrize(
    ("pixels", "said"), [(0, "empty"), (100, "full"), (95, "above 90%"), (90, ""), (1, ""), (40, "")]
)
def test_masks_of_too_much_or_nothing_have_a_fault(pixels, said):
    mask = (torch.arange(100) < pixels).reshape(10, 10)
    assert said in fault(mask)
    assert bool(fault(mask)) == bool(said)


def test_half_a_per_cent_is_the_least():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[0, :3] = True
    assert not fault(mask)
    mask[0, 2] = False
    assert "below 0.5%" in fault(mask)


def test_the_largest_part_is_kept_and_its_holes_filled():
    ring = blob(40, 40, 5, 5, 20, 20)
    mask = ring & ~blob(40, 40, 12, 12, 6, 6)
    mask[30:33, 30:33] = True
    assert torch.equal(largest(mask), ring)
    assert not largest(torch.zeros(5, 5, dtype=torch.bool)).any()


@pytest.mark.parametrize("factor", [1, 4])
def test_grabcut_finds_a_red_ellipse_the_same_each_time(picture, factor):
    image, mask = (t.repeat_interleave(factor, -1).repeat_interleave(factor, -2) for t in picture)
    found = GrabCut()(image)
    assert found.shape == mask.shape
    assert (found & mask).sum() / (found | mask).sum() > 0.95
    assert torch.equal(GrabCut()(image), found)


def test_grabcut_finds_nothing_where_nothing_is():
    assert fault(GrabCut()(torch.full((3, 40, 40), 0.5)))
    assert not GrabCut()(scene(2, 2)).any()
    with pytest.raises(BadInput, match="rounds"):
        GrabCut(rounds=0)
