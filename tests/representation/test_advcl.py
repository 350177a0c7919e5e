"""AdvCL: its two attacks, its loss, its views and branches, and where its pseudo-labels come from."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.training.conftest import same
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.models.feature_encoder import encoder_of
from withstand.models.layers import route
from withstand.random import Rows
from withstand.representation.acl import ACL
from withstand.representation.advcl import AdvCL
from withstand.representation.clusters import with_clusters
from withstand.representation.contrastive import nt_xent, other_views
from withstand.representation.encoders import view
from withstand.representation.false_negatives import scores, select_false_negatives
from withstand.representation.high_pass import high_pass
from withstand.training import Trainer
from withstand.training.recipe import Step

QUICK = {"epochs": 2, "batch": 12, "optimizer": "adam(1e-3)", "schedule": "constant", "accelerator": "cpu"}
ONE_STEP = "pgd(linf(0.1), steps=1, step=1.0, random_start=False)"
SMALL = {"clusters": (2, 3), "radius": 2.0, "light": "crop_flip(1)"}


def still(seed: int = 0) -> nn.Module:
    """The network without dropout, so that a pass can be made again."""
    return nn.Sequential(*(m for m in cnn(seed).children() if not isinstance(m, nn.Dropout)))


def made(recipe: Any, at: int = 9) -> tuple[Any, Any, Step]:
    """A system whose branches differ in train and in eval mode, a batch that is crafted, and the step."""
    data = recipe.examples(still(), images(), 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        system = recipe.setup(still(), data, Rows.count(0, len(data))).train()
    for norm in (m for m in system.modules() if type(m).__name__ == "BranchNorm"):
        for k, branch in enumerate(norm.branches.values()):
            generator = torch.Generator().manual_seed(k)
            with torch.no_grad():
                branch.running_mean.uniform_(-0.3, 0.3, generator=generator)
                branch.weight.uniform_(0.5, 1.5, generator=generator)
    before = {k: v.clone() for k, v in system.state_dict().items()}
    now = Step(at, 10, 0, 1, 0, Rows.count(5, 12))
    batch = recipe.craft(system, data.batch(range(12)), now)
    assert all(torch.equal(v, before[k]) for k, v in system.state_dict().items())
    return system, batch, now


def test_both_points_ascend_the_sum_of_both_terms_at_once():
    recipe = AdvCL("fnc", attack=ONE_STEP, q_max=0.4, tau=0.3, **SMALL)
    system, batch, _ = made(recipe)
    first, second = batch.extra["views"].chunk(2)
    plain = light(recipe, batch)
    assert torch.allclose(high_pass(plain, 2.0), batch.extra["high"], atol=1e-6)
    with torch.no_grad(), route(system.model, "clean"):
        z1, z2, zh = (system(x) for x in (first, second, batch.extra["high"]))
    system.eval()
    x_adv, x_ce = plain.clone().requires_grad_(True), plain.clone().requires_grad_(True)
    with route(system.model, "adversarial"):
        z = torch.cat([z1, z2, system(x_adv), zh])
    with route(system.model, "pseudo"):
        logits = system.heads(system.model.features(x_ce))
    contrast = nt_xent(z, other_views(12, 4), 0.3, batch.extra["dropped"]).mean()
    (contrast + 0.2 * guess(logits, batch)).backward()
    for x, name in ((x_adv, "adversarial"), (x_ce, "misled")):
        assert x.grad is not None
        expected = (plain + 0.1 * x.grad.sign()).clamp(0, 1)
        assert ((batch.extra[name] - expected).abs() < 1e-5).float().mean() > 0.999, (
            name
        )  # signs of what is nearly zero
    assert not torch.allclose(batch.extra["adversarial"], batch.extra["misled"], atol=1e-3)


def light(recipe, batch):
    """The lightly augmented images, drawn again."""
    return view(recipe.light, batch, Step(9, 10, 0, 1, 0, Rows.count(5, 12)), 2)


def guess(logits, batch):
    clusters = batch.extra["clusters"]
    terms = [F.cross_entropy(logits[:, :2], clusters[:, 0]), F.cross_entropy(logits[:, 2:], clusters[:, 1])]
    return (terms[0] + terms[1]) / 2


@pytest.mark.parametrize("radius", [2.0, None])
def test_the_loss_contrasts_all_views_and_adds_what_is_guessed_of_clusters(radius):
    recipe = AdvCL("fnc", attack=ONE_STEP, q_max=0.4, tau=0.3, ce_weight=0.7, **{**SMALL, "radius": radius})
    system, batch, now = made(recipe)
    with torch.no_grad():
        passes = [(x, "clean") for x in batch.extra["views"].chunk(2)] + [(batch.extra["adversarial"], "adversarial")]
        passes += [(batch.extra["high"], "clean")] if radius else []
        z = []
        for x, branch in passes:
            with route(system.model, branch):
                z.append(system(x))
        with route(system.model, "pseudo"):
            logits = system.heads(system.model.features(batch.extra["misled"]))
        dropped, others = batch.extra["dropped"], other_views(12, len(z))
        expected = nt_xent(torch.cat(z), others, 0.3, dropped).mean() + 0.7 * guess(logits, batch)
        assert dropped.shape == (12 * len(z), 12 * len(z))
        assert ("high" in batch.extra) is bool(radius)
        assert float(recipe.loss(system, batch, now)) == pytest.approx(float(expected), abs=1e-5)


def test_false_negatives_are_chosen_on_the_views_before_the_attack():
    recipe = AdvCL("fnc", attack=ONE_STEP, q_max=0.4, **SMALL)
    system, batch, _ = made(recipe)
    before = [*batch.extra["views"].chunk(2), light(recipe, batch), batch.extra["high"]]
    others = other_views(12, 4)
    with torch.no_grad(), route(system.model, "clean"):
        expected = select_false_negatives(scores(torch.cat([system(x) for x in before])), 0.4, exclude=others)
    assert torch.equal(batch.extra["dropped"], expected)
    assert (expected.sum(1) == int(0.4 * 44)).all()
    _, plain, _ = made(AdvCL(attack=ONE_STEP, **SMALL))
    assert not plain.extra["dropped"].any()


def test_an_oracle_leaves_out_the_class_in_all_views():
    _, batch, _ = made(AdvCL("oracle", attack=ONE_STEP, **SMALL))
    label, own = (torch.arange(12) % 3).repeat(4), torch.arange(12).repeat(4)
    expected = (label[:, None] == label) & (own[:, None] != own)
    assert torch.equal(batch.extra["dropped"], expected)


def trained(recipe, data=None) -> nn.Module:
    return Trainer(**QUICK).fit(recipe, cnn(), data or images()).last


def test_with_nothing_to_remove_every_mode_is_simclr():
    plain = trained(AdvCL(attack=ONE_STEP, **SMALL))
    assert same(plain, trained(AdvCL("fnc", attack=ONE_STEP, q_max=0.0, **SMALL)))
    assert same(plain, trained(AdvCL("afnc", attack=ONE_STEP, ramp=(1.0, 1.0), **SMALL)))
    assert not same(plain, trained(AdvCL("fnc", attack=ONE_STEP, q_max=0.5, **SMALL)))
    x = images().batch(range(12)).x.numpy()
    own_class_each = from_arrays(x, torch.arange(12).numpy(), name="instances")
    assert same(
        trained(AdvCL(attack=ONE_STEP, **SMALL), own_class_each),
        trained(AdvCL("oracle", attack=ONE_STEP, **SMALL), own_class_each),
    )


def test_pseudo_labels_are_those_of_the_model_given_or_those_that_the_data_carry():
    recipe = AdvCL(attack=ONE_STEP, **SMALL)
    data = images()
    carried = with_clusters(cnn(3), data, recipe.clusters, 0)
    assert carried.clusters.shape == (24, 2)
    assert carried.clusters.max(0).tolist() == [1, 2]
    assert torch.equal(carried.batch([5, 2]).extra["clusters"], torch.from_numpy(carried.clusters[[5, 2]]))
    assert torch.equal(carried.batch([5, 2]).x, data.batch([5, 2]).x)
    assert carried.labels.tolist() == data.labels.tolist()
    assert (with_clusters(encoder_of(cnn(3)), data, recipe.clusters, 0).clusters == carried.clusters).all()
    assert recipe.examples(cnn(), carried, 0) is carried
    own = recipe.examples(cnn(3), data, 0)
    assert own.fingerprint() == carried.fingerprint() != data.fingerprint()
    assert not same(trained(recipe, carried), trained(recipe))
    other = with_clusters(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), data, recipe.clusters, 0)
    assert other.fingerprint() != carried.fingerprint()
    assert not same(trained(recipe, other), trained(recipe, carried))
    with pytest.raises(BadInput, match="carry"):
        AdvCL(attack=ONE_STEP, clusters=(2, 3, 4)).examples(cnn(), carried, 0)
    with pytest.raises(BadInput, match="number of examples"):
        trained(AdvCL(attack=ONE_STEP, clusters=(2, 25)))


def test_each_kind_of_image_has_its_batch_norm_and_one_ships():
    for ship in ("adversarial", "clean"):
        recipe = AdvCL(attack=ONE_STEP, ship=ship, **SMALL)
        system, batch, now = made(recipe)
        recipe.loss(system, batch, now)
        norm = next(m for m in system.model.modules() if type(m).__name__ == "BranchNorm")
        means = {name: branch.running_mean.clone() for name, branch in norm.branches.items()}
        assert [*means] == ["clean", "adversarial", "pseudo"]
        assert len({tuple(m.tolist()) for m in means.values()}) == 3
        assert any(torch.equal(b, means[ship]) for b in recipe.finish(system).buffers() if b.shape == means[ship].shape)
    with pytest.raises(BadInput, match="batch norm"):
        recipe.setup(cnn(norm=False), images(), Rows.count(0, 24))
    shared = AdvCL(attack=ONE_STEP, branches="shared", **SMALL)
    assert not any("branches" in name for name in shared.setup(cnn(), images(), Rows.count(0, 24)).state_dict())


def test_half_precision_does_not_move_the_light_crop():
    recipe = AdvCL(attack=ONE_STEP, **{**SMALL, "light": "random_resized_crop"})
    batch, now = images().batch(range(12)), Step(9, 10, 0, 1, 0, Rows.count(5, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = view(recipe.light, batch, now, 2)
    assert torch.equal(made, view(recipe.light, batch, now, 2))


@pytest.mark.parametrize("recipe", [AdvCL("fnc", attack=ONE_STEP, **SMALL), ACL("fnc", attack=ONE_STEP)])
def test_what_stands_still_in_the_attack_keeps_no_graph(recipe, monkeypatch):
    modes = []
    passed = type(recipe).false_negatives
    monkeypatch.setattr(
        type(recipe), "false_negatives", lambda self, z, *rest: modes.append(z.requires_grad) or passed(self, z, *rest)
    )
    made(recipe)
    assert modes == [False]


def test_the_two_attacks_begin_apart():
    recipe = AdvCL(attack="pgd(linf(0.1), steps=1, step=1e-6)", **SMALL)
    _, batch, _ = made(recipe)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(batch.extra["adversarial"], batch.extra["misled"]))
    assert ((batch.extra["misled"] - light(recipe, batch)).abs() <= 0.1 + 1e-6).all()


def test_it_is_as_published_unless_told():
    recipe = AdvCL()
    assert isinstance(recipe, ACL)
    attack = recipe.attack
    assert (attack.threat.eps, attack.steps, attack.step, attack.random_start) == (8 / 255, 5, 1 / 4, True)
    assert (recipe.tau, recipe.ce_weight, recipe.clusters, recipe.radius) == (0.5, 0.2, (2, 10, 50, 100, 500), 8.0)
    assert (recipe.ship, recipe.defaults["batch"], recipe.light[0].padding) == ("adversarial", 512, 4)


def test_the_history_tells_both_terms():
    row = Trainer(**QUICK).fit(AdvCL(attack=ONE_STEP, **SMALL), cnn(), images()).history[-1]
    assert row["loss"] == pytest.approx(row["loss_contrast"] + 0.2 * row["loss_pseudo"], abs=1e-4)
    assert 0 < row["loss_pseudo"] < 2 * math.log(3)
    assert row["effective_rank"] >= 1
