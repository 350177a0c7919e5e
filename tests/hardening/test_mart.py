import math

import pytest
import torch
import torch.nn.functional as F

from tests.hardening.steps import batch_of, crafted, step_of, system_of
from withstand.errors import BadInput
from withstand.hardening.mart import MART, weighted_divergence, wrong_class
from withstand.models import count_passes

SMALL = MART(attack="pgd(linf(0.1), steps=2, random_start=0.001)")


def naive(z, z_adv, y, beta):
    """The official formula, example by example."""
    total = torch.zeros(())
    for i in range(len(y)):
        p, q = z[i].softmax(0), z_adv[i].softmax(0)
        wrong = max(float(q[k].detach()) for k in range(len(q)) if k != y[i])
        wrong = next(q[k] for k in range(len(q)) if k != y[i] and float(q[k].detach()) == wrong)
        bce = -q[y[i]].log() - torch.log(1.0001 - wrong + 1e-12)
        kl = sum(p[k] * (p[k].log() - torch.log(q[k] + 1e-12)) for k in range(len(p)))
        total = total + bce + beta * kl * (1.0000001 - p[y[i]])
    return total / len(y)


def test_value_and_gradient_are_those_of_the_official_formula():
    system, step, batch = crafted(SMALL, norm=False)
    loss = SMALL.loss(system, batch, step)
    expected = naive(system(batch.x), system(batch.extra["adversarial"]), batch.y, 5.0)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(v, list(system.parameters())) for v in (loss, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_sure_clean_prediction_leaves_a_weight_of_1e_7():
    sure, other = torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    y = torch.tensor([0])
    kl = -torch.log(other.softmax(1)[0, 0] + 1e-12)
    torch.testing.assert_close(weighted_divergence(sure, other, y)[0], kl * 1.1920929e-07, rtol=1e-5, atol=0)
    sure.requires_grad_(True)
    assert torch.autograd.grad(weighted_divergence(sure, other, y).sum(), sure)[0].isfinite().all()


def test_the_boosted_term_takes_the_best_wrong_class():
    q = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    found = wrong_class(q.log(), torch.tensor([0, 2]))
    expected = [-math.log(1.0001 - 0.2 + 1e-12), -math.log(1.0001 - 0.7 + 1e-12)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_smoothing_enters_the_cross_entropy_alone():
    recipe = MART(attack=SMALL.attack, beta=0.0)
    system, step, batch = crafted(recipe, norm=False, step=step_of(smoothing=0.2))
    z = system(batch.extra["adversarial"])
    expected = F.cross_entropy(z, batch.y, label_smoothing=0.2) + wrong_class(z, batch.y).mean()
    torch.testing.assert_close(recipe.loss(system, batch, step), expected)


def test_a_step_costs_the_least_that_it_can():
    recipe, system, step = MART(), system_of(MART()), step_of()
    with count_passes(system.model) as passes:
        batch = recipe.craft(system, batch_of(), step)
        recipe.loss(system, batch, step).backward()
    assert (passes.forward_calls, passes.backward_calls) == (10 + 2, 10 + 2)


def test_soft_labels_and_bad_weights_are_refused():
    batch = batch_of()
    batch.y = F.one_hot(batch.y, 3).float()
    with pytest.raises(BadInput, match=r"soft labels \(12, 3\).*without mixup"):
        SMALL.craft(system_of(SMALL), batch, step_of())
    with pytest.raises(BadInput, match="beta"):
        MART(beta=-1.0)
