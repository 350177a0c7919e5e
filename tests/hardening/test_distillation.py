"""Defensive distillation: its two halves, and the gradients that it hides."""

import copy

import pytest
import torch

from tests.hardening.by_hand import plain, ready
from tests.hardening.conftest import images
from tests.training.conftest import same
from withstand.attacks.pgd import PGD
from withstand.errors import BadInput
from withstand.hardening.distillation import Distillation
from withstand.hardening.standard import Standard
from withstand.threats import Linf
from withstand.training import Adam, Trainer


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
    assert same(before, system.teacher) and all(p.grad is None for p in system.teacher.parameters())
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


def test_large_logits_hide_the_gradient_from_cross_entropy_but_not_from_margins():
    data = images(96)
    settings = {"epochs": 60, "batch": 32, "optimizer": Adam(0.02), "schedule": "constant", "accelerator": "cpu"}
    t = 100.0
    batch = data.batch(range(96))
    logits = {}
    broken = {}
    for name, temperature in (("plain", 1.0), ("distilled", t)):
        model = Trainer(**settings).fit(Distillation(temperature=temperature), plain(norm=True), data).last
        logits[name] = model(batch.x).detach()
        for objective in ("cross_entropy", "margin"):
            attack = PGD(Linf(0.15), steps=20, objective=objective)
            found = attack(model, batch.x, batch.y)
            broken[name, objective] = (model(found).argmax(1) != batch.y).float().mean().item()
    scale = {name: (z.amax(1) - z.mean(1)).mean().item() for name, z in logits.items()}
    print(scale, broken)
    assert (logits["distilled"].argmax(1) == batch.y).float().mean() > 0.95
    assert scale["distilled"] > 10 * scale["plain"]
    assert broken["distilled", "margin"] > broken["distilled", "cross_entropy"] + 0.3
