import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.by_hand import gradients, plain, ready, step_at
from tests.hardening.conftest import ATTACK, cnn, images
from withstand.attacks import PGD
from withstand.errors import BadInput
from withstand.hardening.dial import DIAL, domain_head, told_apart
from withstand.objectives import KL, Margin
from withstand.threats import Linf
from withstand.training import SGD, Trainer


def parts(system, batch):
    """z and logits of both domains, by hand."""
    body, head = system.model[:-1], system.model[-1]
    z = [body(u) for u in (batch.x, batch.extra["adversarial"])]
    return z, [head(h) for h in z]


def kl(a, b):
    p, q = a.softmax(1), b.softmax(1)
    return (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("robust", ["ce", "kl"])
@pytest.mark.parametrize("joint", [True, False])
def test_the_loss_is_the_sum_of_its_terms(robust, joint):
    recipe = DIAL(ATTACK, robust=robust, beta=2.0, domain_weight=0.5, joint_domain_norm=joint)
    system, batch, step = ready(recipe, plain())
    twin = copy.deepcopy(system)
    loss = recipe.loss(system, batch, step)
    z, (natural, adversarial) = parts(twin, batch)
    if joint:
        told = twin.domain(torch.cat(z)).split(24)
    else:
        told = [twin.domain(h) for h in z]
    zero, one = torch.zeros(24).long(), torch.ones(24).long()
    domain = F.cross_entropy(told[0], zero) + F.cross_entropy(told[1], one)
    other = F.cross_entropy(adversarial, batch.y) if robust == "ce" else kl(natural, adversarial)
    assert torch.allclose(loss, F.cross_entropy(natural, batch.y) + 2 * other + 0.5 * domain, atol=1e-12)
    right = torch.cat([told[0].argmax(1) == 0, told[1].argmax(1) == 1]).float().mean()
    assert float(step.said["domain_accuracy"]) == pytest.approx(float(right))
    assert torch.allclose(step.said["loss_domain"], domain)


def test_the_head_descends_the_domain_loss_and_the_features_ascend_it_by_r():
    recipe = DIAL(ATTACK, reversal=0.3, domain_weight=2.0)
    system, batch, step = ready(recipe, plain())
    with_domain = recipe.loss(system, batch, step)
    without = DIAL(ATTACK, domain_weight=0.0).loss(system, batch, step_at())
    z, _ = parts(system, batch)
    told = system.domain(torch.cat(z)).split(24)
    domain = F.cross_entropy(told[0], torch.zeros(24).long()) + F.cross_entropy(told[1], torch.ones(24).long())
    for a, b, d in zip(*(gradients(v, system.model) for v in (with_domain, without, domain))):
        assert torch.allclose(a - b, -0.3 * 2.0 * d, atol=1e-12)
    for a, d in zip(gradients(with_domain, system.domain), gradients(domain, system.domain)):
        assert torch.allclose(a, 2.0 * d, atol=1e-12)
    moved = copy.deepcopy(system)
    reversed_only = [a - b for a, b in zip(gradients(with_domain, system.model), gradients(without, system.model))]
    with torch.no_grad():
        for p, g in zip(moved.model.parameters(), reversed_only):
            p -= 0.01 * g
    z, _ = parts(moved, batch)
    told = moved.domain(torch.cat(z)).split(24)
    assert F.cross_entropy(told[0], torch.zeros(24).long()) + F.cross_entropy(told[1], torch.ones(24).long()) > domain


def test_no_reversal_leaves_the_classifier_to_its_own_terms():
    recipe = DIAL(ATTACK, reversal=0.0)
    system, batch, step = ready(recipe, plain())
    loss = recipe.loss(system, batch, step)
    without = DIAL(ATTACK, domain_weight=0.0).loss(system, batch, step_at())
    for a, b in zip(gradients(loss, system.model), gradients(without, system.model)):
        assert torch.allclose(a, b, atol=1e-14)
    assert max(g.abs().max() for g in gradients(loss, system.domain)) > 0


@pytest.mark.parametrize(("robust", "beta"), [("ce", 1.0), ("kl", 6.0)])
def test_without_the_domain_head_it_is_half_half_or_trades(robust, beta):
    recipe = DIAL(ATTACK, robust=robust, beta=beta, domain_weight=0.0)
    system, batch, step = ready(recipe, plain())
    assert not hasattr(system, "domain")
    twin = copy.deepcopy(system)
    loss = recipe.loss(system, batch, step)
    natural, adversarial = twin.model(batch.x), twin.model(batch.extra["adversarial"])
    other = F.cross_entropy(adversarial, batch.y) if robust == "ce" else kl(natural, adversarial)
    by_hand = F.cross_entropy(natural, batch.y) + beta * other
    for a, b in zip(gradients(loss, system), gradients(by_hand, twin)):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("robust", ["ce", "kl"])
def test_the_attack_pursues_the_robust_term_through_the_label_head(robust):
    recipe = DIAL(ATTACK, robust=robust)
    system, batch, step = ready(recipe, plain())
    named = {"ce": "cross_entropy", "kl": KL()}[robust]
    by_hand = step.attack(PGD(Linf(0.1), steps=2, objective=named), system.model, batch.x, batch.y)
    assert torch.equal(batch.extra["adversarial"], by_hand)
    assert Linf(0.1).contains(batch.x, by_hand).all()


def test_the_default_attack_starts_beside_the_image():
    attack = DIAL().attack
    assert attack == PGD(Linf(0.031), steps=10, step=7 / 31, random_start=0.001)
    assert attack.step * attack.threat.eps == pytest.approx(0.007)


@pytest.mark.parametrize(("p", "r"), [(0, 0.0), (0.1, 0.462117), (0.25, 0.848284), (0.5, 0.986614), (1, 0.999909)])
def test_the_reversal_grows_with_every_step(p, r):
    assert DIAL().strength(step_at(step=int(100 * p), steps=100)) == pytest.approx(r, abs=1e-6)


def test_the_official_reversal_is_a_staircase_of_epochs():
    step = step_at(step=0, steps=100)
    assert DIAL(reversal="dann_epoch").strength(step) == pytest.approx(2 / (1 + math.exp(-0.1)) - 1)
    step.epoch = 99
    assert DIAL(reversal="dann_epoch").strength(step) == pytest.approx(0.999909, abs=1e-6)
    assert DIAL(reversal=1).strength(step) == 1


def test_domains_are_symmetric():
    recipe = DIAL(ATTACK)
    system, batch, step = ready(recipe, plain())
    swapped, turned = copy.deepcopy(system), copy.deepcopy(batch)
    turned.x, turned.extra["adversarial"] = batch.extra["adversarial"], batch.x
    last = swapped.domain[-1]
    last.weight.data, last.bias.data = last.weight.data.flip(0), last.bias.data.flip(0)
    assert torch.allclose(recipe.loss(system, batch, step), recipe.loss(swapped, turned, step_at()), atol=1e-12)


def test_a_head_normalised_per_domain_cannot_see_a_shift():
    g = torch.Generator().manual_seed(0)
    z, z_adv = torch.randn(256, 16, generator=g), 2 + 3 * torch.randn(256, 16, generator=g)
    losses = {}
    for joint in (True, False):
        torch.manual_seed(0)
        domain = domain_head(16, 100)
        optimizer = torch.optim.Adam(domain.parameters(), lr=1e-2)
        for _ in range(60):
            told = told_apart(domain, z, z_adv, joint)
            loss = sum(F.cross_entropy(t, torch.full((256,), d)) for d, t in enumerate(told)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[joint] = float(loss.detach())
    assert losses[True] < 0.1
    assert losses[False] > 0.3


def test_features_may_be_named_and_have_any_rank():
    recipe = DIAL(ATTACK, features="5", head_width=7)
    system, batch, step = ready(recipe, plain())
    assert system.domain[0].in_features == 8
    assert system.domain[-1].in_features == 7
    assert torch.isfinite(recipe.loss(system, batch, step))


def test_what_ships_is_the_classifier_and_its_last_layer_never_saw_the_domains():
    trainer = Trainer(epochs=1, batch=8, optimizer=SGD(0.05), accelerator="cpu")
    fitted = trainer.fit(DIAL(ATTACK), cnn(), images())
    assert fitted.last.state_dict().keys() == cnn().state_dict().keys()
    assert {"loss_clean", "loss_robust", "loss_domain", "domain_accuracy", "reversal"} <= fitted.history[-1].keys()
    recipe = DIAL(ATTACK, beta=0.0, reversal=1.0)
    system, batch, step = ready(recipe, plain())
    logits = parts(system, batch)[1]
    last = gradients(recipe.loss(system, batch, step), system.model[-1])
    for a, b in zip(last, gradients(F.cross_entropy(logits[0], batch.y), system.model[-1])):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beta": -1.0}, "beta"),
        ({"domain_weight": -0.1}, "domain_weight"),
        ({"reversal": 1.5}, "reversal"),
        ({"reversal": "always"}, "reversal"),
        ({"head_width": 0}, "head_width"),
        ({"robust": "l2"}, "robust"),
        ({"attack": PGD(objective=Margin())}, "The recipe sets it"),
        ({"attack": PGD(objective=KL())}, "The recipe sets it"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        DIAL(**settings)


def test_a_model_without_features_is_refused():
    with pytest.raises(BadInput, match="linear layer"):
        ready(DIAL(ATTACK), nn.Flatten())
    with pytest.raises(BadInput, match="submodule"):
        ready(DIAL(ATTACK, features="layer9"), plain())
