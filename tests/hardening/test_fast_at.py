import pytest
import torch

from tests.hardening.steps import batch_of, copied, crafted, step_of, system_of
from withstand.attacks import FGSM, PGD
from withstand.errors import BadInput
from withstand.hardening.fast_at import FastAT
from withstand.hardening.pgd_at import PGDAT
from withstand.models import count_passes
from withstand.threats import Linf


def test_from_the_clean_point_with_a_full_step_it_is_fgsm():
    recipe = FastAT(Linf(0.1), alpha=1.0, start=False, attack_mode="eval")
    system, _, batch = crafted(recipe)
    fgsm = FGSM(Linf(0.1), keep="last", active=False)(system.model, batch_of().x, batch.y)
    assert torch.equal(batch.x, fgsm)


def test_it_is_one_step_of_5_4_eps_from_a_uniform_start_in_train_mode():
    recipe = FastAT(Linf(0.1))
    system, step, batch = crafted(recipe)
    pgd = PGD(Linf(0.1), steps=1, step=1.25, random_start=True, mode="train")
    expected = PGDAT(pgd).craft(system, batch_of(), step)
    assert torch.equal(batch.x, expected.x)
    assert not torch.equal(batch.x, PGDAT(PGD(Linf(0.1), steps=1, step=1.25)).craft(system, batch_of(), step).x)
    torch.testing.assert_close(recipe.loss(system, batch, step), PGDAT(pgd).loss(system, expected, step_of()))


def test_the_step_in_train_mode_leaves_the_running_statistics():
    system = system_of(FastAT())
    before = copied(system)
    FastAT().craft(system, batch_of(), step_of())
    assert all(torch.equal(v, before[k]) for k, v in system.state_dict().items())


def test_a_step_costs_two_passes_and_their_gradients():
    system, step = system_of(FastAT()), step_of()
    with count_passes(system.model) as passes:
        FastAT().loss(system, FastAT().craft(system, batch_of(), step), step).backward()
    assert (passes.forward_calls, passes.backward_calls) == (2, 2)


@pytest.mark.parametrize(("settings", "said"), [({"alpha": 0.0}, "alpha"), ({"threat": "linf()"}, "with a radius")])
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        FastAT(**settings)
