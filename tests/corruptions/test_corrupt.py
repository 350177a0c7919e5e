"""What `corrupt` promises for every kind."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.corruptions import SEVERITIES, corrupt, corruption_names, kinds, reported_name, tables
from withstand.corruptions.kinds import luma
from withstand.errors import BadInput

ALL = corruption_names("all")
RANDOM = ("noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter")


def test_the_kinds_and_their_tables():
    assert ws.corrupt is corrupt
    assert len(corruption_names("common")) == 15
    assert len(corruption_names("extra")) == 4
    assert set(ALL) == set(SEVERITIES) == set(kinds.KINDS)
    assert all(len(table[preset]) == 5 for table in SEVERITIES.values() for preset in ("imagenet", "cifar"))
    assert reported_name("frost") == "frost*"
    assert reported_name("frost", "folder") == "frost"
    assert reported_name("fog") == "fog"
    with pytest.raises(BadInput, match="common"):
        corruption_names("comon")


@pytest.mark.parametrize("name", ALL)
def test_every_kind_keeps_shape_type_and_range_and_gives_whole_levels(name, thumbs):
    for severity in (1, 5):
        out = corrupt(thumbs, name, severity)
        assert out.dtype == torch.uint8
        assert out.shape == thumbs.shape
        assert not torch.equal(out, thumbs)
        for dtype in (torch.float32, torch.float64):
            same = corrupt(thumbs.to(dtype) / 255, name, severity)
            assert same.dtype == dtype
            assert torch.allclose(same, out.to(dtype) / 255, atol=1e-7)
    half = corrupt((thumbs / 255).half(), name, 3)
    assert half.dtype == torch.float16
    assert half.min() >= 0
    assert half.max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_a_row_depends_on_its_id_and_not_on_its_batch(name, monkeypatch):
    x = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = x[[0, 1, 2, 0]]
    ids = torch.tensor([11, 5, 7, 6])
    whole = corrupt(x, name, 3, ids=ids)
    assert torch.equal(whole, corrupt(x, name, 3, ids=ids))
    for row in range(4):
        assert torch.equal(whole[[row]], corrupt(x[[row]], name, 3, ids=ids[[row]]))
    assert torch.equal(corrupt(x.flip(0), name, 3, ids=ids.flip(0)), whole.flip(0))
    random = any(part in name for part in RANDOM)
    assert torch.equal(whole[0], whole[3]) != random
    assert torch.equal(corrupt(x, name, 3, ids=ids, seed=1), whole) != random
    assert torch.equal(corrupt(x, name, 3), corrupt(x, name, 3, ids=torch.arange(4)))


def test_blocks_do_not_change_the_result(monkeypatch, photos):
    x = photos[:, :, 30:130, 20:140]  # 21 images a block on a CPU
    x = x.repeat(8, 1, 1, 1)
    for name in ("gaussian_noise", "fog", "elastic_transform", "glass_blur"):
        whole = corrupt(x, name, 2, preset="cifar")
        assert torch.equal(whole[20:], corrupt(x[20:], name, 2, ids=torch.arange(20, 32), preset="cifar"))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ALL)
def test_threads_do_not_change_the_result(name, photos, threads):
    x = photos[:3]
    threads(1)
    alone = corrupt(x, name, 2)
    threads(2)
    assert torch.equal(corrupt(x, name, 2), alone)
    assert torch.equal(corrupt(x[1:2], name, 2, ids=torch.tensor([1])), alone[1:2])
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_is_raised_and_the_threads_are_given_back(monkeypatch, photos, threads):
    def fail(x, setting, job):
        raise RuntimeError(f"broken in {torch.get_num_threads()} thread")

    monkeypatch.setitem(kinds.KINDS, "fog", fail)
    threads(2)
    with pytest.raises(RuntimeError, match="broken in 1 thread"):
        corrupt(photos[:3], "fog", 1)
    assert torch.get_num_threads() == 2


def test_no_gradient_is_followed_in_the_threads(thumbs, threads):
    threads(2)
    x = (thumbs.float() / 255).requires_grad_()
    assert not corrupt(x, "contrast", 1).requires_grad


def test_severities_and_kinds_draw_differently(thumbs):
    zero = torch.zeros_like(thumbs)
    noise = [corrupt(zero + 128, "gaussian_noise", s).float() - 128 for s in (3, 4)]
    other = corrupt(zero + 128, "speckle_noise", 5).float() - 128
    for a, b in ((noise[0], noise[1]), (noise[0], other)):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.05


# The published severities of these change their nature, not their strength alone.
UNORDERED = {"saturate", "elastic_transform", "frost", "snow", ("glass_blur", "cifar"), ("spatter", "cifar")}


@pytest.mark.parametrize("preset", ["imagenet", "cifar"])
@pytest.mark.parametrize("name", ALL)
def test_damage_grows_with_severity(name, preset, photos, thumbs, job):
    x = (photos if preset == "imagenet" else thumbs).float()
    draws = job(4, preset=preset, textures=(torch.full((3, 224, 224), 150.0),))  # the same draws for all severities
    changed = [kinds.KINDS[name](x, setting, draws).clamp(0, 255) for setting in SEVERITIES[name][preset]]
    damage = [(y - x).abs().mean().item() for y in changed]
    assert min(damage) > 0
    if name not in UNORDERED and (name, preset) not in UNORDERED:
        assert damage[4] > 1.2 * damage[0]
        assert all(b > 0.97 * a for a, b in pairwise(damage)), damage  # glass makes 3 passes at 3, 2 at 4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 8), (1, 3, 1, 1), (1, 1, 2, 5), (1, 3, 20, 70)])
def test_any_size_works_in_grey_and_colour(name, shape):
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for preset in ("imagenet", "cifar"):
        for severity in (1, 2, 3, 4, 5):
            assert corrupt(x, name, severity, preset=preset).shape == shape


@pytest.mark.parametrize("name", ALL)
def test_grey_images_are_corrupted_as_grey_photographs(name, thumbs):
    grey = luma(thumbs.float()).round().byte()
    ours = corrupt(grey, name, 4)
    colour = corrupt(grey.expand(-1, 3, -1, -1), name, 4)
    if "noise" in name:  # one draw per pixel instead of three
        assert (ours.float() - grey).std().item() == pytest.approx((colour.float() - grey).std().item(), rel=0.05)
    else:
        assert (ours.float() - luma(colour.float())).abs().max() <= (4 if name == "jpeg_compression" else 1)


def test_levels_are_truncated_but_not_lost_to_rounding():
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    for name in ("gaussian_blur", "defocus_blur", "zoom_blur", "glass_blur", "contrast", "elastic_transform"):
        assert (corrupt(white, name, 3) == 255).all(), name
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    assert (corrupt(grey, "brightness", 2, preset="cifar") == 125).all()  # 100 + 25.5


def test_float_images_are_rounded_to_8_bits_first(thumbs):
    for name in ("brightness", "shot_noise", "jpeg_compression"):
        between = (thumbs.clamp(1, 254) + 0.4) / 255
        assert torch.equal(corrupt(between, name, 2), corrupt(thumbs.clamp(1, 254) / 255, name, 2))


def test_the_preset_is_the_nearest_in_ratio_and_other_sizes_warn_once():
    tables._warn_of_size.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tables.preset_for(224, 224) == "imagenet"
        assert tables.preset_for(32, 32) == "cifar"
        corrupt(torch.zeros(1, 3, 50, 50), "contrast", 1, preset="imagenet")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            corrupt(torch.zeros(1, 3, 64, 64), "contrast", 1)
    assert len(seen) == 1
    assert "64x64 takes the severities of preset='cifar'" in str(seen[0].message)
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="96x96.*preset='imagenet'"):
        assert tables.preset_for(96, 96) == "imagenet"
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    strong, weak = (corrupt(ramp, "contrast", 1, preset=p).float().std() for p in ("imagenet", "cifar"))
    assert (strong / weak).item() == pytest.approx(0.4 / 0.75, rel=0.01)


def test_the_call_passes_its_options_on():
    x = torch.randint(0, 256, (1, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    swapped = corrupt(x, "glass_blur", 1, variant="swap")  # sigma 0.05: no blur, so a swap only reorders
    assert torch.equal(swapped.flatten().sort().values, x.flatten().sort().values)
    assert not torch.equal(swapped, corrupt(x, "glass_blur", 1))
    ice = [np.full((200, 200, 3), 100, np.uint8)]
    frosted = corrupt(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "frost", 5, frost_textures=ice)
    assert (frosted == 45).all()


def test_an_empty_batch_stays_empty():
    assert corrupt(torch.zeros(0, 3, 32, 32), "fog", 1).shape == (0, 3, 32, 32)


def test_the_input_is_left_alone_and_no_gradient_is_kept(thumbs):
    x = (thumbs.float() / 255).requires_grad_()
    before = x.detach().clone()
    for name in ALL:
        assert not corrupt(x, name, 5).requires_grad
    assert torch.equal(x.detach(), before)


GOOD = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fogg"}, "Did you mean fog"),
        ({"severity": 0}, "severity: got 0"),
        ({"severity": 6}, "severity: got 6"),
        ({"severity": 2.0}, "severity: got 2.0"),
        ({"severity": True}, "severity: got True"),
        ({"preset": "tiny"}, "preset"),
        ({"variant": "swap"}, "variant"),
        ({"variant": "other", "name": "glass_blur"}, "variant"),
        ({"frost_textures": "folder"}, "frost_textures"),
        ({"frost_textures": "no such folder", "name": "frost"}, "no such folder"),
        ({"images": np.zeros((2, 3, 32, 32))}, "from_numpy"),
        ({"images": GOOD[0]}, r"shape \[3, 32, 32\]"),
        ({"images": torch.zeros(2, 32, 32, 3)}, "Channels come second"),
        ({"images": torch.zeros(2, 3, 0, 32)}, r"shape \[2, 3, 0, 32\]"),
        ({"images": GOOD.long()}, "uint8 or a float"),
        ({"images": GOOD - 1}, "before normalising"),
        ({"images": GOOD + 2}, "values from 2 to 2"),
        ({"images": GOOD * float("nan")}, "finite"),
        ({"ids": [0, 1]}, "ids: got list"),
        ({"ids": torch.arange(3)}, "ids"),
        ({"ids": torch.arange(2.0)}, "ids"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        corrupt(**({"images": GOOD, "name": "fog", "severity": 1} | change))
