"""Linear probes: the head is learned, the encoder is not, and what comes out is a classifier like any other."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.training.conftest import same
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.hardening.harden import harden
from withstand.models import load_model
from withstand.models.embedding import Embedder, headless
from withstand.models.feature_encoder import encoder_of
from withstand.representation.probe import LinearProbe, features_of, linear_probe
from withstand.training import Trainer

QUICK = {"epochs": 2, "batch": 12, "schedule": "constant", "accelerator": "cpu"}


def scikit(model: nn.Module, data, strength: float = 1.0):
    held = data.batch(range(len(data)))
    with torch.no_grad():
        h = encoder_of(model).eval().features(held.x).numpy()
    scale = StandardScaler().fit(h)
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(scale.transform(h), held.y.numpy())
    return fitted.decision_function(scale.transform(h)), fitted.predict(scale.transform(h))


def test_the_probe_is_logistic_regression_on_standardised_features():
    data = images(48)
    probe = linear_probe(cnn(), data, strength=0.5)
    with torch.no_grad():
        logits = probe(data.batch(range(48)).x)
    expected, names = scikit(cnn(), data, 0.5)
    centred = logits - logits.mean(1, keepdim=True)
    assert np.allclose(centred, expected - expected.mean(1, keepdims=True), atol=1e-2)
    assert (logits.argmax(1).numpy() == names).all()
    assert not probe.training


def test_two_classes_and_classes_that_do_not_occur():
    held = images(24).batch(range(24))
    two = held.index(held.y < 2)
    data = from_arrays(two.x.numpy(), two.y.numpy() * 2, name="two", classes=("a", "b", "c"))
    probe = linear_probe(cnn(), data)
    with torch.no_grad():
        assert set(probe(two.x).argmax(1).tolist()) <= {0, 2}
    assert (probe(two.x).argmax(1) == two.y * 2).float().mean() > 0.7
    one = from_arrays(two.x.numpy(), np.zeros(len(two.x), int), name="one", classes=("a", "b"))
    with pytest.raises(BadInput, match="1 class"):
        linear_probe(cnn(), one)
    with pytest.raises(BadInput, match="without labels"):
        linear_probe(cnn(), from_arrays(two.x.numpy(), None, name="bare"))


def test_features_that_never_change_are_no_trouble():
    model = cnn()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    probe = linear_probe(model, images())
    assert torch.isfinite(probe(images().batch(range(4)).x)).all()
    assert (probe.std == 1).all()


def test_training_moves_the_head_alone():
    model = cnn()
    fitted = Trainer(**QUICK, optimizer="sgd(0.1)").fit(LinearProbe(), model, images())
    given = encoder_of(model)
    assert same(fitted.last.encoder, given)  # batch norm's statistics too
    assert all(p.requires_grad for p in fitted.last.parameters())
    features, _ = features_of(fitted.last, images())
    assert torch.allclose(fitted.last.mean, features.mean(0), atol=1e-5)
    std = features.std(0, correction=0)
    assert torch.allclose(fitted.last.std, torch.where(std > 0, std, 1.0), atol=1e-5)


def test_trained_long_enough_it_separates_what_logistic_regression_does():
    data = images(48)
    model = cnn()
    settings = {**QUICK, "epochs": 100, "batch": 48, "optimizer": "adam(0.05)"}
    logits = Trainer(**settings).fit(LinearProbe(), model, data).last(data.batch(range(48)).x)
    assert (logits.argmax(1).numpy() == scikit(model, data, 100.0)[1]).mean() > 0.95


def test_an_embedding_model_is_read_before_its_head():
    backbone, width = headless(cnn())
    embedder = Embedder(backbone, width, 3).eval()
    x = images().batch(range(4)).x
    assert torch.equal(encoder_of(embedder).features(x), backbone.eval()(x))


def test_an_encoder_becomes_a_classifier_that_is_loaded_audited_and_fine_tuned(tmp_path):
    data = images(24)
    quick = {**QUICK, "validation": None}
    spec = "tests/hardening/conftest.py:cnn"
    harden(spec, data, "contrastive", out=tmp_path / "encoder", **quick)
    encoder = load_model(f"artefact:{tmp_path / 'encoder'}")
    assert encoder.task == "embedding"
    assert encoder.space.classes is None
    probe = harden(f"artefact:{tmp_path / 'encoder'}", data, "linear_probe", out=tmp_path / "probe", **quick)
    x = data.batch(range(24)).x
    again = load_model(f"artefact:{tmp_path / 'probe'}")
    assert again.task == "classification"
    assert again.space.classes == 3
    with torch.no_grad():
        assert torch.allclose(again(x), probe(x), atol=1e-6)
        assert torch.allclose(again.module.model.encoder(x), encoder(x), atol=1e-6)
    tuned = harden(f"artefact:{tmp_path / 'probe'}", data, "standard", out=tmp_path / "tuned", **quick)
    last = load_model(f"artefact:{tmp_path / 'tuned'}")
    with torch.no_grad():
        assert torch.allclose(last(x), tuned(x), atol=1e-6)
        assert not torch.allclose(last(x), again(x), atol=1e-4)
    assert not same(last.module.model.encoder, again.module.model.encoder)
