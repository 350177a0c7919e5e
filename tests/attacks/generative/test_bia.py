import copy

import pytest
import torch
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.hardening.test_contract import Interrupted
from tests.training.conftest import same
from withstand.attacks import Generated
from withstand.attacks.generative import BIA, CDA
from withstand.attacks.generative.source import Source
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.models import Logits, Normalised
from withstand.protocols import Batch, Space
from withstand.random import Rows
from withstand.registry import parse
from withstand.training import Adam, Constant, Trainer
from withstand.training.recipe import Step

SMALL = {"ngf": 4, "blocks": 1, "eps": 0.1}
VARIANTS = [{"rn": rn, "da": da} for rn in (False, True) for da in (False, True)]
TRAINER = {"epochs": 2, "batch": 8, "optimizer": "adam(2e-3)", "schedule": "constant", "accelerator": "cpu"}
RECIPES = [*(BIA(layer="2", **SMALL, **v) for v in VARIANTS), CDA(**SMALL)]


def system_of(recipe, model=None):
    torch.manual_seed(0)
    return recipe.setup(cnn() if model is None else model, images(), Rows.count(0, 24))


def step(number=0):
    return Step(number, 10, 0, 1, 0, Rows.count(0, 24))


def by_hand(f, x, z, attention=False):
    """The loss as the paper writes it, image by image."""
    found = []
    for a, b in zip(f(x), f(z)):
        weight = a.mean(0, keepdim=True).abs() if attention else torch.ones(1)
        p, q = (weight * a).flatten(), (weight * b).flatten()
        found.append(p @ q / (p.norm() * q.norm()))
    return torch.stack(found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_similarity_of_an_image_to_itself_is_one(variant):
    recipe = BIA(layer="2", **SMALL, **variant)
    system, x = system_of(recipe), torch.rand(5, 1, 8, 8)
    for normal in (None, (0.5, 0.75), (0.3, 1.2)):
        assert recipe.similarity(system, x, x, normal).allclose(torch.ones(5), atol=1e-6)


def test_a_layer_before_an_activation_in_place_is_read_before_it():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3))
    x, z = torch.rand(2, 5, 1, 8, 8)
    recipe = BIA(layer="0", **SMALL)
    assert recipe.similarity(system_of(recipe, net), z, x).allclose(by_hand(net[0], x, z), atol=1e-6)


@pytest.mark.parametrize("da", [False, True])
@pytest.mark.parametrize("normal", [None, (0.4, 0.7)])
def test_the_similarity_is_that_of_the_paper(da, normal):
    recipe, net = BIA(layer="0", da=da, **SMALL), cnn().eval()  # before the ReLU: maps with both signs
    x, z = torch.rand(2, 5, 1, 8, 8)
    mu, s = normal or (0.0, 1.0)
    expected = by_hand(lambda t: net[:1]((t - mu) / s), x, z, da)
    assert recipe.similarity(system_of(recipe, net), z, x, normal).allclose(expected, atol=1e-6)


def test_attention_that_is_constant_over_space_changes_nothing():
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(scale_factor=4), nn.Conv2d(1, 6, 1), nn.Flatten())
    x, z = torch.rand(2, 5, 1, 8, 8)
    plain, da = (BIA(layer="2", da=da, **SMALL) for da in (False, True))
    one, two = (r.similarity(system_of(r, flat), z, x) for r in (plain, da))
    assert one.allclose(two, atol=1e-6)
    assert not one.allclose(torch.ones(5), atol=1e-6)


@pytest.mark.parametrize("da", [False, True])
def test_a_factor_of_the_features_cancels(da):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 3))
    larger = copy.deepcopy(net)
    larger[0].weight.data.mul_(7)
    recipe = BIA(layer="0", da=da, **SMALL)
    x, z = torch.rand(2, 5, 1, 8, 8)
    one = recipe.similarity(system_of(recipe, net), z, x, (0.0, 1.0))
    assert one.allclose(recipe.similarity(system_of(recipe, larger), z, x, (0.0, 1.0)), atol=1e-6)
    assert one.allclose(recipe.similarity(system_of(recipe, net), z, x, (0.0, 0.3)), atol=1e-6)
    assert not one.allclose(recipe.similarity(system_of(recipe, net), z, x, (0.5, 1.0)), atol=1e-4)


