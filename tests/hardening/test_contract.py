"""What every recipe keeps to."""

import copy

import pytest
import torch

from tests.hardening.conftest import network_for, recipes
from tests.training.conftest import same
from withstand.registry import parse
from withstand.training import SGD, Trainer

QUICK = {"epochs": 2, "batch": 8, "optimizer": SGD(0.05), "schedule": "cosine", "accelerator": "cpu"}


def trainer_for(recipe, **more):
    """A short training with what the recipe needs, batches of two classes where it wants classes."""
    own = dict(recipe.defaults)
    if str(own.get("sampler", "")).startswith("m_per_class"):
        own["sampler"] = "m_per_class(4)"
    return Trainer(**{**own, **QUICK, **more})


@pytest.fixture(params=recipes())
def named(request):
    return request.param, recipes()[request.param]


def test_a_recipe_is_a_value(named):
    _, recipe = named
    assert parse(repr(recipe), "recipe") == recipe


def test_it_trains_a_copy_and_gives_a_plain_model_back(named, shapes):
    name, recipe = named
    model = network_for(name)
    given = copy.deepcopy(model)
    draws = torch.random.get_rng_state()
    fitted = trainer_for(recipe).fit(recipe, model, shapes)
    assert same(model, given)
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(draws, torch.random.get_rng_state())
    built = recipe.deploy(copy.deepcopy(model), shapes.space)
    assert fitted.last.state_dict().keys() == built.state_dict().keys()
    assert [type(m) for m in fitted.last.modules()] == [type(m) for m in built.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in fitted.last.modules())
    assert not same(fitted.last, built)
    assert not fitted.last.training
    assert "loss" in fitted.history[-1]


def test_it_goes_on_from_a_checkpoint_bit_for_bit(named, shapes, tmp_path):
    name, recipe = named
    whole = trainer_for(recipe).fit(recipe, network_for(name), shapes).last
    stops = Interrupted(recipe, at=4)
    trainer = trainer_for(recipe, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(stops, network_for(name), shapes, out=tmp_path)
    again = trainer.fit(recipe, network_for(name), shapes, out=tmp_path).last
    assert same(whole, again)


class Interrupted:
    """A recipe that is stopped in the middle of a step."""

    def __init__(self, recipe, at):
        self.recipe, self.at = recipe, at

    def __getattr__(self, name):
        return getattr(self.__dict__["recipe"], name)

    def __repr__(self):
        return repr(self.recipe)

    def craft(self, system, batch, step):
        if step.step == self.at:
            raise KeyboardInterrupt
        return self.recipe.craft(system, batch, step)


def test_equal_settings_give_equal_weights_and_other_seeds_others(named, shapes):
    name, recipe = named
    one, two, other = (trainer_for(recipe).fit(recipe, network_for(name), shapes, seed=s).last for s in (0, 0, 1))
    assert same(one, two)
    assert not same(one, other)
