import pytest
import torch

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import by_hand, copied, crafted, step_of
from tests.training.conftest import same
from withstand.errors import BadInput
from withstand.hardening.awp import AWP
from withstand.hardening.harden import judge_of
from withstand.hardening.pgd_at import PGDAT
from withstand.hardening.trades import TRADES
from withstand.models import count_passes
from withstand.threats import Linf
from withstand.training import SGD, Trainer

BASE = PGDAT(attack="pgd(linf(0.1), steps=2)")
QUICK = {"epochs": 2, "batch": 8, "optimizer": SGD(0.05), "accelerator": "cpu"}


def test_each_weight_moves_by_gamma_of_its_norm_uphill_and_the_rest_stays():
    recipe = AWP(BASE, gamma=0.02)
    system, step, batch = crafted(recipe)
    gradients = dict(
        zip(system.parameters(), torch.autograd.grad(BASE.loss(system, batch, step), list(system.parameters())))
    )
    shifts = dict(recipe.shifts(system, batch, step))
    assert {p.dim() for p in shifts} == {2, 4}
    assert len(shifts) == 3
    for p, v in shifts.items():
        torch.testing.assert_close(v.norm(), 0.02 * p.norm())
        torch.testing.assert_close(torch.cosine_similarity(v.flatten(), gradients[p].flatten(), 0), torch.tensor(1.0))


def test_the_loss_is_that_at_the_moved_weights_and_larger():
    recipe = AWP(TRADES("pgd(linf(0.1), steps=2, random_start=0.001, objective=kl())"), gamma=0.1)
    system, step, batch = crafted(recipe)
    here = recipe.recipe.loss(system, batch, step)
    shifts = recipe.shifts(system, batch, step)
    found = next(recipe.updates(system, batch, step)).loss()
    other, _, _ = crafted(recipe)
    names = {p: n for n, p in system.named_parameters()}
    with torch.no_grad():
        for p, v in shifts:
            other.get_parameter(names[p]).add_(v)
    torch.testing.assert_close(found, recipe.recipe.loss(other, batch, step_of()))
    assert found > here


def test_without_a_step_the_weights_come_back_bit_for_bit_and_the_statistics_move_once():
    recipe = AWP(BASE, gamma=0.3)
    system, step, batch = crafted(recipe)
    before = copied(system.model)
    during = []
    optimizer = torch.optim.SGD(system.parameters(), 0.0)
    by_hand(recipe, system, optimizer, batch, step, lambda: during.append(copied(system.model)))
    for name, p in system.model.named_parameters():
        assert torch.equal(p, before[name])
        assert torch.equal(p, during[0][name]) is (p.dim() == 1)
    assert int(system.model[1].num_batches_tracked) == 1


def test_the_optimiser_steps_from_the_moved_weights_and_the_shift_is_taken_off():
    recipe = AWP(BASE, gamma=0.05)
    system, step, batch = crafted(recipe)
    shifts = {p: v.clone() for p, v in recipe.shifts(system, batch, step)}
    before = {p: p.detach().clone() for p in system.parameters()}
    gradients = {}
    optimizer = torch.optim.SGD(system.parameters(), 0.1, weight_decay=0.01)
    by_hand(
        recipe,
        system,
        optimizer,
        batch,
        step,
        lambda: gradients.update({p: p.grad.clone() for p in system.parameters()}),
    )
    for p, w in before.items():
        at = w + shifts.get(p, 0)
        torch.testing.assert_close(p.detach(), w - 0.1 * (gradients[p] + 0.01 * at), rtol=1e-5, atol=1e-6)


def test_with_gamma_zero_or_in_the_warm_up_it_is_the_recipe_bit_for_bit():
    base = Trainer(**QUICK).fit(BASE, cnn(), images()).last
    for recipe in (AWP(BASE, gamma=0.0), AWP(BASE, warmup=2)):
        assert same(Trainer(**QUICK).fit(recipe, cnn(), images()).last, base)
    late = Trainer(**QUICK).fit(AWP(BASE, gamma=0.1, warmup=1), cnn(), images())
    plain = Trainer(**QUICK).fit(BASE, cnn(), images())
    assert late.history[0]["loss"] == plain.history[0]["loss"]
    assert late.history[1]["loss"] > plain.history[1]["loss"]


def test_a_batch_in_parts_adds_up_and_does_not_drift():
    whole, parts = (
        Trainer(**QUICK | {"optimizer": SGD(0.0 + 1e-30, 0.0, 0.0)}, accumulate=k).fit(
            AWP(BASE, gamma=0.2), cnn(norm=False), images()
        )
        for k in (1, 2)
    )
    assert same(whole.last, cnn(norm=False).eval())
    assert same(parts.last, cnn(norm=False).eval())


def test_it_costs_one_more_pass_and_its_gradient_and_none_in_the_warm_up():
    for warmup, passes_made in ((0, 2), (1, 1)):
        recipe = AWP(BASE, warmup=warmup)
        system, step, batch = crafted(recipe)
        with count_passes(system.model) as passes:
            by_hand(recipe, system, torch.optim.SGD(system.parameters(), 0.1), batch, step)
        assert (passes.forward_calls, passes.backward_calls) == (passes_made, passes_made)


def test_in_half_precision_the_moved_weights_are_the_ones_that_count():
    recipe = AWP(BASE, gamma=0.5)
    system, step, batch = crafted(recipe, norm=False)
    with torch.autocast("cpu", torch.bfloat16):
        here = BASE.loss(system, batch, step)
        torch.clear_autocast_cache()
        found = next(recipe.updates(system, batch, step)).loss()
    assert found > here + 0.05
    assert abs(found - BASE.loss(system, batch, step)) < 0.05


def test_the_judge_is_that_of_the_recipe_within():
    assert judge_of("auto", AWP(BASE)).threat == Linf(0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recipe": BASE, "gamma": -0.1}, "gamma"),
        ({"recipe": BASE, "warmup": -1}, "warmup"),
        ({"recipe": "free_at"}, "one update of each batch"),
        ({"recipe": "awp(standard())"}, "one update of each batch"),
        ({"recipe": 3}, "a recipe or its text"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        AWP(**settings)
