"""Input gradients as a check: what it measures and what it draws."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from withstand.audit.presets import checks_of
from withstand.errors import BadInput
from withstand.hardening.jsigr import saliency_gradient
from withstand.models import as_target
from withstand.protocols import Space

SPACE = Space((1, 8, 8), (0.0, 1.0), 10)


class Pixels(nn.Module):
    """Reads some pixels: the logit of class 1 is their sum times 20, less 10; the others are 0."""

    def __init__(self, *places):
        super().__init__()
        self.places = places

    def forward(self, x):
        read = 20 * sum(x[:, 0, a, b] for a, b in self.places) - 10
        return torch.stack([torch.zeros_like(read), read], 1)


def dark(arrays, n=12):
    x = torch.zeros(n, 1, 8, 8)
    x[:, 0, 2, 3] = 1.0
    return arrays(x, torch.ones(n, dtype=torch.long), "dark")


def test_a_model_of_one_pixel_is_as_concentrated_as_can_be_and_goes_with_it(run, arrays):
    found = run("saliency(steps=64)", as_target(Pixels((2, 3)), "pixel", SPACE), dark(arrays))
    assert found.metric("gradient_gini").value == pytest.approx(1 - 1 / 64)
    assert found.metric("gradient_alignment").value == pytest.approx(1.0)
    # the first pixel to go decides: p = sigmoid(10) before, sigmoid(20 / 64 - 10) = 0.00006 from then on
    assert found.metric("deletion_auc").value == pytest.approx(1 / 128, abs=1e-4)
    assert found.metric("insertion_auc").value == pytest.approx(1 - 1 / 128, abs=1e-2)


def test_the_gradient_is_that_of_the_predicted_logit(run, digits, plain):
    batch = digits.batch(range(6))
    x = batch.x.clone().requires_grad_(True)
    z = plain.module(x)
    label = z.argmax(1)
    for i in range(6):
        (g,) = torch.autograd.grad(z[i, label[i]], x, retain_graph=True)
        torch.testing.assert_close(saliency_gradient(plain.module, batch.x, label)[i], g[i])


def test_all_models_show_the_same_examples(run, digits, plain, hardened):
    shown = []
    for model in (plain, hardened):
        (figure,) = run("saliency(examples=60, steps=2)", model, digits, shard=25).findings.figures
        shown.append([item["id"] for item in figure.data["items"]])
    assert shown[0] == shown[1]
    assert len(shown[0]) == 8
    assert shown[0] != list(range(8))


def test_maps_are_red_where_brighter_raises_the_score_and_blue_where_it_lowers(run, arrays):
    class Both(nn.Module):
        def forward(self, x):
            read = x[:, 0, 2, 3] - x[:, 0, 5, 6]
            return torch.stack([torch.zeros_like(read), read], 1)

    found = run("saliency(steps=2)", as_target(Both(), "both", SPACE), dark(arrays))
    item = found.findings.figures[0].data["items"][0]
    pixels = np.asarray(Image.open(found.ctx.root / item["map"]))
    assert pixels.shape == (8, 8, 3)
    assert pixels[2, 3].tolist() == [178, 23, 43]
    assert pixels[5, 6].tolist() == [33, 102, 171]
    assert pixels[0, 0].tolist() == [255, 255, 255]
    picture = np.asarray(Image.open(found.ctx.root / item["image"]))
    assert picture.shape == (8, 8)
    assert picture[2, 3] == 255


def test_a_model_without_any_gradient_has_maps_of_nothing(run, arrays):
    class Constant(nn.Module):
        def forward(self, x):
            return 0.0 * x.flatten(1)[:, :2] + torch.tensor([0.0, 1.0])

    found = run("saliency(steps=2)", as_target(Constant(), "constant", SPACE), dark(arrays))
    assert found.metric("gradient_gini").value == found.metric("gradient_alignment").value == 0


def test_what_is_no_image_is_refused_and_left_out_of_presets(run, arrays):
    flat = arrays(torch.rand(4, 6), torch.zeros(4, dtype=torch.long), "flat")
    with pytest.raises(BadInput, match="images"):
        run("saliency", as_target(nn.Linear(6, 2), "flat", Space((6,), None, 2)), flat)
    for preset in ("quick", "standard", "full"):
        assert "saliency" in checks_of(preset, space=SPACE)
        assert "saliency" not in checks_of(preset, space=Space((6,), None, 2))
        assert "saliency" not in checks_of(preset, space=SPACE, access={"scores"})


def test_bad_steps_are_refused():
    with pytest.raises(BadInput, match="steps: got 0"):
        checks_of(checks=["saliency(steps=0)"])
