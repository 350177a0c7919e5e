"""The benchmark's edits, its layout on disk, and the accuracy that each edit costs."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from withstand.data import from_arrays, load_data
from withstand.editing import ObjectEditor, complexity
from withstand.editing.dropped import average, dropped, dropped_accuracy
from withstand.editing.imagenet_e import CONTROL, EDITS, PLAIN, against, build_imagenet_e, edit_as
from withstand.editing.masked import Masked
from withstand.errors import BadInput
from withstand.protocols import Space

SIDE = 80


def picture(seed, side=SIDE):
    """A scene of two colours with a disc in it, and where the disc is."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    middle = side / 2 + 6 * torch.rand(2, generator=draw) - 3
    mask = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < (0.2 * side) ** 2
    scene = 0.3 + 0.4 * torch.rand(3, 1, 1, generator=draw) * torch.rand(3, side, side, generator=draw)
    return torch.where(mask, torch.rand(3, 1, 1, generator=draw), scene), mask


@pytest.fixture
def folders(tmp_path):
    """Images in folders by class, and masks of the same names in a flat folder."""
    for i in range(6):
        image, mask = picture(i)
        for place, pixels, ending in (
            (tmp_path / "images" / "ab"[i % 2], image.permute(1, 2, 0).numpy(), "png"),
            (tmp_path / "masks", mask.numpy().astype(float), "bmp"),
        ):
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 255).round().astype(np.uint8)).save(place / f"{i}.{ending}")
    return tmp_path


# The edits -----------------------------------------------------------------------------------------------------------


def test_there_are_eleven():
    assert [*EDITS] == ["inver", "-20", "20", "20-adv", "random", "full", "0.1", "0.08", "0.05", "rp", "rd"]
    assert set(EDITS) - set(PLAIN) == {"20-adv"}


def test_what_each_edit_does():
    image, mask = picture(1)
    made = {name: edit_as(name, ObjectEditor(), image, mask, key=3) for name in PLAIN}
    assert not any(r.skipped for r in made.values())
    for name in ("inver", "-20", "20", "random"):
        assert torch.equal(made[name].mask, mask)
        assert torch.equal(made[name].image[:, mask], image[:, mask])
    assert made["-20"].complexity < made["inver"].complexity < made["20"].complexity
    assert torch.equal(made["inver"].image, ObjectEditor().edit(image, mask, "identity").image)
    for name in ("0.1", "0.08", "0.05", "rp"):
        rate = 0.05 if name == "rp" else float(name)
        assert abs(made[name].rate / rate - 1) <= 0.05
    assert made["full"].mask.any(1).all() or made["full"].mask.any(0).all()
    assert not torch.equal(made["rp"].mask, made["0.05"].mask)
    assert made["rp"].rate == made["0.05"].rate
    assert math.isclose(made["rd"].rate, float(mask.float().mean()), rel_tol=0.05)


def test_a_painter_is_passed_by_every_edit():
    class Shade:
        """Halves whatever scene it is given."""

        def paint(self, scene, image, mask, complexity, generator, label=None):
            calls.append((complexity, label))
            return scene / 2

    calls: list = []
    image, mask = picture(2)
    made = {name: edit_as(name, ObjectEditor(painter=Shade()), image, mask, label=1).image for name in EDITS}
    assert calls == [(0.0, None), (-20.0, None), (20.0, None), (20.0, 1), *[(0.0, None)] * 7]
    assert all(float(m[:, 0, 0].max()) < 0.5 for m in made.values())


def test_masks_that_cannot_be_edited_are_skipped_with_the_reason():
    image, _ = picture(1)
    for mask, said in ((torch.zeros(SIDE, SIDE), "empty"), (torch.ones(SIDE, SIDE), "full")):
        made = edit_as("20", ObjectEditor(), image, mask.bool())
        assert made.skipped
        assert said in made.reason
        assert torch.equal(made.image, image)


def test_an_unknown_edit_is_refused():
    with pytest.raises(BadInput, match="edit: there is no '21'"):
        edit_as("21", ObjectEditor(), *picture(1))


def test_an_adversarial_background_needs_a_guide_and_a_label():
    guide = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    with pytest.raises(BadInput, match="against"):
        edit_as("20-adv", ObjectEditor(), *picture(1), label=1)
    with pytest.raises(BadInput, match="label"):
        edit_as("20-adv", against(ObjectEditor(), guide), *picture(1))


# Masks ---------------------------------------------------------------------------------------------------------------


