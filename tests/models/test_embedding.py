"""Classifiers that lose their head, and vectors in its place."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from withstand.errors import BadInput
from withstand.models.embedding import Embedder, headless
from withstand.models.target import Logits, Normalised


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_the_features_are_what_the_last_layer_saw():
    model, x = net(), torch.rand(5, 1, 2, 2)
    backbone, width = headless(model)
    assert width == 6
    assert torch.equal(backbone(x), model[:3](x))
    assert isinstance(model[3], nn.Linear)  # the given model keeps its head


def test_a_normalisation_stays_and_what_reads_logits_goes():
    inner, x = net(), torch.rand(5, 1, 2, 2)
    backbone, _ = headless(Logits(Normalised(inner, (0.5,), (0.25,))))
    assert torch.allclose(backbone(x), inner[:3]((x - 0.5) / 0.25))


def test_a_model_that_is_its_own_head_leaves_its_input():
    backbone, width = headless(nn.Linear(4, 2))
    assert width == 4
    assert torch.equal(backbone(torch.ones(3, 4)), torch.ones(3, 4))


def test_a_model_without_a_linear_layer_is_refused():
    with pytest.raises(BadInput, match="last layer is linear"):
        headless(nn.Conv2d(1, 3, 1))


def test_embeddings_are_unit_vectors_of_the_features():
    embedder = Embedder(*headless(net()), dim=2)
    x = torch.rand(5, 1, 2, 2)
    expected = F.normalize(embedder.head(embedder.backbone(x)), dim=1)
    assert torch.equal(embedder(x), expected)
    assert torch.allclose(embedder(x).norm(dim=1), torch.ones(5))


def test_what_an_embedder_refuses():
    with pytest.raises(BadInput, match="length >= 1"):
        Embedder(nn.Identity(), 4, 0)
    with pytest.raises(BadInput, match=r"features \[2, 4\]"):
        Embedder(nn.Identity(), 4, 3)(torch.zeros(2, 5))
