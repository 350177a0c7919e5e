"""Dropped accuracy counted by hand, edits that are those of the benchmark, and a gallery whose files are the edits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from withstand.audit.check import Table
from withstand.audit.gallery import _worst_first
from withstand.audit.presets import checks_of
from withstand.audit.store import as_table
from withstand.editing import ObjectEditor
from withstand.editing.imagenet_e import EDITS, PLAIN, edit_as
from withstand.errors import BadInput
from withstand.models import as_target
from withstand.models.target import TorchTarget
from withstand.protocols import Context, Row, Space
from withstand.registry import parse

SIDE, N = 40, 18
SPACE = Space((3, SIDE, SIDE), (0.0, 1.0), 2)


def pictures(channels=3):
    """Dark and bright discs (the class) before noise, and where they are."""
    draw = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    images, masks = [], []
    for i in range(N):
        at = SIDE / 2 + 8 * torch.rand(2, generator=draw) - 4
        mask = (y - at[0]) ** 2 + (x - at[1]) ** 2 < (5 + 4 * torch.rand((), generator=draw)) ** 2
        scene = 0.5 + 0.2 * torch.rand(channels, SIDE, SIDE, generator=draw) - 0.1
        disc = (0.85 if i % 2 else 0.05) + 0.1 * torch.rand(channels, SIDE, SIDE, generator=draw)
        images.append(torch.where(mask, disc, scene))
        masks.append(mask)
    return torch.stack(images), torch.stack(masks)


class Middle(nn.Module):
    """Class 1 where the four pixels in the middle are bright: a moved object is missed."""

    def forward(self, x):
        on = x[:, :, SIDE // 2 - 1 : SIDE // 2 + 1, SIDE // 2 - 1 : SIDE // 2 + 1].mean((1, 2, 3))
        return 10 * torch.stack([0.5 - on, on - 0.5], 1)


@pytest.fixture
def shown(arrays):
    """A data set, and its masks."""

    def make(channels=3):
        x, masks = pictures(channels)
        y = torch.arange(N) % 2
        return arrays(x, y, "discs", ("dark", "bright")), arrays(masks[:, None].float(), y, "masks", ("dark", "bright"))

    return make


@pytest.fixture
def target():
    return TorchTarget(Middle(), "middle", SPACE)


def test_dropped_accuracy_is_that_of_the_edits_one_by_one(run, shown, target):
    data, masks = shown()
    done = run("attributes()", target, data, {"masks": masks}, shard=7, seed=3)
    scenes = {}
    with torch.no_grad():
        before = target(data.x).argmax(1) == data.y
        for name in (e for e in PLAIN if e != "random"):
            for i in range(N):
                made = edit_as(name, ObjectEditor(seed=3), data.x[i], masks.x[i, 0] > 0.5, i)
                if not made.skipped:
                    scenes.setdefault(name, {})[i] = bool(target(made.image[None]).argmax() == data.y[i])
    for name, right in scenes.items():
        found = done.metric("dropped_accuracy", edit=name)
        kept = [*right]
        assert found.n == len(kept)
        assert found.value == pytest.approx(float(before[kept].float().mean()) - np.mean([right[i] for i in kept]))
        assert found.low <= found.value <= found.high
    assert done.metric("accuracy", edit="ori").value == pytest.approx(float(before.float().mean()))
    assert (
        done.metric("dropped_accuracy", edit="inver").value == 0
    )  # the object, which is all that counts, is untouched
    assert done.metric("dropped_accuracy", edit="rp").value > 0.3
    mean = done.metric("mean_dropped_accuracy")
    others = [m.value for m in done.findings.metrics if m.name == "dropped_accuracy" and m.condition["edit"] != "inver"]
    assert mean.value == pytest.approx(np.mean(others))
    assert mean.condition == {"edits": 9}


def test_a_classifier_that_ignores_the_input_loses_nothing(run, shown):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]).repeat(len(x), 1)

    data, masks = shown()
    done = run("attributes()", TorchTarget(Constant(), "constant", SPACE), data, {"masks": masks})
    assert all(m.value == 0 for m in done.findings.metrics if m.name.endswith("dropped_accuracy"))
    assert not any(f.kind == "gallery" for f in done.findings.figures)


def test_skipped_images_count_nowhere_and_their_reasons_are_told(run, shown, target):
    data, masks = shown()
    masks.x[4] = 0
    done = run("attributes(edits=('20',))", target, data, {"masks": masks}, shard=5)
    assert done.metric("dropped_accuracy", edit="20").n == N - 1
    table = next(f for f in done.findings.figures if f.kind == "table").data["rows"]
    assert [row[:3] for row in table] == [["inver", N - 1, 1], ["20", N - 1, 1]]
    assert table[1][-1] == "1: the mask is empty: there is no object"
    assert [r.id for r in done.rows if r.outcome is None] == [4, 4]


def test_findings_do_not_depend_on_the_order_of_shards():
    draw = np.random.default_rng(0)
    rows = [Row("image", i, {"edit": "ori"}, bool(draw.random() < 0.9)) for i in range(61)]
    for name in ("20", "0.05", "rp"):
        rows += [Row("image", i, {"edit": name}, bool(draw.random() < 0.6)) for i in range(50)]
        rows += [Row("image", i, {"edit": name, "skipped": "full" if i % 2 else "empty"}) for i in range(50, 60)]
    check = parse("attributes()", "check")
    whole, turned = (check.reduce(Table(as_table(r)), {}, Context(0)) for r in (rows, rows[::-1]))
    assert whole == turned
    assert [m.n for m in whole.metrics] == [61, 50, 50, 50, 50]  # what was skipped counts nowhere
    assert whole.figures[1].data["rows"][0][-1] == "5: empty; 5: full"


def test_an_object_that_cannot_be_taken_out_stands_behind_no_other(run, shown, target):
    data, masks = shown()
    masks.x[5] = 1
    check, ctx = parse("attributes()", "check"), Context(0)
    made = check.prepare(target, data, {"masks": masks}, ctx)
    assert 5 not in made["ids"].tolist()
    assert 3 in made["ids"].tolist()
    masks.x[:] = 0
    masks.x[0, 0, 10:30, 10:30] = 1
    done = run("attributes(edits=('random',))", target, data, {"masks": masks})
    assert done.metric("dropped_accuracy", edit="random").n == 1  # over a texture: no other scene is left


def test_a_guide_without_gradients_is_refused_before_work(shown):
    data, masks = shown()
    guide = TorchTarget(Middle(), "guide", SPACE)
    guide.model.access = frozenset({"scores", "decision"})
    with pytest.raises(BadInput, match="without gradients"):
        parse("attributes()", "check").examples_of(data, {"masks": masks, "guide": guide})


def test_without_masks_the_objects_are_looked_for(run, shown, target):
    data, masks = shown()
    found = run("attributes(edits=('0.05',))", target, data)
    given = run("attributes(edits=('0.05',))", target, data, {"masks": masks})
    assert found.metric("dropped_accuracy", edit="0.05").n > N / 2
    assert given.metric("dropped_accuracy", edit="0.05").n > N / 2


def test_grey_images_are_edited_as_grey_ones(run, shown):
    data, masks = shown(channels=1)
    seen = []

    class Watched(Middle):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    target = TorchTarget(Watched(), "watched", Space((1, SIDE, SIDE), (0.0, 1.0), 2))
    done = run("attributes()", target, data, {"masks": masks})
    assert all(x.shape[1] == 1 for x in seen)
    inside = masks.x.bool()
    for x in seen[1:5]:  # backgrounds: inver, -20, 20, random
        assert torch.equal(x[inside], data.x[inside])
    assert done.metric("dropped_accuracy", edit="20").n == N


def test_a_guide_adds_the_adversarial_edit(run, shown, target):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(300, 2))
    data, masks = shown()
    guide = TorchTarget(linear, "guide", SPACE)
    victim = TorchTarget(linear, "victim", SPACE)
    with torch.no_grad():
        data.y = victim(data.x).argmax(1)
    done = run("attributes(edits=('20', '20-adv'))", victim, data, {"masks": masks, "guide": guide})
    led, plain = (done.metric("dropped_accuracy", edit=e).value for e in ("20-adv", "20"))
    assert led > plain
    assert len(run("attributes()", target, data, {"masks": masks, "guide": guide}).findings.metrics) == 2 + len(EDITS)
    with pytest.raises(BadInput, match="guide=MODEL"):
        run("attributes(edits=('20-adv',))", target, data, {"masks": masks})


def test_the_gallery_holds_the_edits_that_broke_the_model(run, shown, target):
    data, masks = shown()
    done = run("attributes()", target, data, {"masks": masks}, shard=7, seed=3)
    shown_ = next(f for f in done.findings.figures if f.kind == "gallery")
    items = shown_.data["items"]
    json.dumps(items, allow_nan=False)
    assert shown_.data["after"] == "edited"
    outcome = {(r.id, r.condition["edit"]): r.outcome for r in done.rows if r.outcome is not None}
    fell = {name for (id_, name), right in outcome.items() if outcome[id_, "ori"] and not right}
    assert {item["condition"]["edit"] for item in items} == fell - {"inver"}
    for item in items:
        name = item["condition"]["edit"]
        assert name != "inver"
        assert outcome[item["id"], "ori"]
        assert not outcome[item["id"], name]
        if name != "random":
            made = edit_as(name, ObjectEditor(seed=3), data.x[item["id"]], masks.x[item["id"], 0] > 0.5, item["id"])
            file = np.asarray(Image.open(done.ctx.root / item["adversarial"])) / 255
            assert np.allclose(file, made.image.permute(1, 2, 0).numpy(), atol=0.004)


def test_the_control_is_not_among_the_edits_that_broke_the_model(run, shown):
    data, masks = shown()

    class Exact(nn.Module):
        """Right on the very images, wrong on everything else."""

        def forward(self, x):
            known = (x[:, None] == data.x).flatten(2).all(2)
            label = (known.float() @ data.y.float()) * known.any(1)
            wrong = ~known.any(1)
            return nn.functional.one_hot(torch.where(wrong, 2, label.long()), 3).float()

    done = run(
        "attributes()", TorchTarget(Exact(), "exact", Space((3, SIDE, SIDE), (0.0, 1.0), 3)), data, {"masks": masks}
    )
    assert done.metric("dropped_accuracy", edit="inver").value == 1
    items = next(f for f in done.findings.figures if f.kind == "gallery").data["items"]
    assert {i["condition"]["edit"] for i in items} == {*PLAIN} - {"inver"}


def test_the_worst_of_every_edit_come_in_turn():
    rows = {
        "id": np.arange(5), "distance": np.full(5, np.nan), "adversarial_confidence": np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
        "edit": np.array(["a", "a", "b", "a", "b"]),
    }  # fmt: skip
    assert _worst_first(rows).tolist() == [0, 2, 1, 4, 3]


def test_presets_hold_it_where_masks_are_given():
    for preset in ("quick", "standard", "full"):
        assert "attributes" not in checks_of(preset, space=SPACE)
        assert "attributes" in checks_of(preset, space=SPACE, given=["masks"])


@pytest.mark.parametrize("text", ["attributes(edits=())", "attributes(edits=('21',))", "attributes(start=101)"])
def test_settings_that_cannot_work_are_refused(text):
    with pytest.raises(BadInput):
        parse(text, "check")


def test_series_are_refused(run, arrays):
    series = arrays(torch.rand(4, 1, 30), torch.arange(4) % 2, "series", ("a", "b"))
    with pytest.raises(BadInput, match="images"):
        run("attributes()", as_target(nn.Sequential(nn.Flatten(), nn.Linear(30, 2))), series)


def test_a_diffusion_pipeline_paints(run, shown, target, tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=SIDE, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    place = tmp_path_factory.mktemp("ddpm")
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(place)
    data, masks = shown()
    data = type(data)(data.x[:3], data.y[:3], "few", data.classes)
    done = run(f"attributes(edits=('20',), diffusion='{place}', start=2)", target, data, {"masks": masks})
    assert done.metric("dropped_accuracy", edit="20").n == 3
    assert done.metric("dropped_accuracy", edit="inver").value == 0
