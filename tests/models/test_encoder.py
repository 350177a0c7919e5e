"""What a search compares images by."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.models import Encoder, TorchTarget, check_compatible, load_model
from withstand.models.encoder import Features

X = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def net(out=3, last=None):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, out), *([last] if last else [])).eval()


def test_a_classifier_is_read_before_its_last_layer_or_at_a_layer():
    model = net()
    with torch.no_grad():
        hidden, maps = model[:6](X), model[:3](X)
        assert torch.allclose(Encoder(model)(X), F.normalize(hidden, dim=1))
        assert torch.allclose(Encoder(model, "2")(X), F.normalize(maps.flatten(2).mean(2), dim=1), atol=1e-6)


def test_an_embedding_has_length_one_and_a_hash_is_a_sign():
    model = net()
    with torch.no_grad():
        out = model(X)
        assert torch.allclose(Encoder(TorchTarget(model, task="embedding"))(X), F.normalize(out, dim=1))
        hashed = TorchTarget(nn.Sequential(model, nn.Tanh()), task="hashing")
        assert torch.equal(Encoder(hashed)(X), torch.where(out >= 0, 1.0, -1.0))
    assert Encoder(hashed).binary
    assert torch.equal(Encoder(TorchTarget(Zeros(), task="hashing"))(X), torch.ones(9, 3))


class Zeros(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 3)


def test_the_model_is_left_as_it_was():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    Encoder(model)(X)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_data_set_keeps_its_order_labels_and_ids(monkeypatch):
    monkeypatch.setattr("withstand.models.encoder._BLOCK", 4)
    data = from_arrays(X, torch.arange(9) % 3, classes=3).subset([8, 1, 5, 0, 2])
    found, labels, ids = Encoder(net()).of(data)
    assert torch.allclose(found, Encoder(net())(X[[8, 1, 5, 0, 2]]), atol=1e-6)
    assert labels.tolist() == [2, 1, 2, 0, 2]
    assert ids.tolist() == [8, 1, 5, 0, 2]


def test_the_fingerprint_changes_with_weights_and_layer():
    model = net()
    first = Encoder(model).fingerprint()
    assert Encoder(net()).fingerprint() == first
    assert Encoder(model, "2").fingerprint() != first
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1e-3
    assert Encoder(model).fingerprint() != first


def test_features_keep_their_gradients():
    x = X.clone().requires_grad_(True)
    Features(net())(x)[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Encoder(net(), "nowhere"), "nowhere"),
        (lambda: Encoder(TorchTarget(net(), task="embedding"), "2"), "layer"),
        (lambda: Encoder(TorchTarget(net(last=nn.Unflatten(1, (3, 1))), task="embedding"))(X), "float vectors"),
        (lambda: Encoder(TorchTarget(Zeros() if False else Nothing(), task="embedding"))(X), "NaN"),
        (lambda: load_model("zoo:digits_cnn", pretrained=False, layer="0"), "layer"),
    ],
)
def test_what_cannot_be_compared_is_refused(make, said):
    with pytest.raises(BadInput, match=said):
        make()


class Nothing(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 3), torch.nan)


FACTORY = """
import torch
from torch import nn

def embed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

def hashed():
    return nn.Sequential(embed(), nn.Tanh())
"""


def test_models_are_loaded_for_a_task(tmp_path):
    (tmp_path / "nets.py").write_text(FACTORY)
    x = torch.rand(2, 1, 8, 8)
    for task in ("retrieval", "embedding"):
        found = load_model(f"{tmp_path}/nets.py:embed", task=task)
        assert found.task == "embedding"
        assert found(x).shape == (2, 5)
        features = load_model("zoo:digits_cnn", task=task, pretrained=False)
        assert features.task == "embedding"
        assert torch.allclose(features(x), Encoder(load_model("zoo:digits_cnn", pretrained=False))(x))
    inside = load_model(f"{tmp_path}/nets.py:embed", task="embedding", layer="0")
    assert inside(x).shape == (2, 64)
    assert load_model(f"{tmp_path}/nets.py:hashed", task="hashing").task == "hashing"


@pytest.mark.parametrize(("task", "said"), [("embedding", "NaN"), ("hashing", "NaN")])
def test_outputs_are_looked_at_before_work(task, said):
    data = from_arrays(X, torch.arange(9) % 3, classes=3)
    with pytest.raises(BadInput, match=said):
        check_compatible(TorchTarget(Nothing(), task=task), data)
    with pytest.raises(BadInput, match="beyond"):
        check_compatible(TorchTarget(nn.Sequential(nn.Flatten(), Big()), task="hashing"), data)
    assert check_compatible(TorchTarget(net(7), task="embedding"), data).classes == 3  # of the data
    with pytest.raises(BadInput, match="labels"):
        check_compatible(TorchTarget(net(7), task="embedding"), from_arrays(X, None))


class Big(nn.Module):
    def forward(self, x):
        return 2 * x + 1
