"""CTAugment: its rule against a loop, its draws against their chances, its operations against PIL."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from withstand.errors import BadInput
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import parse
from withstand.training import Step
from withstand.training.augment import CTAugment, Cutout
from withstand.training.augment import ctaugment as module
from withstand.training.augment.ctaugment import BINS, POOL, Rates
from withstand.training.augment.randaugment import apply

SIDE = 16
NAMES = tuple(POOL)


def a_step(n: int, seed: int = 1, box=(0.0, 1.0)) -> Step:
    return Step(step=0, steps=1, epoch=0, epochs=1, seed=seed, rows=Rows.count(seed, n), box=box)


def learned(seed: int = 0) -> Rates:
    """Rates of which some lie below the threshold."""
    rates = Rates()
    rates.values.copy_(Rows.count(seed, len(POOL)).uniform((17,), "rates", low=0.3))
    return rates


# The rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.99, 0.5, 0.0, 1.0])
def test_rates_move_probe_after_probe(decay):
    rows = Rows.count(3, 60)
    operation = rows.integers((2,), 0, 3, "operation")  # few, so that bins are met many times
    bin = rows.integers((2,), 0, 2, "bin")
    p = rows.uniform((), "p")
    rates = learned()
    expected = rates.values.double().clone()
    for i in range(60):
        for j in range(2):
            at = operation[i, j], bin[i, j]
            expected[at] = decay * expected[at] + (1 - decay) * p[i].double()
    CTAugment(decay=decay).learn(rates, operation, bin, p)
    assert torch.allclose(rates.values.double(), expected, atol=1e-6)
    if 0 < decay < 1:
        backwards = learned()
        CTAugment(decay=decay).learn(backwards, operation.flip(0), bin.flip(0), p.flip(0))
        assert not torch.allclose(backwards.values, rates.values, atol=1e-3)  # the order counts


def test_chances_are_those_of_the_official_rule():
    rates, found = learned(), CTAugment(threshold=0.7, decay=0.95).chances(learned())
    for row, count, made in zip(rates.values, BINS, found, strict=True):
        v = row[:count].double().numpy() + 0.05
        v = v / v.max()
        v[v < 0.7] = 0
        assert np.allclose(made[:count], v / v.sum(), atol=1e-7)
        assert (made[count:] == 0).all()
    assert 0.2 < (found > 0).sum() / sum(BINS) < 0.9


def test_at_first_all_bins_are_alike_and_a_single_one_may_be_left():
    assert torch.allclose(CTAugment().chances(Rates())[0], torch.full((17,), 1 / 17).double())
    rates = Rates()
    rates.values[:] = 0
    rates.values[:, 0] = 1
    assert torch.equal(CTAugment().chances(rates)[:, 0], torch.ones(len(POOL)).double())


# What is drawn -------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    made = []

    def spy(names, x, how, signed, pool, degrees):
        made.append((np.array([NAMES.index(name) for name in names]), how, signed))
        return x

    monkeypatch.setattr(module, "apply", spy)
    return made


N = 20_000


def test_operations_come_alike_and_strengths_from_bins_by_their_chance(drawn):
    rates, augment = learned(), CTAugment(threshold=0.7)
    augment.bound(rates)(Batch(torch.zeros(N, 1, 1, 1)), a_step(N), 3)
    assert len(drawn) == 2
    assert_independent(drawn)
    chances = augment.chances(rates)
    met = []
    for operation, how, signed in drawn:
        assert torch.allclose(signed, 2 * how[:, 0] - 1)
        for name in ("rotate", "posterise", "identity"):
            mine = operation == NAMES.index(name)
            bins = BINS[NAMES.index(name)]
            place = how[mine, 0].double() * bins
            counts = np.bincount(place.floor().long().clamp(max=bins - 1), minlength=bins) / mine.sum()
            expected = chances[NAMES.index(name), :bins].numpy()
            assert counts == pytest.approx(expected, abs=0.05)
            assert (counts[expected == 0] < 0.002).all()  # rounding may cross the border of a bin
            met.append(place % 1)
    within = torch.cat(met)
    assert float(within.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(within.std()) == pytest.approx(12**-0.5, abs=0.02)


def test_probes_are_of_any_strength_and_know_their_bin(drawn):
    probe = CTAugment().probe(Batch(torch.zeros(N, 1, 1, 1)), a_step(N))
    assert_independent(drawn)
    for slot, (operation, how, _) in enumerate(drawn):
        bins = torch.tensor(BINS)[operation]
        assert torch.equal(probe.operation[:, slot], torch.from_numpy(operation))
        assert (probe.bin[:, slot] < bins).all()
        assert torch.allclose((how[:, 0] * bins - 0.5).round().clamp(min=0), probe.bin[:, slot].float(), atol=1)
        inside = how[:, 0] * bins - probe.bin[:, slot]
        assert -1e-4 <= inside.min() <= inside.max() <= 1 + 1e-4
        assert float(how[:, 0].mean()) == pytest.approx(0.5, abs=0.01)
        assert float(how[:, 0].std()) == pytest.approx(12**-0.5, abs=0.01)


def assert_independent(drawn):
    for operation, how, _ in drawn:
        assert np.bincount(operation, minlength=len(POOL)) / N == pytest.approx(len(POOL) * [1 / len(POOL)], abs=0.008)
        assert how[:, 1:].std(0).tolist() == pytest.approx(2 * [12**-0.5], abs=0.01)
        assert np.abs(np.corrcoef(np.column_stack([operation, how]).T) - np.eye(4)).max() < 0.05
    assert np.abs(np.corrcoef(drawn[0][0], drawn[1][0])[0, 1]) < 0.04
    assert np.abs(np.corrcoef(drawn[0][1][:, 0], drawn[1][1][:, 0])[0, 1]) < 0.05


def augmented(x, seed=1, take=slice(None), box=(0.0, 1.0)):
    step = a_step(len(x), seed, box)
    step = replace(step, rows=step.rows.take(torch.arange(len(x))[take]))
    batch = Batch(x[take])
    return CTAugment().bound(learned())(batch, step, 3).x, CTAugment().probe(batch, step).x


def test_draws_depend_on_the_example_alone_and_stay_in_the_range():
    x = Rows.count(0, 60).uniform((3, SIDE, SIDE), "images")
    whole = augmented(x)
    part = torch.tensor([5, 1, 46])
    for made, some, other in zip(whole, augmented(x, take=part), augmented(x, seed=2), strict=True):
        assert torch.allclose(some, made[part], atol=1e-6)
        assert made.shape == x.shape
        assert made.dtype == x.dtype
        assert 0 <= made.min() <= made.max() <= 1
        assert not torch.equal(made, other)
    assert not torch.equal(*whole)


def test_another_range_of_values_is_obeyed():
    x = Rows.count(0, 30).uniform((1, SIDE, SIDE), "images")
    for unit, wide in zip(augmented(x), augmented(x * 4 - 1, box=(-1.0, 3.0)), strict=True):
        assert ((wide - (unit * 4 - 1)).abs() > 0.03).float().mean() < 0.01  # levels of equalise and solarise may turn


# Its operations ------------------------------------------------------------------------------------------


def reference(name: str, image: Image.Image, level: float, place: tuple[float, float]) -> Image.Image:
    """The official operation on one image."""
    side = image.size[0]
    enhance = {"brightness": ImageEnhance.Brightness, "colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast}
    enhance |= {"sharpness": ImageEnhance.Sharpness}
    blend = {"autocontrast": ImageOps.autocontrast, "equalise": ImageOps.equalize, "invert": ImageOps.invert}
    blend |= {"blur": lambda p: p.filter(ImageFilter.BLUR), "smooth": lambda p: p.filter(ImageFilter.SMOOTH)}
    if name in enhance:
        return enhance[name](image).enhance(0.1 + 1.9 * level)
    if name in blend:
        return Image.blend(image, blend[name](image), level)
    signed = 2 * level - 1
    shift = int(0.3 * signed * side)  # of the side, see the docstring
    moves = {
        "shear_x": (1, 0.3 * signed, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * signed, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }
    if name in moves:
        return image.transform(image.size, Image.Transform.AFFINE, moves[name])
    if name == "rescale":
        cut = level / 4
        box = (cut * side, cut * side, side * (1 - cut), side * (1 - cut))
        return image.crop(box).resize(image.size, Image.Resampling.BILINEAR)
    if name == "cutout":
        half = (1 + int(level * side * 0.499)) // 2
        down, right = (int(p * side) for p in place)
        values = np.array(image)
        values[max(0, down - half) : down + half, max(0, right - half) : right + half] = 127
        return Image.fromarray(values)
    return {
        "identity": lambda: image,
        "posterise": lambda: ImageOps.posterize(image, 1 + int(level * 7.999)),
        "solarise": lambda: ImageOps.solarize(image, int(level * 255.999)),
        "rotate": lambda: image.rotate(45 * signed),
    }[name]()


@pytest.mark.parametrize("name", POOL)
def test_an_operation_is_the_official_one_at_that_strength(name):
    n = 20
    made = Rows.count(0, n).uniform((3, SIDE, SIDE), "images", high=0.9) + 0.05
    made = torch.nn.functional.avg_pool2d(made, 3, 1, 1) if name in ("rescale", "rotate") else made
    x = (made * 255).round() / 255
    level = torch.linspace(0.02, 0.98, n)
    how = torch.cat([level[:, None], Rows.count(1, n).uniform((2,), "places")], 1)
    ours = apply([name] * n, x, how, 2 * level - 1, POOL, 45)
    pictures = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in x]
    theirs = [reference(name, p, float(h[0]), (float(h[1]), float(h[2]))) for p, h in zip(pictures, how, strict=True)]
    expected = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in theirs])
    inner = (..., slice(1, -1), slice(1, -1)) if name == "rescale" else ...  # theirs does not look beyond the cut
    assert ((ours - expected)[inner].abs() > 0.015).float().mean() < 0.02
    changed = ((ours - x).abs() > 0.02).flatten(1).any(1).float().mean()
    assert changed == 0 if name == "identity" else changed > 0.5


def test_the_pool_is_the_official_one():
    assert len(POOL) == 19
    assert sum(BINS) == 17 * 17 + 8 + 1
    augment = parse("ctaugment", "augmentation")
    assert (augment.depth, augment.threshold, augment.decay) == (2, 0.8, 0.99)
    assert parse(repr(augment), "augmentation") == augment


def test_cutout_after_it_is_half_the_side():
    """... as the official operation is at its full strength."""
    x = torch.ones(40, 1, SIDE, SIDE)
    middle = Rows.count(0, 40).uniform((2,), "places")
    ours = POOL["cutout"](x, torch.cat([torch.ones(40, 1), middle], 1))  # type: ignore[misc]
    assert int((Cutout(0.5)(Batch(x), a_step(40), 3).x < 1).flatten(1).sum(1).max()) == (SIDE // 2) ** 2
    assert int((ours < 1).flatten(1).sum(1).max()) == (SIDE // 2) ** 2


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["ctaugment(0)", "ctaugment(threshold=1.1)", "ctaugment(threshold=-1)", "ctaugment(decay=2)"]
)
def test_settings_out_of_range_are_refused(text):
    with pytest.raises(BadInput, match="allowed"):
        parse(text, "augmentation")


def test_it_is_refused_where_it_cannot_learn():
    with pytest.raises(BadInput, match=r"strong of fixmatch.*randaugment"):
        CTAugment()(Batch(torch.rand(2, 1, 8, 8)), a_step(2), 3)


def test_images_need_a_range_and_a_luma():
    for x, step, match in (
        (torch.rand(2, 3, 8, 8), a_step(2, box=None), "declared range"),
        (torch.rand(2, 3, 8), a_step(2), "float images"),
        (torch.rand(2, 4, 8, 8), a_step(2), "4 channels"),
    ):
        with pytest.raises(BadInput, match=match):
            CTAugment().probe(Batch(x), step)
        with pytest.raises(BadInput, match=match):
            CTAugment().bound(Rates())(Batch(x), step, 3)