def test_masks_are_found_by_name_whatever_their_order_and_ending(folders):
    images, masks = load_data(folders / "images"), load_data(folders / "masks")
    batch = Masked(images, masks).batch(range(6))
    for at, file in enumerate(images.source.photos):
        expected = picture(int(file.file.split("/")[-1][0]))[1]
        assert torch.equal(batch.extra["object"][at], expected)
    some = images.subset([4, 1])
    assert torch.equal(Masked(some, masks).batch([0, 1]).extra["object"], batch.extra["object"][[4, 1]])


def test_masks_of_arrays_are_found_by_id():
    x, y = torch.stack([picture(i)[0] for i in range(4)]), np.arange(4)
    masks = torch.stack([picture(i)[1] for i in range(4)])[:, None].float()
    images, objects = (from_arrays(a.numpy(), y, "few", layout="nchw") for a in (x, masks))
    made = Masked(images.subset([3, 0]), objects)
    assert torch.equal(made.batch([0, 1]).extra["object"], masks[[3, 0], 0] > 0.5)
    assert made.fingerprint() != Masked(images, objects).fingerprint()
    with pytest.raises(BadInput, match="none for the image 3"):
        Masked(images, objects.subset([0, 1, 2]))


def test_missing_ambiguous_and_small_masks_are_refused(folders):
    images = load_data(folders / "images")
    (folders / "masks" / "3.bmp").rename(folders / "masks" / "33.bmp")
    with pytest.raises(BadInput, match=r"no mask for .*3\.png"):
        Masked(images, load_data(folders / "masks"))
    with pytest.raises(BadInput, match="24 x 24 pixels"):
        Masked(images, load_data(folders / "masks", size=24))
    (folders / "images" / "b" / "0.png").write_bytes((folders / "images" / "a" / "0.png").read_bytes())
    with pytest.raises(BadInput, match="several images"):
        Masked(load_data(folders / "images"), load_data(folders / "masks"))


