import json
import sys

import pytest
import torch

import withstand as ws
from withstand.errors import BadInput, MissingExtra, Unavailable
from withstand.models import check_compatible


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=4, num_channels=3
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "net")
    return tmp_path / "net", model


def processor(folder, **fields):
    base = {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "size": {"height": 24, "width": 24},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(base | fields))


x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_a_folder_brings_logits_size_and_normalisation(folder):
    place, model = folder
    processor(place)
    target = ws.load_model(f"hf:{place}")
    assert target.space.shape == (3, 24, 24)
    assert target.space.classes == 4
    scaled = (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(target(x), model(scaled).logits, atol=1e-5)
    assert "mean 0.1 0.2 0.3" in target.notes[0]
    data = ws.data.from_arrays(x, [0, 3], classes=4)
    check_compatible(target, data)
    processor(place, do_normalize=False)
    with torch.no_grad():
        assert torch.allclose(ws.load_model(f"hf:{place}")(x), model(x).logits, atol=1e-5)


def test_a_missing_processor_is_noted(folder):
    place, model = folder
    target = ws.load_model(f"hf:{place}")
    assert "no preprocessor_config.json" in target.notes[0]
    with torch.no_grad():
        assert torch.allclose(target(x), model(x).logits, atol=1e-5)


def test_what_cannot_be_used_is_refused(folder, tmp_path, monkeypatch):
    place, _ = folder
    processor(place, rescale_factor=1 / 127.5)
    with pytest.raises(BadInput, match=r"rescale_factor: got .* allowed: 1/255"):
        ws.load_model(f"hf:{place}")
    processor(place)
    with pytest.raises(BadInput, match="classes: got 10; allowed: 4"):
        ws.load_model(f"hf:{place}", classes=10)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(BadInput, match="weights: got a file"):
        ws.load_model(f"hf:{place}", tmp_path / "w.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="not an image classifier of transformers"):
        ws.load_model(f"hf:{tmp_path / 'empty'}")
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[:-50])
    with pytest.raises(BadInput, match="not an image classifier of transformers"):
        ws.load_model(f"hf:{place}")
    (place / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="not an image classifier of transformers in safetensors form"):
        ws.load_model(f"hf:{place}")


def test_a_network_without_its_last_layer_is_refused(folder):
    from safetensors.torch import load_file, save_file

    place, _ = folder
    state = load_file(place / "model.safetensors")
    save_file({k: v for k, v in state.items() if "classifier" not in k}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"2 weights that it lacks: classifier\.1\.bias, classifier\.1\.weight"):
        ws.load_model(f"hf:{place}")


def test_a_repository_that_cannot_be_fetched_is_said(monkeypatch):
    transformers = pytest.importorskip("transformers")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(Unavailable, match=r"hf:some/net: its published weights could not be fetched: no network"):
        ws.load_model("hf:some/net")


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r'needs transformers, .* pip install "withstand\[hf\]"'):
        ws.load_model("hf:some/net")
