"""Trainings that ship an embedding, from the recipe to the model that is loaded again."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.data.arrays import from_arrays
from withstand.hardening.harden import harden
from withstand.models import artefact
from withstand.registry import component
from withstand.representation.recipe import EmbeddingRecipe
from withstand.training import Trainer


@component("recipe", "pull_together_for_tests")
class PullTogether(EmbeddingRecipe):
    """Examples of a class are pulled together."""

    dim: int = 4
    defaults = {"sampler": "m_per_class(4)", "batch": 12, "epochs": 2, "optimizer": "sgd(0.01)"}

    def loss(self, system: Any, batch: Any, step: Any) -> torch.Tensor:
        assert set(batch.y.unique(return_counts=True)[1].tolist()) == {4}  # the sampler of the defaults
        z = system(batch.x)
        same = batch.y[:, None] == batch.y[None]
        return -(z @ z.T)[same].mean()


@pytest.fixture
def digits():
    y = np.repeat(np.arange(6), 8)
    x = np.random.default_rng(0).random((48, 1, 4, 4), dtype=np.float32) * 0.3
    x[np.arange(48), 0, y % 4, y // 4] = 1
    return from_arrays(x, y, name="dots")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))  # fewer classes than the data


def test_recall_at_one_is_that_of_a_plain_search(digits):
    model = PullTogether().deploy(net(), digits.space).eval()
    found = PullTogether().validate(model, digits, None, "cpu", 0)
    z, y = model(digits.batch(range(48)).x), digits.batch(range(48)).y
    distance = torch.cdist(z, z).fill_diagonal_(torch.inf)
    expected = (y[distance.argmin(1)] == y).float().mean()
    assert found == {"recall_at_1": pytest.approx(float(expected))}


def test_attacked_queries_meet_a_clean_gallery(digits):
    model = PullTogether().deploy(net(), digits.space).eval()
    x, y = digits.batch(range(48)).x, digits.batch(range(48)).y

    def darkened(model, x, y, **more):
        return x * 0.2

    found = PullTogether().validate(model, digits, darkened, "cpu", 0)
    distance = torch.cdist(model(x * 0.2), model(x)).fill_diagonal_(torch.inf)
    expected = (y[distance.argmin(1)] == y).float().mean()
    assert found["robust_recall_at_1"] == pytest.approx(float(expected))
    assert found["robust_recall_at_1"] != found["recall_at_1"]


def test_harden_ships_an_embedding_with_the_recipes_own_settings(digits):
    after = harden(net(), digits, PullTogether(), validation=None, accelerator="cpu")
    assert (after.task, len(after.history)) == ("embedding", 2)
    assert after(digits.batch([0, 1]).x).shape == (2, 4)
    assert len(harden(net(), digits, PullTogether(), validation=None, accelerator="cpu", epochs=1).history) == 1


def test_the_best_epoch_is_that_of_the_best_recall(digits):
    after = harden(net(), digits, PullTogether(), validation=digits, accelerator="cpu", epochs=4)
    recalls = [row["recall_at_1"] for row in after.history]
    assert after.fitted.best_epoch == int(np.argmax(recalls)) + 1


def test_it_comes_back_from_its_folder(digits, tmp_path):
    after = harden(
        "zoo:digits_cnn", ws.load_data("digits", split="train", limit=60), PullTogether(), out=tmp_path,
        validation=None, accelerator="cpu", epochs=1,
    )  # fmt: skip
    again = artefact.load(str(tmp_path))
    x = torch.rand(3, 1, 8, 8)
    assert again.task == "embedding"
    assert torch.allclose(again(x), after(x), atol=1e-6)


def test_a_wrapper_keeps_what_the_recipe_within_says():
    from withstand.hardening.awp import AWP

    around = AWP(recipe=PullTogether())
    assert around.task == "embedding"
    assert around.selects_on == PullTogether.selects_on
    assert around.defaults == PullTogether.defaults


def test_examples_are_made_before_the_training(digits):
    class Fewer(type(PullTogether())):
        def examples(self, model, data, seed):
            return data.subset(range(24))

    fitted = Trainer(batch=12, epochs=1, sampler="m_per_class(4)", accelerator="cpu").fit(Fewer(), net(), digits)
    assert fitted.steps == 2
