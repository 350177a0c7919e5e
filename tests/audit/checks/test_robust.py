import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from withstand.errors import BadInput
from withstand.models import as_target
from withstand.protocols import Space
from withstand.registry import parse


@pytest.fixture
def linear():
    """A linear model of ten classes, for which the worst case is known."""
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(10, 64, generator=g) / 4)
        layer.bias.zero_()
    return as_target(nn.Sequential(nn.Flatten(), layer), "linear", Space((1, 8, 8), (0.0, 1.0), 10))


def worst_case(target, x, y, eps):
    """Whether no class can overtake the label: the exact worst case of a linear model under Linf inside the box."""
    w = target.model[1].weight.detach()
    stands = torch.ones(len(x), dtype=torch.bool)
    for k in range(10):
        z = (x + eps * (w[k] - w[y]).sign().reshape(-1, 1, 8, 8)).clamp(0, 1)
        with torch.no_grad():
            out = target.model(z)
        rows = torch.arange(len(x))
        stands &= (out[rows, y] > out[:, k]) | (y == k)
    return stands


def test_autoattack_finds_the_exact_worst_case_of_a_linear_model(run, linear, digits, arrays):
    y = linear.model(digits.x[:60]).argmax(1)
    y[::7] = (y[::7] + 1) % 10  # wrong from the start: not robust
    data = arrays(digits.x[:60], y)
    done = run("robust(linf(0.02), attack=autoattack(steps=20, queries=100))", linear, data)
    exact = worst_case(linear, data.x, data.y, 0.02)
    assert 5 < int(exact.sum()) < 50
    outcome = {r.id: r.outcome for r in done.rows if "eps" in r.condition}
    assert [outcome[i] for i in range(60)] == exact.tolist()
    metric = done.metric("robust_accuracy", attack="autoattack", threat="linf", eps=0.02)
    assert metric.value == pytest.approx(exact.double().mean())
    assert metric.n == 60


def test_the_parts_of_autoattack_add_up(run, plain, digits, arrays):
    data = arrays(digits.x[:40], digits.y[:40])
    done = run("robust(linf(0.12), attack=autoattack(steps=5, queries=20))", plain, data)
    standing = [done.table.where(part=p).value.mean() for p in ("clean", "apgd-ce", "apgd-t", "fab-t", "square")]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] == (plain.model(data.x).argmax(1) == data.y).double().mean()
    assert standing[-1] == done.metric("robust_accuracy").value
    listed = next(f for f in done.findings.figures if f.kind == "table").data["rows"]
    broken = [float(row[1].rstrip("%")) for row in listed]
    assert sum(broken) + float(listed[-1][2].rstrip("%")) == pytest.approx(100, abs=0.3)


def test_the_gallery_shows_the_worst_first_and_its_files_are_the_images(run, plain, digits, arrays):
    data = arrays(digits.x[:80], digits.y[:80])
    done = run("robust(linf(0.2), attack=pgd(steps=5))", plain, data, shard=25)
    shown = next(f for f in done.findings.figures if f.kind == "gallery").data
    items = shown["items"]
    assert len(items) == 12
    keys = [(-round(i["adversarial_confidence"], 2), i["distance"]) for i in items]
    assert keys == sorted(keys)
    broken = [r for r in done.rows if not r.outcome and r.distance > 0]
    assert items[0]["adversarial_confidence"] == pytest.approx(max(r.value for r in broken), abs=0.006)
    for item in items:
        assert item["clean_prediction"] == item["label"] != item["adversarial_prediction"]
        clean, adversarial, difference = (
            np.asarray(Image.open(done.ctx.root / item[k])).astype(float) / 255
            for k in ("clean", "adversarial", "difference")
        )
        assert np.allclose(clean, data.x[item["id"], 0], atol=0.003)
        assert np.abs(adversarial - clean).max() <= 0.2 + 0.005
        assert np.allclose(difference, 0.5 + shown["magnified"] * (adversarial - clean), atol=0.02 * shown["magnified"])
    json.dumps(items)


def test_a_shard_keeps_a_bounded_number_of_images(run, plain, digits):
    done = run("robust(linf(0.3), attack=pgd(steps=3))", plain, digits)
    for path in done.ctx.folder.glob("*/worst.npz"):
        with np.load(path) as held:
            assert 0 < len(held["clean"]) <= 12


def test_nothing_broken_shows_nothing(run, plain, digits):
    assert not any(f.kind == "gallery" for f in run("robust(linf(0.0), attack=fgsm())", plain, digits).findings.figures)


@pytest.mark.parametrize(
    "text", ["robust(l2())", "robust(linf(0.1), attack='pgdd')", "robust(linf(0.1), attack=boundary())"]
)
def test_settings_that_cannot_work_are_refused(text):
    with pytest.raises(BadInput):
        parse(text, "check")


def test_what_a_target_must_allow_is_what_its_attack_needs():
    assert parse("robust").access == {"gradients"}
    assert parse("robust(attack=square())").access == {"scores"}