def test_features_that_are_all_zero_have_a_finite_gradient():
    dead = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    dead[0].bias.data.fill_(-100)
    recipe = BIA(layer="1", **SMALL)
    z = torch.rand(2, 1, 8, 8, requires_grad=True)
    recipe.similarity(system_of(recipe, dead), z, torch.rand(2, 1, 8, 8)).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_random_normalisation_takes_the_place_of_the_sources_own():
    net = cnn().eval()
    x, z = torch.rand(2, 5, 1, 8, 8)
    recipe = BIA(layer="2", rn=True, **SMALL)
    wrapped = Logits(Normalised(net, (0.2,), (0.3,)))
    for model in (net, wrapped):
        found = recipe.similarity(system_of(recipe, model), z, x, (0.4, 0.7))
        assert found.allclose(by_hand(lambda t: net[:3]((t - 0.4) / 0.7), x, z), atol=1e-6)
    own = recipe.similarity(system_of(recipe, wrapped), z, x)
    assert own.allclose(by_hand(lambda t: net[:3]((t - 0.2) / 0.3), x, z), atol=1e-6)


def test_both_images_of_a_step_get_one_draw_and_steps_get_others(monkeypatch):
    recipe = BIA(layer="2", rn=True, **SMALL)
    system, seen = system_of(recipe), []
    features = Source.features

    def spy(self, x, layer, normal=None):
        seen.append(normal)
        return features(self, x, layer, normal)

    monkeypatch.setattr(Source, "features", spy)
    for number in range(200):
        recipe.loss(system, Batch(torch.rand(1, 1, 8, 8)), step(number))
    assert len(seen) == 400
    assert seen[::2] == seen[1::2]
    mu, s = torch.tensor(seen[::2], dtype=torch.float64).T
    assert mu.unique().numel() == 200
    for draws, mean in ((mu, 0.5), (s, 0.75)):
        assert abs(draws.mean() - mean) < 0.02
        assert 0.065 < draws.std() < 0.095
    assert BIA(layer="2", **SMALL).normal(step()) is None


def test_no_gradient_reaches_the_attention_or_the_source():
    recipe = BIA(layer="2", da=True, **SMALL)
    system = system_of(recipe)
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    recipe.similarity(system, torch.rand(3, 1, 8, 8, requires_grad=True), x).sum().backward()
    assert x.grad is None
    recipe.loss(system, Batch(x.detach()), step()).backward()
    assert all(p.grad is None for p in system.source.model.parameters())
    assert any(float(p.grad.abs().max()) > 0 for p in system.model.parameters())


@pytest.mark.parametrize("parameterisation", ["image", "residual"])
def test_points_lie_in_the_set_and_clipped_pixels_have_no_gradient(parameterisation):
    recipe = BIA(layer="2", parameterisation=parameterisation, **SMALL)
    system, x, now = system_of(recipe), torch.rand(4, 1, 8, 8).round(decimals=1), step()
    made = []
    system.model.register_forward_hook(lambda _, __, out: made.append(out) or out.retain_grad())
    moved = recipe.adversarial(system, x, now)
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    moved.sum().backward()
    live = ((made[0] - x).abs() <= 0.1 + 1e-7) & (made[0] >= 0) & (made[0] <= 1)
    assert torch.equal(made[0].grad, live.float())
    assert float(now.said["live_pixels"]) == pytest.approx(float(live.float().mean()))
    assert 0 < float(live.float().mean()) < 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_mean_similarity_of_what_the_generator_makes(variant):
    recipe = BIA(layer="0", **SMALL, **variant)
    system, x, now = system_of(recipe), torch.rand(4, 1, 8, 8), step()
    system.model.eval()
    z = system.model(x).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    expected = recipe.similarity(system, z, x, recipe.normal(now)).mean()
    assert torch.allclose(recipe.loss(system, Batch(x), now), expected, atol=1e-6)
    assert torch.allclose(now.said["cosine"], expected, atol=1e-6)