def test_masks_that_share_a_name_are_refused(folders):
    masks = folders / "masks by class"
    for i in range(6):
        (masks / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (masks / "ab"[i % 2] / f"{i}.bmp").write_bytes((folders / "masks" / f"{i}.bmp").read_bytes())
    Masked(load_data(folders / "images"), load_data(masks))
    Image.new("L", (SIDE, SIDE)).save(masks / "a" / "2.png")
    with pytest.raises(BadInput, match="several named a/2"):
        Masked(load_data(folders / "images"), load_data(masks))


@pytest.mark.parametrize("size", [(SIDE // 2, SIDE // 2), (2 * SIDE, SIDE), (24, 24)])
def test_a_mask_of_another_size_is_refused_however_images_are_loaded(folders, size):
    """Brought to one size, it would be cut out of another part of the picture."""
    Image.new("L", size, 255).save(folders / "masks" / "3.bmp")
    made = Masked(load_data(folders / "images", size=24), load_data(folders / "masks", size=24))
    assert made.batch([0]).extra["object"].shape == (1, 24, 24)
    with pytest.raises(BadInput, match=rf"3\.bmp.*{size[1]} x {size[0]} pixels.*{SIDE} x {SIDE}"):
        made.batch(range(6))


# Building ------------------------------------------------------------------------------------------------------------


def contents(place):
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_the_layout_is_the_benchmarks(folders):
    out, edits = folders / "out", ["inver", "20", "0.05"]
    skipped = build_imagenet_e(folders / "images", folders / "masks", out, edits, size=None)
    assert skipped == {name: {} for name in edits}
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted([*edits, "ori"])
    assert all(len(list((out / name).glob("*.png"))) == 6 for name in [*edits, "ori"])
    labels = dict(line.split("\t") for line in (out / "labels.txt").read_text().splitlines())
    assert labels == {f"{i}.png": str(i % 2) for i in range(6)}
    ori, made = (np.asarray(Image.open(out / name / "2.png")) for name in ("ori", "20"))
    mask = picture(2)[1].numpy()
    assert (ori[mask] == made[mask]).all()
    assert (ori[~mask] != made[~mask]).any()
    expected = edit_as("20", ObjectEditor(), torch.from_numpy(ori.copy()).permute(2, 0, 1) / 255, picture(2)[1], "2")
    assert (np.abs(made / 255 - expected.image.permute(1, 2, 0).numpy()) <= 0.5 / 255 + 1e-6).all()


def test_a_stopped_build_continues_and_another_editor_is_refused(folders):
    whole, out = folders / "whole", folders / "out"
    build_imagenet_e(folders / "images", folders / "masks", whole, ["20", "rp"], size=None)

    class Stopped(Exception):
        pass

    def stop(done, n):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        build_imagenet_e(folders / "images", folders / "masks", out, ["20"], size=None, progress=stop)
    kept = (out / "20" / "0.png").stat().st_mtime_ns
    build_imagenet_e(folders / "images", folders / "masks", out, ["20", "rp"], size=None)
    assert contents(out) == contents(whole)
    assert (out / "20" / "0.png").stat().st_mtime_ns == kept
    with pytest.raises(BadInput, match="another editor"):
        build_imagenet_e(folders / "images", folders / "masks", out, ["20"], ObjectEditor(seed=1), size=None)


def test_what_is_skipped_is_noted_and_not_written(folders):
    Image.new("L", (SIDE, SIDE)).save(folders / "masks" / "4.bmp")
    out = folders / "out"
    skipped = build_imagenet_e(folders / "images", folders / "masks", out, ["20"], size=None)
    assert [*skipped["20"]] == ["4"]
    assert "empty" in skipped["20"]["4"]
    assert not (out / "20" / "4.png").exists()
    assert (out / "ori" / "4.png").exists()
    build_imagenet_e(folders / "images", folders / "masks", out, ["inver"], size=None)
    assert [line.split("\t")[:2] for line in (out / "skipped.txt").read_text().splitlines()] == [
        ["20", "4"],
        ["inver", "4"],
    ]


def test_adversarial_backgrounds_raise_the_loss_of_the_guide_and_need_one(folders):
    torch.manual_seed(0)
    guide = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(300, 2)).eval()
    image, mask = picture(0)
    label = int(guide(image[None]).argmax())
    editors = {"20": ObjectEditor(), "20-adv": against(ObjectEditor(), guide)}
    plain, led = (edit_as(name, editor, image, mask, 0, label) for name, editor in editors.items())
    assert torch.equal(plain.image[:, mask], led.image[:, mask])
    loss = [
        float(nn.functional.cross_entropy(guide(r.image[None]), torch.tensor([label])).detach()) for r in (plain, led)
    ]
    assert loss[1] > loss[0] + 0.01
    with pytest.raises(BadInput, match="guide"):
        build_imagenet_e(folders / "images", folders / "masks", folders / "out", ["20-adv"], size=None)
    assert not (folders / "out").exists()


def test_a_build_goes_on_only_with_its_own_guide_and_scenes(folders):
    guides = [nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(300, 2)) for _ in range(2)]
    one, out = [picture(20)[0]], folders / "out"

    def build(edits, **settings):
        build_imagenet_e(folders / "images", folders / "masks", out, edits, size=None, **settings)

    build(["inver"], others=one)
    build(["20-adv"], others=one, guide=guides[0])
    build(["random"], others=[one[0].clone()])
    build(["20-adv"], others=one, guide=guides[0])
    with pytest.raises(BadInput, match="another guide"):
        build(["20-adv"], others=one, guide=guides[1])
    for others in ([picture(21)[0]], [(one[0], None)], [(one[0], picture(20)[1])], [(one[0], "mask.png")], []):
        with pytest.raises(BadInput, match="another others"):
            build(["random"], others=others)


def test_images_without_labels_and_unknown_edits_are_refused(folders):
    with pytest.raises(BadInput, match="without labels"):
        build_imagenet_e(folders / "masks", None, folders / "out", ["20"], size=None)
    assert not (folders / "out").exists()
    with pytest.raises(BadInput, match="edit: there is no 'rpp'"):
        build_imagenet_e(folders / "images", None, folders / "out", ["rpp"], size=None)


# Dropped accuracy ----------------------------------------------------------------------------------------------------


class Bright(nn.Module):
    """Class 1 where the first pixel is bright."""

    def forward(self, x):
        on = x[:, 0, 0, 0]
        return torch.stack([0.5 - on, on - 0.5], 1)


@pytest.fixture
def root(tmp_path):
    """Ten images; of an edit's images, which the model has right is given by its text, "." standing for none."""
    made = {"ori": "1111111100", "inver": "1111111000", "20": "1111000010", "rp": "11....0011", "mine": "0000000000"}
    y = [i % 2 for i in range(10)]
    for name, hits in made.items():
        (tmp_path / name).mkdir()
        for i, hit in enumerate(hits):
            if hit != ".":
                value = 255 * (y[i] if hit == "1" else 1 - y[i])
                ending = "JPEG" if name == "ori" else "png"
                Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / name / f"val_{i}.{ending}")
    (tmp_path / "labels.txt").write_text("".join(f"val_{i}.JPEG\t{y[i]}\n" for i in range(10)))
    return tmp_path


def test_dropped_accuracy_counts_the_same_images(root):
    found = dropped_accuracy(Bright(), root, batch=3)
    assert (found.right, found.n) == (8, 10)
    by = {d.edit: d for d in found.edits}
    assert [*by] == ["inver", "20", "rp", "mine"]
    assert by["inver"].dropped == pytest.approx(0.1)
    assert by["20"].dropped == pytest.approx(0.3)
    assert (by["rp"].n, by["rp"].missing) == (6, 4)
    assert (by["rp"].before, by["rp"].after) == (pytest.approx(4 / 6), pytest.approx(4 / 6))
    assert by["mine"].dropped == pytest.approx(0.8)
    assert all(d.low <= d.dropped <= d.high for d in found.edits)
    assert found.average == pytest.approx((0.3 + 0 + 0.8) / 3)
    assert found.average_with_control == pytest.approx((0.1 + 0.3 + 0 + 0.8) / 4)
    assert found.low < found.average < found.high


def test_a_model_is_asked_in_eval_mode_and_left_as_it_was(root):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), Bright()).train()
    found = dropped_accuracy(model, root, batch=3)
    assert found == dropped_accuracy(Bright(), root)
    assert model.training
    assert float(model[0].running_mean.abs().max()) == 0


