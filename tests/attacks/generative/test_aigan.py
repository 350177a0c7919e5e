import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.hardening.test_contract import Interrupted
from tests.training.conftest import same
from withstand.attacks import PGD, TargetedGenerated
from withstand.attacks.generative import AIGAN
from withstand.attacks.generative.aigan import excess
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.objectives import CrossEntropy, TargetedCrossEntropy
from withstand.protocols import Space
from withstand.random import Rows, derive
from withstand.registry import parse
from withstand.threats import Linf
from withstand.training import Adam, Trainer
from withstand.training.recipe import Step

ATTACK = PGD(Linf(0.2), steps=3)
SMALL = {"attack": ATTACK, "ngf": 4, "blocks": 1}
VARIANTS = ("two_stage", "robust_d")
TRAINER = {"epochs": 2, "batch": 8, "optimizer": "adam(2e-3)", "schedule": "constant", "accelerator": "cpu"}


def system_of(recipe, model=None, data=None):
    torch.manual_seed(0)
    return recipe.setup(cnn() if model is None else model, data or images(), Rows.count(0, 24))


def step(epoch=0):
    return Step(0, 10, epoch, 4, 0, Rows(derive(0, "epoch", epoch), torch.arange(12)))


def crafted(recipe, system, epoch=0):
    return recipe.craft(system, images().batch(range(12)), step(epoch))


def losses(recipe, system, batch, now=None):
    """The loss of each update, by the name of its optimiser, each with its graph."""
    return {u.opt: u.loss() for u in recipe.updates(system, batch, now or step())}


@pytest.mark.parametrize("variant", VARIANTS)
def test_points_of_an_untrained_generator_lie_in_the_set(variant):
    system = system_of(AIGAN(variant, **SMALL)).double()
    for p in system.model.parameters():
        p.data.mul_(50)
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    made = system.model(x, torch.arange(6) % 3)
    assert 0.15 < (made - x).abs().max() <= 0.2 + 1e-6
    assert made.shape == x.shape
    assert made.dtype == x.dtype


def test_without_a_radius_nothing_moves():
    recipe = AIGAN(attack=PGD(Linf(1e-9)), weights=(1, 0, 0), ngf=4, blocks=1)
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(system_of(recipe).model(x, torch.tensor([0, 1, 2])), x, atol=1e-8)


def test_the_hinge_is_free_within_its_bound_and_pulls_along_the_perturbation_beyond():
    p = torch.tensor([[3.0, 4.0], [0.3, 0.4]], requires_grad=True)
    loss = excess(p, 1.0)
    assert loss.item() == pytest.approx((5 - 1) / 2)
    loss.backward()
    assert torch.allclose(p.grad, torch.tensor([[0.6 / 2, 0.8 / 2], [0.0, 0.0]]))


def test_one_target_for_all_is_an_advgan_of_that_class():
    recipe = AIGAN(**SMALL, target=2, switch=0)
    assert crafted(recipe, system_of(recipe)).extra["target"].tolist() == [2] * 12
    with pytest.raises(BadInput, match="a class below 3"):
        system_of(AIGAN(**SMALL, target=3))
    with pytest.raises(BadInput, match="target"):
        AIGAN(**SMALL, target=-1)


def test_targets_are_uniform_and_change_with_the_epoch():
    recipe = AIGAN(weights=(1, 0, 0), **SMALL)
    system, batch = system_of(recipe), images().batch(range(24))
    rows = [Step(0, 9, e, 9, 0, Rows(derive(0, "epoch", e), batch.ids)) for e in range(100)]
    drawn = torch.stack([recipe.craft(system, batch, r).extra["target"] for r in rows])
    assert drawn.dtype == torch.int64
    shares = drawn.flatten().bincount(minlength=3) / drawn.numel()
    assert (shares - 1 / 3).abs().max() < 0.04
    assert not torch.equal(drawn[0], drawn[1])