def test_cda_is_the_relative_cross_entropy_towards_the_clean_class():
    recipe, net = CDA(**SMALL), cnn().eval()
    system, x = system_of(recipe, net), torch.rand(4, 1, 8, 8)
    system.model.eval()
    moved = recipe.adversarial(system, x, step())
    difference = (net(moved) - net(x)).log_softmax(1)
    expected = difference.gather(1, net(x).argmax(1)[:, None]).mean()
    assert torch.allclose(recipe.loss(system, Batch(x), step()), expected, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_training_improves_the_loss_and_leaves_the_source_alone(recipe, shapes):
    model, draws = cnn(), torch.random.get_rng_state()
    given = copy.deepcopy(model)
    settings = TRAINER | {"epochs": 6, "optimizer": "adam(1e-2)"}
    fitted = Trainer(**settings).fit(recipe, model, shapes)
    assert same(model, given)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(draws, torch.random.get_rng_state())
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert {"live_pixels"} <= fitted.history[0].keys()
    assert ("cosine" in fitted.history[0]) == isinstance(recipe, BIA)


@pytest.mark.parametrize("recipe", [RECIPES[3], RECIPES[4]], ids=["bia", "cda"])
def test_it_goes_on_from_a_checkpoint_bit_for_bit(recipe, shapes, tmp_path):
    whole = Trainer(**TRAINER).fit(recipe, cnn(), shapes).last
    trainer = Trainer(**TRAINER, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Interrupted(recipe, at=4), cnn(), shapes, out=tmp_path)
    assert same(whole, trainer.fit(recipe, cnn(), shapes, out=tmp_path).last)


def test_the_sources_batch_norm_stands_still(shapes):
    held = []

    class Watched(BIA):
        def finish(self, system):
            held.append(system.source.model)
            return super().finish(system)

    model = cnn()
    Trainer(**TRAINER).fit(Watched(layer="2", **SMALL), model, shapes)
    assert same(held[0], model)
    assert held[0] is not model
    assert not any(m.training for m in held[0].modules())


def test_the_source_is_moved_with_the_rest_but_not_saved(shapes, tmp_path):
    system = system_of(RECIPES[0]).double()
    assert next(system.source.model.parameters()).dtype == torch.float64
    assert not [name for name in system.state_dict() if name.startswith("source")]
    assert not any(p.requires_grad for p in system.source.model.parameters())
    system.train()
    assert not system.source.model.training


def test_the_generator_is_built_again_from_recipe_and_space(shapes):
    recipe = RECIPES[0]
    fitted = Trainer(**TRAINER).fit(recipe, cnn(), shapes).last
    again = recipe.deploy(None, Space((1, 8, 8), (0.0, 1.0), None))
    again.load_state_dict(fitted.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.eval()(x), fitted(x))


@pytest.mark.parametrize("recipe", [BIA(), CDA()])
def test_what_is_unsaid_is_as_published(recipe):
    said = (recipe.eps, recipe.ngf, recipe.blocks, recipe.parameterisation)
    assert said == (10 / 255, 64, 6, "image")
    assert isinstance(recipe, CDA) or (recipe.layer, recipe.rn, recipe.da) == (None, False, False)
    trainer = Trainer(**recipe.defaults)
    assert trainer.optimizer == Adam(2e-4, betas=(0.5, 0.999))
    assert trainer.schedule == Constant()
    assert (trainer.batch, trainer.epochs) == (16, 1)
    assert Generated().threat.eps == 10 / 255


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_settings_can_be_written_and_read_back(recipe):
    assert parse(repr(recipe), "recipe") == recipe
    assert recipe.verb == "fit-attack"
    assert Trainer(**recipe.defaults).batch == 16


def test_a_layer_left_unsaid_is_the_end_of_the_second_stage():
    class Staged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
            self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
            self.layer3 = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    assert system_of(BIA(**SMALL), Normalised(Staged(), (0.5,), (0.5,))).layer == "layer2"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layer": "conv9"}, "submodule"),
        ({"layer": "7"}, r"maps \[N, C, H, W\]"),
        ({"layer": "9"}, r"maps \[N, C, H, W\]"),
        ({"eps": 0.0}, "eps"),
        ({"eps": 1.5}, "eps"),
        ({"ngf": 0}, "ngf"),
        ({"blocks": -1}, "blocks"),
        ({"parameterisation": "pixels"}, "parameterisation"),
    ],
)
def test_bad_settings_are_refused_before_any_step(settings, said):
    with pytest.raises(BadInput, match=said):
        system_of(BIA(**{"layer": "2", **SMALL, **settings}))


def test_images_that_a_generator_cannot_take_are_refused():
    tiny = from_arrays(torch.rand(8, 1, 4, 4).numpy(), None)
    with pytest.raises(BadInput, match="5 pixels"):
        BIA(layer="2", **SMALL).setup(cnn(), tiny, Rows.count(0, 8))


@pytest.fixture(scope="module")
def shapes():
    return images()
