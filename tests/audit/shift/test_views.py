"""How photographs are shown to a model: as its publisher says, or as the caller does."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import withstand as ws
from tests.data.shift.trees import Reader
from withstand.audit.shift.plan import view_of
from withstand.errors import BadInput
from withstand.models import as_target
from withstand.protocols import Space


def test_a_timm_model_says_itself_how_it_is_shown():
    model = ws.load_model("timm:test_vit", pretrained=False)
    config = model.model.model.pretrained_cfg if hasattr(model.model, "model") else model.model.pretrained_cfg
    view = view_of(model, None, None, None)
    assert (view.size, view.interpolation) == (config["input_size"][-1], config["interpolation"])
    assert view.resize == int(config["input_size"][-1] / config["crop_pct"])
    assert "published configuration" in view.source
    given = view_of(model, None, 0.5, "bilinear")
    assert (given.resize, given.interpolation) == (2 * view.size, "bilinear")
    assert given.source.startswith("given")


def test_other_models_are_shown_224_pixels_of_256_bilinear():
    view = view_of(ws.load_model("torchvision:resnet18", pretrained=False), None, None, None)
    assert (view.size, view.resize, view.interpolation) == (224, 256, "bilinear")


def test_torchvisions_published_weights_say_it_too(monkeypatch):
    from torchvision import models

    build = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights=None, **kw: build(name, weights=None, **kw))
    view = view_of(ws.load_model("torchvision:resnet50"), None, None, None)
    theirs = models.ResNet50_Weights.DEFAULT.transforms()
    assert (view.size, view.resize, view.interpolation) == (224, 232, "bilinear")
    assert ([view.size], [view.resize]) == (theirs.crop_size, theirs.resize_size)


def test_a_crop_mode_that_is_not_known_is_refused():
    model = as_target(Reader(), "m", Space((3, None, None), (0.0, 1.0), 1000))
    model.model.pretrained_cfg = {"input_size": (3, 8, 8), "crop_mode": "border", "crop_pct": 0.9}
    with pytest.raises(BadInput, match="crop_mode"):
        view_of(model, None, None, None)
    assert view_of(model, None, 0.8, None).resize == 10


PROCESSORS = {
    "both sides": ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "resample": 2}, (24, 24, True)),
    "both sides, then the centre": (
        "DeiTImageProcessor",
        {"size": {"height": 32, "width": 32}, "crop_size": {"height": 24, "width": 24}, "resample": 3},
        (24, 32, True),
    ),
    "shorter side, then the centre": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}, "resample": 3},
        (24, 30, False),
    ),
    "a share of the shorter side": (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 24}, "crop_pct": 0.875, "resample": 3},
        (24, 27, False),
    ),
    "whole from 384 on": (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 2},
        (384, 384, True),
    ),
    "LeViT's larger side": (
        "LevitImageProcessor",
        {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "resample": 3},
        (28, 32, False),
    ),
}


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=4)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize("case", PROCESSORS)
def test_a_transformers_model_is_shown_what_its_processor_makes(folder, case):
    import transformers

    kind, fields, expected = PROCESSORS[case]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **fields}))
    view = view_of(ws.load_model(f"hf:{folder}"), None, None, None)
    assert (view.size, view.resize, view.squash) == expected
    assert view.interpolation == {2: "bilinear", 3: "bicubic"}[fields["resample"]]
    ramp = np.linspace(0, 255, 90)[None, :, None] * np.linspace(0.2, 1, 60)[:, None, None] * np.array([1, 0.7, 0.4])
    image = Image.fromarray(ramp.astype(np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    ours = torch.from_numpy(np.asarray(view(image)).copy()).permute(2, 0, 1) / 255
    assert ours.shape == theirs.shape
    # rounding, and where the centre begins: transformers crops towards zero, torchvision to the nearest
    assert (ours - theirs).abs().max() < 10 / 255
    assert (ours - theirs).abs().mean() < 3 / 255


def test_a_processor_that_does_not_resize_says_nothing_of_photographs(folder):
    held = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}, "do_resize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(held))
    assert view_of(ws.load_model(f"hf:{folder}"), None, None, None).resize == 27


def test_a_processor_that_puts_blue_first_is_refused(folder):
    held = {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(held))
    with pytest.raises(BadInput, match=r"do_flip_channel_order.*flips the channels"):
        ws.load_model(f"hf:{folder}")