def test_before_the_switch_the_attackers_images_are_real_and_afterwards_the_clean_ones():
    recipe = AIGAN(switch=2, **SMALL)
    system = system_of(recipe)
    for epoch in (0, 1, 2, 3):
        batch = crafted(recipe, system, epoch)
        if epoch < 2:
            objective = TargetedCrossEntropy(batch.extra["target"])
            wanted = step(epoch).attack(
                PGD(Linf(0.2), steps=3, objective=objective), system.source.model, batch.x, batch.y
            )
            assert not torch.equal(wanted, batch.x)
        else:
            wanted = batch.x
        assert torch.equal(batch.extra["real"], wanted)
        seen = []
        handle = system.discriminator.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        next(iter(recipe.updates(system, batch, step(epoch)))).loss()
        handle.remove()
        assert torch.equal(seen[0], wanted)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({"switch": 4}, True), ({"switch": 3}, False), ({"switch": 9, "weights": (1, 0, 0)}, False),
     ({"switch": 9, "variant": "robust_d"}, False)],
)  # fmt: skip
def test_a_switch_that_never_comes_is_told_once(settings, warned):
    recipe = AIGAN(**SMALL, **settings)
    system = system_of(recipe)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        crafted(recipe, system)
        recipe.craft(system, images().batch(range(12)), replace(step(), step=1))
    assert ["switch" in str(w.message) for w in told] == [True] * warned


def test_the_attacker_pulls_towards_the_targets():
    recipe = AIGAN(attack=PGD(Linf(0.9), steps=10), ngf=4, blocks=1)
    batch, net = crafted(recipe, system_of(recipe)), cnn().eval()
    target = batch.extra["target"]
    before, after = (F.cross_entropy(net(x), target) for x in (batch.x, batch.extra["real"]))
    assert after < before


def test_the_robust_discriminator_learns_from_an_attack_on_its_own_classes():
    recipe = AIGAN("robust_d", **SMALL)
    system = system_of(recipe)
    batch = crafted(recipe, system)
    wanted = step().attack(
        PGD(Linf(0.2), steps=3, objective=CrossEntropy()), system.discriminator.classifier, batch.x, batch.y
    )
    assert torch.equal(batch.extra["adversarial"], wanted)
    assert torch.equal(batch.extra["real"], batch.x)
    assert system.discriminator.training
    assert all(p.requires_grad and p.grad is None for p in system.discriminator.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_losses_are_those_of_the_docstring(variant):
    recipe = AIGAN(variant, weights=(1.3, 0.7, 0.4), bound=0.2, **SMALL)
    system = system_of(recipe)
    system.model.eval()
    for p in system.model.parameters():  # the changes that fresh weights make are too small to be clipped
        p.data.mul_(50)
    for p in system.discriminator.parameters():  # nor do they tell the clipped image from the other
        p.data.mul_(4)
    batch, now = crafted(recipe, system), step()
    batch = replace(batch, x=batch.x.round())
    made = losses(recipe, system, batch, now)
    target = batch.extra["target"]
    moved = system.model(batch.x, target)
    clipped = moved.clamp(0, 1)
    assert (moved - clipped).abs().max() > 0.1
    assert not torch.allclose(system.discriminator(moved)[0], system.discriminator(clipped)[0], atol=1e-3)
    real, fake = (torch.sigmoid(system.discriminator(z)[0]) for z in (batch.extra["real"], clipped))
    told = -real.log().mean() - (1 - fake).log().mean()
    gan = -fake.log().mean()
    if variant == "robust_d":
        told = told + F.cross_entropy(system.discriminator(batch.extra["adversarial"])[1], batch.y)
        gan = gan + F.cross_entropy(system.discriminator(clipped)[1], target)
    hinge = torch.stack([((z - x).norm() - 0.2).clamp_min(0) for x, z in zip(batch.x, moved)]).mean()
    wanted = 1.3 * F.cross_entropy(system.source(clipped), target) + 0.7 * gan + 0.4 * hinge
    assert torch.allclose(made["discriminator"], told, atol=1e-5)
    assert torch.allclose(made["main"], wanted, atol=1e-5)
    if variant == "two_stage":
        assert float(now.said["loss_hinge"]) == pytest.approx(0.4 * hinge.item(), rel=1e-5)
        assert float(now.said["loss_gan"]) == pytest.approx(0.7 * gan.item(), rel=1e-5)
    accuracy = torch.cat([real > 0.5, fake <= 0.5]).float().mean()
    assert float(now.said["discriminator_accuracy"]) == pytest.approx(float(accuracy))


@pytest.mark.parametrize("mixed", [False, True])
def test_images_of_the_target_itself_are_left_out_of_the_success_that_is_told(mixed):
    recipe = AIGAN(weights=(1, 0, 0), **SMALL)
    system, batch, now = system_of(recipe, Always(1)), crafted(recipe, system_of(recipe)), step()
    target = torch.tensor([1, 1, 1, 2] * 3)
    y = torch.tensor([1, 0, 2, 2] * 3)
    batch = replace(batch, y=F.one_hot(y, 3).float() if mixed else y, extra={**batch.extra, "target": target})
    losses(recipe, system, batch, now)
    assert float(now.said["targeted_success"]) == 1.0  # 6 of 6; three are of class 1 already, three of class 2
    losses(recipe, system, replace(batch, y=target), now)
    assert float(now.said["targeted_success"]) == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_generators_step_moves_nothing_else_and_the_gan_term_reaches_it(variant):
    recipe = AIGAN(variant, **SMALL)
    system = system_of(recipe)
    batch = crafted(recipe, system)
    first, second = recipe.updates(system, batch, step())
    first.loss().backward()
    assert all(p.grad is None for p in system.model.parameters())  # the discriminator's fakes are cut off
    held = {n: p.grad.clone() for n, p in system.discriminator.named_parameters()}
    system.discriminator.requires_grad_(False)  # as the trainer does with what an update freezes
    assert tuple(second.freeze) == (system.discriminator,)
    second.loss().backward()
    assert all(torch.equal(p.grad, held[n]) for n, p in system.discriminator.named_parameters())
    assert all(p.grad is None for p in system.source.model.parameters())
    grads = {}
    for weight in (0.0, 1.0):
        twin = AIGAN(variant, weights=(1e-9, weight, 0), **SMALL)
        other = system_of(twin)
        losses(twin, other, crafted(twin, other))["main"].backward()
        grads[weight] = max(float(p.grad.abs().max()) for p in other.model.parameters())
    assert grads[0.0] < 1e-6 < grads[1.0]


def test_without_the_other_terms_it_is_a_generator_trained_on_the_classifier_alone():
    recipe, data = AIGAN(weights=(1, 0, 0), **SMALL), images()
    trainer = Trainer(**TRAINER | {"epochs": 1, "batch": 24})
    fitted = trainer.fit(recipe, cnn(), data).last
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "setup") & 0x7FFFFFFF)
        system = recipe.setup(cnn(), data, Rows.count(derive(0, "setup"), 24))
    by_hand, net = system.model, cnn().eval()
    optimizer = torch.optim.Adam(by_hand.parameters(), 2e-3)
    ids = torch.cat([b.ids for b in feed(data)])
    batch = data.batch(ids.tolist())
    target = Rows(derive(0, "epoch", 0), ids).integers((), 0, 3, "target")
    F.cross_entropy(net(by_hand(batch.x, target).clamp(0, 1)), target).backward()
    optimizer.step()
    for name, p in by_hand.named_parameters():
        assert torch.allclose(p, dict(fitted.named_parameters())[name], atol=1e-6), name


