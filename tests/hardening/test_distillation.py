"""Defensive distillation: its two halves, and the gradients that it hides."""

import copy

import pytest
import torch

import withstand as ws
from tests.hardening.by_hand import plain, ready
from tests.training.conftest import same
from withstand.attacks.pgd import PGD
from withstand.data import load_data
from withstand.errors import BadInput
from withstand.hardening.distillation import Distillation
from withstand.hardening.harden import harden
from withstand.hardening.standard import Standard
from withstand.threats import Linf
from withstand.training import Adam


def test_the_first_half_teaches_and_the_second_distils():
    system, batch, first = ready(Distillation(temperature=5.0), plain(), step=4)
    (update,) = Distillation(temperature=5.0).updates(system, batch, first)
    p = torch.log_softmax(system.teacher(batch.x) / 5, 1)
    assert update.opt == "teacher"
    torch.testing.assert_close(update.loss(), -p[range(len(p)), batch.y].mean())


def test_the_student_learns_soft_labels_of_a_still_teacher():
    recipe = Distillation(temperature=5.0)
    system, batch, last = ready(recipe, plain(), step=5)
    with torch.no_grad():
        system.teacher[-1].weight.mul_(30)
    before = copy.deepcopy(system.teacher)
    (update,) = recipe.updates(system, batch, last)
    loss = update.loss()
    loss.backward()
    assert update.opt == "main"
    assert same(before, system.teacher)
    assert all(p.grad is None for p in system.teacher.parameters())
    q = torch.softmax(before.eval()(batch.x) / 5, 1)
    p = torch.log_softmax(copy.deepcopy(system.model)(batch.x) / 5, 1)
    torch.testing.assert_close(loss, -(q * p).sum(1).mean())


def test_at_temperature_1_the_teacher_is_plain_training():
    system, batch, at = ready(Distillation(temperature=1.0), plain(), step=0)
    (update,) = Distillation(temperature=1.0).updates(system, batch, at)
    other, batch, at = ready(Standard(), plain(), step=0)
    torch.testing.assert_close(update.loss(), Standard().loss(other, batch, at), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 0.0, float("inf"), float("nan")])
def test_temperatures_out_of_range_are_refused(temperature):
    with pytest.raises(BadInput, match="temperature"):
        Distillation(temperature=temperature)


def test_large_logits_hide_the_gradient_from_cross_entropy_and_the_audit_says_so():
    batch = load_data("digits").batch(range(64))
    scale, broken = {}, {}
    for temperature in (1.0, 100.0):
        recipe = Distillation(temperature=temperature)
        settings = {"epochs": 16, "batch": 64, "optimizer": Adam(0.003), "schedule": "constant", "accelerator": "cpu"}
        hardened = harden("zoo:digits_cnn", "digits", recipe, validation=None, **settings)
        net = hardened.module
        logits = net(batch.x).detach()
        scale[temperature] = (logits.amax(1) - logits.mean(1)).mean()
        for objective in ("cross_entropy", "margin"):
            found = PGD(Linf(0.15), random_start=False, objective=objective)(net, batch.x, batch.y)
            broken[temperature, objective] = (net(found).argmax(1) != batch.y).float().mean()
    assert (logits.argmax(1) == batch.y).float().mean() > 0.8
    assert 30 < scale[100.0] / scale[1.0] < 300
    assert broken[1.0, "cross_entropy"] > 0.6
    assert broken[100.0, "margin"] > broken[100.0, "cross_entropy"] + 0.4
    card = ws.audit({"m": hardened}, (batch.x, batch.y), checks=["clean", "trust(linf(0.15), examples=40)"])
    levels = {flag.name: flag.level for flag in card.of("trust", "m")[0].flags}
    assert levels["saturated loss"] == levels["zero gradients"] == "fail"