def test_a_target_that_only_decides_is_judged_too(root):
    class Decides:
        name, task, access, space, module = "decides", "classification", frozenset({"decision"}), Space(), None

        def fingerprint(self):
            return "decides"

        def __call__(self, x):
            return Bright()(x).argmax(1)

    assert dropped_accuracy(Decides(), root) == dropped_accuracy(Bright(), root)


def test_the_table_says_both_averages_and_what_is_missing(root):
    said = str(dropped_accuracy(Bright(), root, edits=["inver", "rp"]))
    assert "right in ori: 8 of 10 (80.0%)" in said
    assert "control" in said.splitlines()[1]
    assert "n = 6, 4 missing" in said
    assert f"average without {CONTROL}:   0.00" in said
    assert f"average with {CONTROL}:   5.00" in said


def test_a_classifier_that_ignores_the_input_loses_nothing(folders):
    build_imagenet_e(folders / "images", folders / "masks", folders / "out", size=None)

    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]).repeat(len(x), 1)

    found = dropped_accuracy(Constant(), folders / "out")
    assert len(found.edits) == 10
    assert all(d.dropped == 0 for d in found.edits)
    assert found.average == found.average_with_control == 0


def test_the_interval_of_the_average_is_that_of_a_naive_bootstrap():
    draw = np.random.default_rng(0)
    before, after, made = draw.random(60) < 0.9, draw.random((60, 3)) < 0.6, draw.random((60, 3)) < 0.8
    naive = []
    for _ in range(4000):
        rows = draw.integers(0, 60, 60)
        b, a, m = before[rows], after[rows], made[rows]
        naive.append(np.mean([b[m[:, e]].mean() - a[m[:, e], e].mean() for e in range(3)]))
    mean, low, high = average(before, after, made)
    assert mean == pytest.approx(np.mean([before[made[:, e]].mean() - after[made[:, e], e].mean() for e in range(3)]))
    assert (low, high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.015)
    nothing = np.zeros((60, 1), bool)
    assert average(before, np.c_[after, nothing], np.c_[made, nothing]) == (mean, low, high)
    assert dropped("x", before, after[:, 0], made[:, 0]).n == made[:, 0].sum()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: (r / "labels.txt").unlink(), "labels.txt"),
        (lambda r: (r / "labels.txt").write_text("val_0.JPEG 1\n"), "line 1"),
        (lambda r: (r / "labels.txt").write_text("other.JPEG\t1\n"), "none of them in ori"),
        (lambda r: (r / "labels.txt").write_text("val_0.JPEG\t7\n"), "class 7"),
        (lambda r: (r / "labels.txt").write_text("val_0.JPEG\t0\nval_0.png\t1\n"), "another class"),
        (lambda r: Image.new("RGB", (8, 8)).save(r / "20" / "val_3.jpg"), "val_3.jpg and val_3.png"),
        (lambda r: (r / "ori").rename(r / "source"), "without the folder ori"),
        (lambda r: Image.new("RGB", (9, 9)).save(r / "20" / "val_3.png"), "one size"),
        (lambda r: [p.rename(p.with_stem(f"x{p.stem}")) for p in (r / "rp").glob("*")], "shares no image"),
    ],
)
def test_folders_that_are_not_the_benchmark_are_refused(root, change, said):
    change(root)
    with pytest.raises(BadInput, match=said):
        dropped_accuracy(Bright(), root)


def test_complexity_of_built_edits_follows_lambda(folders):
    made = [
        np.mean([edit_as(n, ObjectEditor(), *picture(i)).complexity for i in range(4)]) for n in ("-20", "inver", "20")
    ]
    assert made == sorted(made)
    assert made[0] < made[1] < made[2]
    assert complexity(picture(0)[0]) > 0