def feed(data):
    from withstand.training.feed import micro_batches

    return list(micro_batches(data, 0, 0, 24, 1, 0, 0, 1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_reaches_targets_and_leaves_the_classifier_alone(variant, shapes):
    model, draws = trained(), torch.random.get_rng_state()
    given = copy.deepcopy(model)
    recipe = AIGAN(variant, attack=PGD(Linf(0.6), steps=2), weights=(1, 0.1, 0), switch=2, ngf=8, blocks=1)
    settings = TRAINER | {"epochs": 40, "optimizer": "adam(5e-3)"}
    fitted = Trainer(**settings).fit(recipe, model, shapes)
    assert same(model, given)
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(draws, torch.random.get_rng_state())
    assert fitted.history[-1]["targeted_success"] > 0.6
    assert {"loss_adversarial", "loss_gan", "discriminator_accuracy", "loss_discriminator"} <= fitted.history[0].keys()
    assert 0 <= fitted.history[0]["discriminator_accuracy"] <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_goes_on_from_a_checkpoint_bit_for_bit(variant, shapes, tmp_path):
    recipe = AIGAN(variant, switch=1, **SMALL)
    whole = Trainer(**TRAINER).fit(recipe, cnn(), shapes).last
    trainer = Trainer(**TRAINER, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Interrupted(recipe, at=4), cnn(), shapes, out=tmp_path)
    assert same(whole, trainer.fit(recipe, cnn(), shapes, out=tmp_path).last)


def test_the_generator_is_built_again_from_recipe_and_space(shapes):
    recipe = AIGAN(**SMALL)
    fitted = Trainer(**TRAINER).fit(recipe, cnn(), shapes).last
    again = recipe.deploy(None, Space((1, 8, 8), (0.0, 1.0), 3))
    again.load_state_dict(fitted.state_dict())
    x, target = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    assert torch.equal(again.eval()(x, target), fitted(x, target))


def test_what_is_unsaid_is_as_in_the_unofficial_code_for_mnist():
    recipe = AIGAN()
    assert recipe.attack == PGD(Linf(0.3), steps=40, step=1 / 30)
    assert recipe.attack.step * 0.3 == pytest.approx(0.01)
    assert (recipe.variant, recipe.terms, recipe.bound, recipe.switch) == ("two_stage", (1.0, 1.0, 1.5), 0.3, 10)
    assert AIGAN("robust_d").terms == (1.0, 1.0, 0.0)
    assert (recipe.ngf, recipe.blocks, recipe.optimizer) == (64, 4, Adam(1e-3))
    trainer = Trainer(**recipe.defaults)
    assert (trainer.optimizer, trainer.batch, trainer.epochs) == (Adam(1e-3), 128, 600)
    rates = [1e-3 * trainer.schedule(epoch / 600) for epoch in (0, 119, 120, 199, 200, 599)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert TargetedGenerated().threat.eps == 0.3


@pytest.mark.parametrize("variant", VARIANTS)
def test_convolutions_begin_small_and_the_discriminator_has_its_own_optimiser(variant):
    recipe = AIGAN(variant, attack=ATTACK, optimizer=Adam(7e-3))
    system = system_of(recipe)
    for part in (system.model, system.discriminator):
        weights = [m.weight for m in part.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
        assert len(weights) >= 3
        drawn = torch.cat([w.detach().flatten() for w in weights if w.numel() > 10_000])
        assert abs(float(drawn.mean())) < 2e-4
        assert float(drawn.std()) == pytest.approx(0.02, rel=0.02)
        assert all(float(w.detach().std()) == pytest.approx(0.02, rel=0.15) for w in weights)
    made = recipe.optimizers(system, Adam(1e-3))
    assert made["discriminator"].param_groups[0]["lr"] == 7e-3
    held = {id(p) for group in made["discriminator"].param_groups for p in group["params"]}
    assert held == {id(p) for p in system.discriminator.parameters()}


@pytest.mark.parametrize("settings", [{}, {"variant": "robust_d"}, {"weights": (1, 0.1, 0.1), "switch": 0}])
def test_settings_can_be_written_and_read_back(settings):
    recipe = AIGAN(**settings)
    assert parse(repr(recipe), "recipe") == recipe
    assert recipe.verb == "fit-attack"
    assert Trainer(**recipe.defaults).epochs == 600
    assert replace(recipe, weights=None).terms[2] == (0 if recipe.variant == "robust_d" else 1.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attack": "pgd(l2(0.5))"}, "linf"),
        ({"attack": "pgd(linf(0.0))"}, "linf"),
        ({"attack": "autoattack(linf(0.1))"}, "objective"),
        ({"weights": (0, 1, 1)}, "weights"),
        ({"weights": (1, -1, 1)}, "weights"),
        ({"switch": -1}, "switch"),
        ({"bound": -0.1}, "bound"),
        ({"ngf": 0}, "ngf"),
        ({"variant": "three_stage"}, "variant"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        AIGAN(**settings)


def test_data_and_classifiers_that_do_not_fit_are_refused():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(BadInput, match="5 of the model"):
        system_of(AIGAN(**SMALL), wide)
    tiny = from_arrays(torch.rand(9, 1, 4, 4).numpy(), torch.arange(9).numpy() % 3)
    with pytest.raises(BadInput, match="5 pixels"):
        system_of(AIGAN(**SMALL), cnn(), tiny)


class Always(nn.Module):
    """Says one class, with a graph."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def forward(self, x):
        return F.one_hot(torch.full((len(x),), self.said), 3).float() + 0 * x.flatten(1).sum(1, keepdim=True)


def trained():
    """A classifier that knows the shapes."""
    return Trainer(**TRAINER | {"epochs": 30, "optimizer": "adam(1e-2)"}).fit("standard", cnn(), images()).last


@pytest.fixture(scope="module")
def shapes():
    return images()
