"""The contract of every edit, chains of them, and what is refused or skipped."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tests.editing.pictures import blob, scene
from withstand.editing import Adversarial, ObjectEditor, complexity, remove_object, texture
from withstand.editing.editor import check_steps
from withstand.errors import BadInput

EVERY = [
    ("identity", {}),
    ("background", {"complexity": -20}),
    ("background", {"complexity": 20.0, "remove": False}),
    ("random_background", {}),
    ("size", {"rate": "full"}),
    ("size", {"rate": 0.05}),
    ("position", {}),
    ("position", {"at": (3, 70)}),
    ("direction", {"degrees": 45}),
    ("direction", {"degrees": "random"}),
]
IN_PLACE = {"identity", "background", "random_background"}


@pytest.mark.parametrize("variant", ["exact", "published"])
@pytest.mark.parametrize(("kind", "params"), EVERY)
def test_every_edit_gives_a_picture_its_mask_and_its_measures(picture, kind, params, variant):
    image, mask = picture
    before = image.clone(), mask.clone()
    found = ObjectEditor(variant=variant).edit(image, mask, kind, key="one", **params)
    assert not found.skipped, found.reason
    assert found.image.shape == image.shape
    assert found.image.dtype == torch.float32
    assert found.image.min() >= 0
    assert found.image.max() <= 1
    assert found.rate == pytest.approx(found.mask.float().mean().item())
    assert found.complexity == complexity(found.image)
    assert (found.image[0] > found.image[2] + 0.3)[found.mask].float().mean() > 0.99, "the object is red"
    if kind in IN_PLACE:
        assert torch.equal(found.mask, mask)
        assert torch.equal(found.image[:, mask], image[:, mask])
    assert not torch.equal(found.image, image)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_floats_are_taken_as_float32(picture, dtype):
    image, mask = picture
    found = ObjectEditor().edit(image.to(dtype), mask, "background")
    assert found.image.dtype == torch.float32
    assert torch.equal(found.image[:, mask], image.to(dtype).float()[:, mask])


def test_the_control_returns_the_object_over_its_filled_place(picture):
    image, mask = picture
    found = ObjectEditor().edit(image, mask, "identity")
    assert torch.equal(found.image, torch.where(mask, image, remove_object(image, mask)))
    zero = ObjectEditor().edit(image, mask, "background", complexity=0)
    assert torch.equal(zero.image, found.image)


def test_a_background_edit_of_no_strength_without_removal_changes_no_bit(picture):
    image, mask = picture
    found = ObjectEditor().edit(image, mask, "background", complexity=0, remove=False)
    assert torch.equal(found.image, image)


def test_edits_that_ask_for_what_is_there_change_no_bit(picture):
    image, mask = picture
    present = float(mask.double().mean())
    steps = [("size", {"rate": present}), ("direction", {"degrees": 0}), ("position", {"at": (30, 20)})]
    for chain in ([steps[0]], [steps[1]], [steps[2]], steps):
        assert torch.equal(ObjectEditor().edits(image, mask, chain).image, image)


def test_complexity_follows_what_is_asked(picture):
    image, mask = picture
    seen = [ObjectEditor().edit(image, mask, "background", complexity=c).complexity for c in (-40, -20, 0, 20, 40)]
    assert all(a < b for a, b in itertools.pairwise(seen))


def test_a_moved_object_keeps_every_pixel_and_its_old_place_is_filled(picture):
    image, mask = picture
    found = ObjectEditor().edit(image, mask, "position", at=(60, 80))
    assert torch.equal(found.image[:, found.mask], image[:, mask])
    assert found.mask.sum() == mask.sum()
    assert torch.equal(found.image[:, ~found.mask], remove_object(image, mask)[:, ~found.mask])


def test_what_is_random_depends_on_seed_and_key_alone(picture):
    image, mask = picture
    steps = [("direction", {"degrees": "random"}), ("position", {}), ("random_background", {})]
    first = ObjectEditor(seed=1).edits(image, mask, steps, key="a")
    again = ObjectEditor(seed=1)
    again.edits(image, mask, steps, key="b")
    torch.manual_seed(5)
    assert torch.equal(again.edits(image, mask, steps, key="a").image, first.image)
    for other in (ObjectEditor(seed=2).edits(image, mask, steps, "a"), again.edits(image, mask, steps, "b")):
        assert not torch.equal(other.mask, first.mask)
    # adding an edit leaves the draws of the others alone
    assert torch.equal(again.edits(image, mask, steps[:2], key="a").mask, first.mask)


def test_random_places_and_directions_cover_what_they_may(picture):
    image, mask = picture
    tops, lefts, masks = set(), set(), []
    for key in range(60):
        found = ObjectEditor().edit(image, mask, "position", key=key)
        rows, columns = found.mask.any(1).nonzero(), found.mask.any(0).nonzero()
        tops.add(int(rows[0]))
        lefts.add(int(columns[0]))
        masks.append(found.mask)
    assert all(m.sum() == mask.sum() for m in masks)  # never cut
    assert min(tops) <= 5
    assert max(tops) >= 55
    assert max(lefts) - min(lefts) > 60
    from withstand.editing.editor import _Draws

    turns = {_Draws(0, key).degrees() for key in range(2000)}
    assert turns == {d for d in range(-45, 46) if d}


def test_a_chain_meets_all_of_its_edits(picture):
    image, mask = picture
    steps = [
        ("size", {"rate": 0.05}),
        ("direction", {"degrees": 45}),
        ("position", {"at": (0, 0)}),
        ("background", {"complexity": 20}),
    ]
    found = ObjectEditor().edits(image, mask, steps)
    assert found.rate == pytest.approx(0.05, rel=0.05)
    assert found.mask[0].any()
    assert found.mask[:, 0].any()
    plain = ObjectEditor().edits(image, mask, steps[:3])
    assert torch.equal(plain.mask, found.mask)
    assert torch.equal(plain.image[:, found.mask], found.image[:, found.mask])
    assert found.complexity > plain.complexity


def test_other_pictures_lend_their_scene(picture):
    image, mask = picture
    plain = torch.full((3, 50, 50), 0.25)
    found = ObjectEditor().edit(image, mask, "random_background", others=[plain])
    assert (found.image[:, ~mask] == 0.25).all()
    other, where = scene(96, 128, 7), blob(96, 128, 50, 80, 30, 30)
    whole = torch.where(where, torch.tensor([0.0, 1.0, 0.0])[:, None, None], other)
    found = ObjectEditor().edit(image, mask, "random_background", others=[(whole, where)])
    assert torch.equal(found.image[:, ~mask], remove_object(whole, where)[:, ~mask])
    found = ObjectEditor(segmenter=lambda _: where).edit(image, mask, "random_background", others=[(whole, None)])
    assert torch.equal(found.image[:, ~mask], remove_object(whole, where)[:, ~mask])
    seen = {
        float(ObjectEditor().edit(image, mask, "random_background", key=k, others=[plain, 2 * plain]).image[0, 0, 0])
        for k in range(12)
    }
    assert seen == {0.25, 0.5}


def test_pictures_whose_object_is_not_found_lend_no_scene(picture):
    image, mask = picture
    lost, plain = torch.full((3, 50, 50), 0.5), torch.full((3, 50, 50), 0.25)
    editor = ObjectEditor(segmenter=lambda _: torch.zeros(50, 50))
    for key in range(6):
        found = editor.edit(image, mask, "random_background", key=key, others=[(lost, None), plain])
        assert (found.image[:, ~mask] == 0.25).all()
    alone = editor.edit(image, mask, "random_background", others=[(lost, None)])
    assert not (alone.image[:, ~mask] == 0.5).any()
    assert alone.image[:, ~mask].std() > 0


@pytest.mark.parametrize("kind", ["cloud", "cells", "waves"])
def test_textures_are_random_pictures_in_range(kind):
    made = [texture(40, 56, torch.Generator().manual_seed(s), kind) for s in (0, 0, 1)]
    assert made[0].shape == (3, 40, 56)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    for t in made:
        assert t.min() >= 0
        assert t.max() <= 1
        assert t.std() > 0.02
    with pytest.raises(BadInput, match="cloud"):
        texture(4, 4, torch.Generator(), "clouds")


class Reds(nn.Module):
    """Class 0: more red in the mean of the picture; class 1: more blue."""

    def forward(self, x):
        mean = x.mean((2, 3))
        return 5 * torch.stack([mean[:, 0], mean[:, 2]], 1)


def test_an_adversarial_background_fools_its_guide_more_and_leaves_the_object_alone(picture):
    image, mask = picture
    guide = Reds()
    painter = Adversarial(guide, eps=16 / 255)
    found = ObjectEditor(painter).edit(image, mask, "background", label=0, complexity=20)
    plain = ObjectEditor().edit(image, mask, "background", complexity=20)
    assert torch.equal(found.image[:, mask], image[:, mask])
    moved = (found.image - plain.image).abs()
    assert moved.max() <= 16 / 255 + 1e-6
    margin = [float(guide(r.image[None])[0, 0] - guide(r.image[None])[0, 1]) for r in (plain, found)]
    assert margin[1] < margin[0] - 0.3  # a linear guide: almost everywhere the whole way
    assert moved[0][~mask].median() == pytest.approx(16 / 255, abs=1e-4)
    assert torch.equal(ObjectEditor(painter).edit(image, mask, label=0).image, found.image)
    painted = painter.paint(image, image, mask, 0, torch.Generator(), 0)
    assert torch.equal(painted[:, mask], image[:, mask])  # nothing is searched that is pasted over afterwards
    with pytest.raises(BadInput, match="label"):
        ObjectEditor(painter).edit(image, mask, "background")
    for bad_field in ({"eps": 0}, {"steps": 0}):
        with pytest.raises(BadInput):
            Adversarial(guide, **bad_field)
    with pytest.raises(BadInput, match="guide"):
        Adversarial(None)
    only_small = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with pytest.raises(BadInput, match=r"guide: .* fails on an image of 96 x 128 pixels"):
        ObjectEditor(Adversarial(only_small)).edit(image, mask, "background", label=1)
    with pytest.raises(BadInput, match="labels below 2"):
        ObjectEditor(painter).edit(image, mask, "background", label=2)


def test_what_a_picture_does_not_allow_is_skipped_with_its_reason(picture):
    image, mask = picture
    wide = torch.zeros_like(mask)
    wide[40:50] = True
    for kind, params, said in [("size", {"rate": 0.6}, "fit"), ("direction", {"degrees": 90}, "turned by 90")]:
        found = ObjectEditor().edit(image, wide, kind, **params)
        assert found.skipped
        assert said in found.reason
        assert torch.equal(found.image, image)
        assert torch.equal(found.mask, wide)
        assert found.rate == pytest.approx(wide.float().mean().item())
    chain = ObjectEditor().edits(image, wide, [("background", {}), ("position", {"at": (90, 0)})])
    assert chain.skipped
    assert torch.equal(chain.image, image)


def test_objects_are_looked_for_where_no_mask_is_given(picture):
    image, mask = picture
    found = ObjectEditor().edit(image, None, "identity")
    assert (found.mask & mask).sum() / (found.mask | mask).sum() > 0.95
    found = ObjectEditor(segmenter=lambda x: (x[0] - x[2]).clamp(0, 1)).edit(image, None, "identity")
    assert torch.equal(found.mask, (image[0] - image[2]).clamp(0, 1) > 0.5)
    nothing = ObjectEditor(segmenter=lambda x: np.zeros(x.shape[1:], bool)).edit(image)
    assert nothing.skipped
    assert "no object found: the mask is empty" in nothing.reason
    with pytest.raises(BadInput, match="segmenter found"):
        ObjectEditor(segmenter=lambda x: np.zeros((3, 3), bool)).edit(image)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, m: (x[:1], m), r"\[1, 96, 128\]"),
        (lambda x, m: (x[None], m), "shape"),
        (lambda x, m: (x * 255, m), "values from"),
        (lambda x, m: (x * torch.nan, m), "values from"),
        (lambda x, m: ((x * 255).byte(), m), "uint8"),
        (lambda x, m: (x.numpy(), m), "ndarray"),
        (lambda x, m: (x, m[1:]), "size 95 x 128"),
        (lambda x, m: (x, m & False), "empty"),
        (lambda x, m: (x, m | True), "full"),
    ],
)
def test_bad_images_and_masks_are_refused(picture, change, said):
    with pytest.raises(BadInput, match=said):
        ObjectEditor().edit(*change(*picture))


@pytest.mark.parametrize(
    ("kind", "params", "said"),
    [
        ("sizes", {}, "Did you mean size"),
        ("size", {"rates": 0.1}, "Did you mean rate"),
        ("size", {"rate": 0}, "rate"),
        ("size", {"rate": 0.91}, "rate"),
        ("size", {"rate": True}, "rate"),
        ("size", {"rate": "half"}, "full"),
        ("position", {"at": (1.5, 2)}, "row, column"),
        ("position", {"at": (-1, 2)}, "row, column"),
        ("position", {"at": "left"}, "row, column"),
        ("direction", {"degrees": float("nan")}, "degrees"),
        ("direction", {"degrees": "left"}, "degrees"),
        ("background", {"complexity": None}, "complexity"),
        ("background", {"remove": "no"}, "remove"),
    ],
)
def test_bad_steps_are_refused(kind, params, said):
    with pytest.raises(BadInput, match=said):
        check_steps([(kind, params)])


def test_no_step_unknown_variants_and_fillings_are_refused(picture):
    with pytest.raises(BadInput, match="at least one"):
        ObjectEditor().edits(*picture, [])
    with pytest.raises(BadInput, match="published"):
        ObjectEditor(variant="publish")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="harmonic"):
        ObjectEditor(filling="harmonics")  # type: ignore[arg-type]
