from dataclasses import asdict

import pytest
import torch

from withstand.data import load_data
from withstand.editing.imagenet_e import EDITS, PLAIN
from withstand.report.files import svg_file
from withstand.reproductions import imagenet_e as system
from withstand.reproductions.runner import judge

S = system.SCALES["smoke"]


@pytest.fixture(scope="module")
def rows():
    found = system.measure("smoke", 0, print)["rows"]
    return [{**r, "value": sum(float(v) for v in r["examples"]) / len(r["examples"])} for r in found]


def test_the_claims_can_be_judged(rows):
    assert len(system.CLAIMS) == 15
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_only_what_the_abstract_says_is_credited_to_the_paper():
    """The paper's tables could not be confirmed."""
    for claim in system.CLAIMS:
        assert claim.source.startswith(("our own", f"{system._PAPER}: abstract:"))


def test_every_edit_is_measured_for_both_networks(rows):
    arms = {r["arm"] for r in rows if r["metric"] == "dropped"}
    for arm in ("plain", "augmented"):
        assert {f"{arm} / {n}" for n in (*EDITS, "ori", "average")} <= arms
        assert {f"{arm} / {n}, noise" for n in EDITS} <= arms
        assert {f"{arm} / {n}, copy-paste" for n in system.PASTED} <= arms
    lengths = {len(r["examples"]) for r in rows if r["metric"] != "made"}
    made = next(r["examples"] for r in rows if r["metric"] == "made")
    assert lengths == {made.count("1")}
    for figure in system.figures([rows]):
        assert svg_file(asdict(figure)).startswith("<svg")


def test_the_source_drops_nothing_and_the_average_leaves_out_the_control(rows):
    found = {r["arm"]: r["value"] for r in rows if r["metric"] == "dropped"}
    for arm in ("plain", "augmented"):
        assert found[f"{arm} / ori"] == 0
        others = [found[f"{arm} / {n}"] for n in EDITS if n != "inver"]
        assert found[f"{arm} / average"] == pytest.approx(sum(others) / 10)
        right = {r["arm"]: r["value"] for r in rows if r["metric"] == "accuracy"}
        assert right[arm] - right[f"{arm} / rp"] == pytest.approx(found[f"{arm} / rp"])


def test_only_the_augmented_objects_vary_in_size_place_and_angle():
    rates, middles = {}, {}
    for augmented in (False, True):
        _, mask, _ = system.scenes_with_objects({**S, "train": 200}, "train", 200, 0, augmented)
        assert mask.any((1, 2)).all()
        rates[augmented] = mask.float().mean((1, 2))
        weight = mask.float() / mask.float().sum((1, 2), keepdim=True)
        middles[augmented] = (weight.sum(2) @ torch.arange(40.0)).std()
    assert rates[True].log().std() > 1.5 * rates[False].log().std()
    assert middles[True] > 2 * middles[False]


def test_objects_are_the_same_pixels_on_other_scenes():
    x, mask, _ = system.scenes_with_objects(S, "test", 5, 0, False)
    other, same, _ = system.scenes_with_objects({**S, "side": 40, "scenes": "textures"}, "test", 5, 0, False)
    assert torch.equal(mask, same)
    assert torch.equal(x, other)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


@pytest.mark.data
def test_scenes_tell_nothing_of_the_objects(data_root):
    s, n = system.SCALES["cpu"], 300
    if not all(list((data_root / "vision").glob(f"{name}*")) for name in ("fashion_mnist", "cifar10_test")):
        pytest.skip(f"needs Fashion-MNIST and CIFAR-10 in {data_root}")
    labels = load_data(s["objects"], data_root, "test", limit=n, seed=0).labels
    known = load_data("cifar10", data_root, "test")
    behind = system._scenes(s, "test", n, 0)
    every = known.batch(range(len(known)))
    found = torch.cat([torch.cdist(z, every.x.flatten(1)).argmin(1) for z in behind.flatten(1).split(100)])
    table = torch.zeros(10, 10)
    for mine, other in zip(labels.tolist(), every.y[found].tolist()):
        table[mine, other] += 1
    assert (table.amax(1) / table.sum(1)).mean() < 0.45  # 1.0 where each class has a scene class of its own


def test_noise_is_as_strong_as_the_edit():
    x = torch.full((2, 3, 60, 60), 0.5)
    edited = x + torch.tensor([0.02, 0.1]).view(2, 1, 1, 1)
    noisy = system._as_noisy(x, edited, 0)
    assert (noisy - x).square().mean((1, 2, 3)).sqrt().tolist() == pytest.approx([0.02, 0.1], rel=0.03)


def test_a_hole_is_grey_where_the_object_was():
    image, mask = torch.rand(3, 4, 4), torch.eye(4).bool()
    assert (system._hole(image, mask)[:, mask] == 0.5).all()
    assert torch.equal(system._hole(image, mask)[:, ~mask], image[:, ~mask])


@pytest.mark.slow
def test_the_diffusion_painter_of_the_large_scale_paints():
    pytest.importorskip("diffusers")
    tiny = {**S, "diffusion": {"widths": (8, 16), "updates": 2, "batch": 4, "start": 2}}
    painter = system._painter(tiny, print)
    x, mask, _ = system.scenes_with_objects(S, "test", 1, 0, False)
    made = painter.paint(x[0], x[0], mask[0], 20.0, torch.Generator().manual_seed(0))
    assert torch.equal(made[:, mask[0]], x[0][:, mask[0]])
    assert len(PLAIN) == 10
