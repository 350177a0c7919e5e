import pytest
import torch

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import by_hand, copied, crafted, gradients
from tests.training.conftest import same
from withstand.errors import BadInput
from withstand.hardening.half_half import HalfHalf
from withstand.hardening.pgd_at import PGDAT
from withstand.hardening.sam import SAM
from withstand.models import count_passes
from withstand.training import SGD, Trainer

BASE = PGDAT(attack="pgd(linf(0.1), steps=2)")
QUICK = {"epochs": 2, "batch": 8, "optimizer": SGD(0.05), "accelerator": "cpu"}


def test_the_step_uphill_has_length_rho_along_the_gradient_of_all_parameters():
    recipe = SAM(BASE, rho=0.3)
    system, step, batch = crafted(recipe)
    shifts = recipe.shifts(system, batch, step)
    assert len(shifts) == len(list(system.parameters()))
    e = torch.cat([v.flatten() for _, v in shifts])
    torch.testing.assert_close(e.norm(), torch.tensor(0.3))
    g = gradients(system, BASE.loss(system, batch, step))
    torch.testing.assert_close(e, 0.3 * g / g.norm(), rtol=1e-4, atol=1e-6)


def test_the_optimiser_steps_from_the_old_weights_along_the_second_gradient():
    recipe = SAM(BASE, rho=0.3)
    system, step, batch = crafted(recipe, norm=False)
    other, _, _ = crafted(recipe, norm=False)
    before = [p.detach().clone() for p in system.parameters()]
    shifts = recipe.shifts(system, batch, step)
    with torch.no_grad():
        for q, (_, v) in zip(other.parameters(), shifts):
            q.add_(v)
    second = torch.autograd.grad(BASE.loss(other, batch, step), list(other.parameters()))
    held = []
    optimizer = torch.optim.SGD(system.parameters(), 0.1)
    by_hand(recipe, system, optimizer, batch, step, lambda: held.extend(p.clone() for p in system.parameters()))
    for p, w, at_step, g in zip(system.parameters(), before, held, second):
        assert torch.equal(at_step, w)
        torch.testing.assert_close(p.detach(), w - 0.1 * g, rtol=1e-5, atol=1e-6)


def test_batch_statistics_are_those_of_the_first_pass():
    for base, passes in ((BASE, 1), (HalfHalf(BASE.attack), 2)):
        recipe = SAM(base, rho=0.5)
        system, step, batch = crafted(recipe)
        other, _, _ = crafted(recipe)
        base.loss(other, batch, step)
        by_hand(recipe, system, torch.optim.SGD(system.parameters(), 0.1), batch, step)
        assert int(system.model[1].num_batches_tracked) == passes
        for name, buffer in other.named_buffers():
            assert torch.equal(buffer, system.get_buffer(name))


def test_with_rho_zero_it_is_the_recipe_bit_for_bit_dropout_included():
    base = Trainer(**QUICK).fit(BASE, cnn(), images())
    zero = Trainer(**QUICK).fit(SAM(BASE, rho=0.0), cnn(), images())
    some = Trainer(**QUICK).fit(SAM(BASE, rho=0.1), cnn(), images())
    assert same(base.last, zero.last)
    assert base.history[-1]["loss"] == zero.history[-1]["loss"]
    assert some.history[0]["loss"] > base.history[0]["loss"]


def test_it_doubles_the_outer_pass_and_nothing_else():
    recipe = SAM(BASE)
    system, step, batch = crafted(recipe)
    with count_passes(system.model) as passes:
        batch = recipe.craft(system, batch, step)
        by_hand(recipe, system, torch.optim.SGD(system.parameters(), 0.1), batch, step)
    assert (passes.forward_calls, passes.backward_calls) == (2 + 2, 2 + 2)


def test_parts_of_a_batch_leave_the_weights_where_they_were():
    trained = Trainer(**QUICK | {"optimizer": SGD(1e-30, 0.0, 0.0)}, accumulate=2).fit(
        SAM(BASE, rho=1.0), cnn(), images()
    )
    given = copied(cnn())
    for name, p in trained.last.named_parameters():
        torch.testing.assert_close(p.detach(), given[name], rtol=0, atol=1e-25)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recipe": BASE, "rho": -0.1}, "rho"),
        ({"recipe": "free_at"}, "one update of each batch"),
        ({"recipe": "pgd_a"}, "pgd_at"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        SAM(**settings)
