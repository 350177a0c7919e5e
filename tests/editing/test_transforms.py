"""Size, place and direction: what is asked for is met, nothing is cut, colours come from the object alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.editing.pictures import blob
from withstand.editing.transforms import CannotMeet, Placement, box, move, resize, room, turn


def placed(*numbers) -> Placement:
    return Placement.as_it_is(blob(*numbers).numpy())


def rate(at: Placement) -> float:
    return float(at.silhouette.mask(*at.mask.shape).mean())


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(48, 120), st.integers(48, 120)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.floats(0.02, 0.6),
    st.sampled_from([0, 30, 90, 200]),
)
def test_a_size_is_met_within_five_per_cent_and_nothing_is_cut_or_it_is_refused(size, at, wanted, degrees):
    h, w = 10 + at[0] * (size[0] - 10), 10 + at[1] * (size[1] - 10)
    mask = blob(*size, at[2] * (size[0] - h), at[3] * (size[1] - w), h, w).numpy()
    assume(mask.mean() > 0.005)
    start = Placement.as_it_is(mask)
    try:
        start = turn(start, degrees, "exact")
        made = resize(start, wanted, "exact")
    except CannotMeet as reason:
        assert str(reason)  # noqa: PT017 (either is right)
        return
    patch = made.silhouette
    assert patch.within(*size)
    assert patch.shape.sum() == pytest.approx(wanted * mask.size, rel=0.01, abs=0.5)
    assert patch.shape.sum() == pytest.approx(wanted * mask.size, rel=0.05)


def test_an_ellipse_fits_at_any_rate_that_its_box_allows():
    start = placed(100, 100, 30, 40, 20, 20)  # a disc may take pi / 4 of the picture
    for wanted in (0.02, 0.1, 0.5, 0.75):
        assert rate(resize(start, wanted, "exact")) == pytest.approx(wanted, rel=0.05)
    with pytest.raises(CannotMeet, match="would not fit"):
        resize(start, 0.85, "exact")


def test_resizing_keeps_the_middle_where_there_is_room_and_borders_that_were_touched():
    free = placed(100, 100, 30, 40, 20, 20)
    top, left, bottom, right = box(resize(free, 0.1, "exact").silhouette.mask(100, 100))
    assert (top + bottom) / 2 == pytest.approx(40, abs=1)
    assert (left + right) / 2 == pytest.approx(50, abs=1)
    corner = placed(100, 100, 0, 70, 30, 30)
    top, left, bottom, right = box(resize(corner, 0.02, "exact").silhouette.mask(100, 100))
    assert (top, right) == (0, 100)
    assert (bottom, 100 - left) == pytest.approx((16, 16), abs=2)
    band = np.zeros((100, 100), bool)
    band[40:60] = True  # both sides: it shrinks towards the middle
    top, left, bottom, right = box(resize(Placement.as_it_is(band), 0.05, "exact").silhouette.mask(100, 100))
    assert (left + right) / 2 == pytest.approx(50, abs=1)


def test_the_present_size_and_no_turn_change_nothing():
    start = placed(60, 80, 10, 20, 30, 25)
    assert resize(start, rate(start), "exact") is start
    assert resize(start, 1.009 * rate(start), "exact") is start
    assert turn(start, 0, "exact") is start
    assert turn(start, 720, "published") is start
    assert not start.moved


def test_full_is_the_largest_crop_of_the_pictures_shape():
    start = placed(60, 120, 20, 10, 20, 20)
    made = resize(start, "full", "exact")
    top, left, bottom, right = box(made.silhouette.mask(60, 120))
    assert (bottom - top, right - left) == pytest.approx((60, 60), abs=1)
    assert top <= 1
    # the crop is 20 x 40 and leaves column 20, the middle of the object, where it is; but there is no room to its left
    assert left == 0
    wide = placed(60, 120, 40, 30, 10, 60)
    top, left, bottom, right = box(resize(wide, "full", "exact").silhouette.mask(60, 120))
    assert (left, right) == pytest.approx((0, 120), abs=1)
    assert (top + bottom) / 2 == pytest.approx(45, abs=1)  # where it was
    assert (bottom - top) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("degrees", [90, 180, -90, 45, 30])
def test_a_turn_is_counter_clockwise_about_the_middle_of_the_object(degrees):
    mask = np.zeros((101, 101), bool)
    mask[45:52, 50:81] = True  # a bar whose middle is in row 48.5, column 65.5
    mask[40:52, 74:81] = True  # and a mark at its right end, upwards
    top, left, bottom, right = box(mask)
    middle = (top + bottom) / 2, (left + right) / 2
    seen = turn(Placement.as_it_is(mask), degrees, "exact").silhouette.mask(101, 101)
    y, x = np.nonzero(mask)
    a = math.radians(degrees)
    dy, dx = y + 0.5 - middle[0], x + 0.5 - middle[1]
    to_y, to_x = middle[0] + math.cos(a) * dy - math.sin(a) * dx, middle[1] + math.sin(a) * dy + math.cos(a) * dx
    expected = to_y.mean(), to_x.mean()
    got_y, got_x = np.nonzero(seen)
    assert (got_y.mean() + 0.5, got_x.mean() + 0.5) == pytest.approx(expected, abs=0.51)
    assert seen.sum() == mask.sum()
    hits = seen[np.floor(to_y).astype(int).clip(0, 100), np.floor(to_x).astype(int).clip(0, 100)]
    assert hits.mean() > 0.9


def test_a_turned_object_is_kept_within_the_picture_or_refused():
    bar = np.zeros((60, 80), bool)
    bar[2:6, 10:60] = True
    seen = turn(Placement.as_it_is(bar), 90, "exact").silhouette
    assert seen.within(60, 80)
    assert seen.top == 0
    assert seen.shape.shape == pytest.approx((50, 4), abs=1)
    bar[2:6] = True
    with pytest.raises(CannotMeet, match="fit into the picture"):
        turn(Placement.as_it_is(bar), 90, "exact")


def test_published_turns_are_about_the_middle_of_the_picture_and_may_cut():
    mark = np.zeros((100, 100), bool)
    mark[10:20, 45:55] = True
    seen = turn(Placement.as_it_is(mark), 90, "published").silhouette.mask(100, 100)
    assert box(seen) == pytest.approx((45, 10, 55, 20), abs=1)  # from above to the left
    corner = np.zeros((100, 100), bool)
    corner[0:20, 0:20] = True
    seen = turn(Placement.as_it_is(corner), 45, "published").silhouette
    assert not seen.within(100, 100)
    corner[:] = False
    corner[0:8, 0:8] = True
    with pytest.raises(CannotMeet, match="leaves it"):
        turn(Placement.as_it_is(corner), 45, "published")


def test_published_sizes_are_within_0_015_and_stay_where_they_are_nearer():
    start = placed(100, 100, 30, 40, 40, 40)
    assert rate(resize(start, 0.05, "published")) == pytest.approx(0.05, abs=0.015)
    assert resize(start, rate(start) - 0.014, "published") is start
    assert resize(start, rate(start) - 0.016, "published") is not start
    assert resize(start, rate(start) - 0.014, "exact") is not start
    edge = placed(100, 100, 0, 0, 40, 40)
    assert not resize(edge, 0.3, "published").silhouette.within(100, 100)
    assert rate(resize(start, 0.89, "published")) == rate(resize(start, "full", "published"))  # more than there can be


def test_a_move_is_exact_or_refused():
    start = placed(60, 80, 10, 20, 30, 24)
    made = move(start, 30, 56)
    assert box(made.silhouette.mask(60, 80)) == (30, 56, 60, 80)
    assert not made.resampled
    assert room(start) == (31, 57)
    with pytest.raises(CannotMeet, match="30 x 24 pixels would be cut"):
        move(start, 31, 56)
    with pytest.raises(CannotMeet, match="no other place"):
        room(Placement.as_it_is(np.ones((5, 5), bool)))


@pytest.mark.parametrize("change", [lambda p: resize(p, 0.02, "exact"), lambda p: turn(p, 33, "exact")])
def test_colours_of_the_object_are_not_mixed_with_what_was_around_it(change):
    mask = blob(90, 90, 20, 20, 44, 50).numpy()
    image = np.where(mask[..., None], np.float32(0.8), np.float32(0.1)).repeat(3, 2)
    patch = change(Placement.as_it_is(mask)).cut_out(image)
    np.testing.assert_allclose(patch.pixels[patch.shape], 0.8, atol=1e-5)
    scene = np.full((90, 90, 3), 0.3, np.float32)
    made = patch.paste(scene)
    assert set(np.unique(made.round(4))) == {np.float32(0.3), np.float32(0.8)}
    np.testing.assert_array_equal(made[..., 0] > 0.5, patch.mask(90, 90))


def test_shrinking_averages_what_it_leaves_out():
    g = np.random.default_rng(0)
    image = (g.random((128, 128, 1)) > 0.5).astype(np.float32).repeat(3, 2)
    mask = np.zeros((128, 128), bool)
    mask[4:124, 4:124] = True
    at = Placement(mask, 0.25, 0.0, 64.0, 64.0)
    patch = at.cut_out(image)
    assert patch.pixels.std() < 0.2  # single pixels, as without a filter, have 0.5
    assert patch.pixels.mean() == pytest.approx(0.5, abs=0.02)


def test_one_resampling_of_a_chain_is_sharper_than_two():
    image = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)).numpy()
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    both = turn(turn(Placement.as_it_is(mask), 20, "exact"), -20, "exact")
    assert not both.resampled  # it is as it was, which two resamplings would not be
    np.testing.assert_array_equal(both.cut_out(image).pixels, image[16:48, 16:48])


@pytest.mark.parametrize(("scale", "degrees"), [(1, 0), (1, 90), (0.7, 0), (1.3, 33), (1, 45)])
def test_a_shifted_object_is_what_it_would_be_found_to_be_there(scale, degrees):
    mask = blob(60, 61, 10, 12, 21, 30).numpy()
    start = Placement(mask, scale, degrees, 20.5, 27.25)
    moved = start.moved_by(7, 2)
    fresh = Placement(mask, scale, degrees, moved.row, moved.column)
    for seen in (moved.silhouette, moved.cut_out(np.full((60, 61, 3), 0.4, np.float32))):
        np.testing.assert_array_equal(seen.mask(60, 61), fresh.silhouette.mask(60, 61))
        assert (seen.top, seen.left) == (start.silhouette.top + 7, start.silhouette.left + 2)
