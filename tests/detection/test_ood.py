import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.detection.ood import KNN, MSP, Bank, Energy, MaxLogit, penultimate
from withstand.errors import BadInput
from withstand.models import as_target
from withstand.registry import entries

Z = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0], [40.0, 0.0, -3.0]], dtype=torch.float64)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 5)
    ).double()


def images(n=12, seed=0):
    return ws.Rows.count(seed, n).uniform((1, 8, 8), "x", dtype=torch.float64)


def test_scores_from_logits_equal_their_formulas():
    p = np.exp(Z.numpy()) / np.exp(Z.numpy()).sum(1, keepdims=True)
    f = {"logits": Z}
    assert np.allclose(MSP().score(f, {})[:2], 1 - p[:2].max(1))
    assert np.allclose(MaxLogit().score(f, {}), -Z.numpy().max(1))
    assert np.allclose(Energy().score(f, {}), -np.log(np.exp(Z.numpy()).sum(1)))
    assert np.allclose(Energy(2.0).score(f, {}), -2 * np.log(np.exp(Z.numpy() / 2).sum(1)))


def test_msp_tells_apart_what_rounds_to_certainty():
    sure = MSP().score({"logits": torch.tensor([[40.0, 0.0], [60.0, 0.0]])}, {})
    assert 0 < float(sure[1]) < float(sure[0]) < 1e-16


@pytest.mark.parametrize("detector", [MSP(), MaxLogit(), Energy()])
def test_higher_is_more_suspicious(detector):
    flat, sure = detector.score({"logits": torch.tensor([[0.1, 0.0, 0.0], [9.0, 0.0, 0.0]])}, {})
    assert flat > sure


@pytest.mark.parametrize("k", [1, 3, 7])
def test_knn_is_the_kth_smallest_distance_between_unit_vectors(k, monkeypatch):
    g = torch.Generator().manual_seed(0)
    bank, h = torch.randn(20, 6, generator=g).double(), torch.randn(9, 6, generator=g).double()
    unit = lambda v: v / v.norm(dim=1, keepdim=True)  # noqa: E731
    naive = torch.stack([torch.tensor(sorted(float((a - b).norm()) for b in unit(bank))[k - 1]) for a in unit(h)])
    detector = KNN(k)
    fitted = detector.fit({"penultimate": bank})
    assert torch.allclose(detector.score({"penultimate": h}, fitted), naive.double())
    monkeypatch.setattr("withstand.detection.ood.knn._PAIRS", 45)  # two rows at a time
    assert torch.allclose(detector.score({"penultimate": h}, fitted), naive.double())


def test_knn_needs_as_many_trusted_examples_as_neighbours():
    with pytest.raises(BadInput, match="at most 3"):
        KNN(4).fit({"penultimate": torch.ones(3, 2)})
    with pytest.raises(BadInput, match="k"):
        KNN(0)
    with pytest.raises(BadInput, match="temperature"):
        Energy(0.0)


def test_a_bank_scores_all_in_one_pass_and_leaves_the_model_alone(net):
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bank = Bank(as_target(net), [MSP(), KNN(2), Energy(), KNN(3)])
    fitted = bank.fit(images(8, 1).split(4))
    assert set(fitted) == {"knn.bank", "knn-2.bank"}
    with ws.count_passes(net) as passes:
        scores = bank.score(images(), fitted)
    assert passes.forward_examples <= 12 + 1  # one more to find the last layer
    assert list(scores) == ["msp", "knn", "energy", "knn-2"]
    with torch.no_grad():
        net.eval()
        logits, h = net(images()), net[:-1](images())
        net.train()
    assert torch.allclose(scores["energy"], -logits.logsumexp(1))
    assert torch.allclose(scores["knn-2"], KNN(3).score({"penultimate": h}, {"bank": fitted["knn-2.bank"]}))
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_a_tap_may_name_a_submodule(net):
    class Reader:
        component_name, taps = "reader", ("4", "logits")

        def fit(self, features, y=None):
            return {}

        def score(self, features, fitted):
            return features["4"].sum(1) + features["logits"].sum(1)

    found = Bank(as_target(net), [Reader()]).score(images(3), {})["reader"]
    with torch.no_grad():
        net.eval()
        assert torch.allclose(found, net[:5](images(3)).sum(1) + net(images(3)).sum(1))


def test_penultimate_is_what_the_last_layer_reads(net):
    with torch.no_grad():
        net.eval()
        assert torch.equal(penultimate(as_target(net), images()), net[:-1](images()))


def test_penultimate_of_networks_without_a_linear_layer_is_pooled():
    class AllConv(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            return self.last(self.body(x).relu()).mean((2, 3))

    torch.manual_seed(0)
    model = AllConv().double()
    with torch.no_grad():
        assert torch.allclose(penultimate(as_target(model), images()), model.body(images()).relu().mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_penultimate_of_timm_models_is_what_timm_says(name):
    import timm

    settings = {"img_size": 32} if name.startswith("vit") else {}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **settings).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.allclose(penultimate(as_target(model), x), expected, atol=1e-6)


def test_a_model_without_features_gives_logits_only(net):
    class Box:
        name, task, module = "box", "classification", None
        access, space = frozenset({"scores"}), None

        def __call__(self, x):
            return x.flatten(1)[:, :5]

        def fingerprint(self):
            return ""

    assert set(Bank(Box(), [MSP(), Energy()]).score(images(), {})) == {"msp", "energy"}
    with pytest.raises(BadInput, match="penultimate"):
        Bank(Box(), [KNN()])
    with pytest.raises(BadInput, match="torch model"):
        penultimate(Box(), images())
    with pytest.raises(BadInput, match="linear"):
        penultimate(as_target(nn.Flatten()), images())


def test_every_detector_says_what_it_reads():
    for entry in entries("detector"):
        detector = entry.load()()
        assert detector.taps or hasattr(detector, "climbs") or hasattr(detector, "clipping")
        assert entry.summary
