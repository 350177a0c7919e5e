import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, copied, step_of
from withstand.attacks import PGD
from withstand.errors import BadInput
from withstand.hardening.pyramidat import PyramidAT
from withstand.hardening.terms import towards
from withstand.models import count_passes
from withstand.models.layers import matched_masks
from withstand.random import Rows
from withstand.threats import Linf

ATTACK = "pgd(linf(0.02), steps=3, step=1/3, random_start=False, parameterisation=pyramid((4, 1), (10, 1)))"
SMALL = PyramidAT(attack=ATTACK)


def system_with(recipe, dropout=0.5, norm=False):
    model = cnn(norm=norm)
    model[8].p = dropout
    return recipe.setup(model, images(), Rows.count(0, 24)).train()


def test_the_loss_is_the_sum_with_the_same_masks_in_both_passes():
    system, step = system_with(SMALL), step_of()
    batch = SMALL.craft(system, batch_of(), step)
    batch.extra["adversarial"] = batch.x
    with matched_masks(system.model, step.rows, step.step):
        once = F.cross_entropy(system(batch.x), batch.y)
    torch.testing.assert_close(SMALL.loss(system, batch, step), 2 * once, rtol=0, atol=0)
    assert step.said["loss_clean"] == step.said["loss_adversarial"]
    half = PyramidAT(attack=ATTACK, weight=0.5)
    torch.testing.assert_close(half.loss(system, batch, step), 1.5 * once)


def test_unmatched_masks_differ():
    recipe = PyramidAT(attack=ATTACK, matched=False)
    system, step = system_with(recipe), step_of()
    batch = recipe.craft(system, batch_of(), step)
    batch.extra["adversarial"] = batch.x
    recipe.loss(system, batch, step)
    assert step.said["loss_clean"] != step.said["loss_adversarial"]


def test_the_attack_knows_the_masks():
    """With matched masks the attack is the plain one on the sub-network that the masks leave."""
    system, step = system_with(SMALL), step_of()
    found = SMALL.craft(system, batch_of(), step).extra["adversarial"]
    target = step.rows.integers((), 0, 3, "pyramid target")

    class Masked(nn.Module):
        def forward(self, x):
            with matched_masks(system.model, step.rows, step.step):
                return system.model(x)

    attack = PGD(
        Linf(0.02), steps=3, step=1 / 3, random_start=False, objective=towards, keep="last", active=False,
        parameterisation=SMALL.attack.parameterisation,
    )  # fmt: skip
    torch.testing.assert_close(found, attack(Masked(), batch_of().x, target, block=12), rtol=0, atol=1e-6)
    dry = PyramidAT(attack=ATTACK, matched=False).craft(system, batch_of(), step).extra["adversarial"]
    assert not torch.allclose(found, dry, atol=1e-3)


def test_one_pixel_scale_is_targeted_sign_descent_from_zero():
    recipe = PyramidAT(
        attack="pgd(linf(0.02), steps=3, step=1/3, random_start=False, parameterisation=pyramid((1,), (1,)))"
    )
    system, step = system_with(recipe, dropout=0.0), step_of()
    found = recipe.craft(system, batch_of(), step).extra["adversarial"]
    target = step.rows.integers((), 0, 3, "pyramid target")
    x = batch_of().x
    z = x.clone()
    for _ in range(3):
        z.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(system(z), target, reduction="sum"), z)
        z = (z.detach() - 0.02 / 3 * g.sign()).clamp(0, 1)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-6)


def test_targets_are_all_classes_and_new_in_every_step_and_process():
    step = step_of(n=300)
    targets = step.rows.integers((), 0, 3, "pyramid target")
    assert torch.bincount(targets, minlength=3).min() > 70
    other = Rows(step.rows.seed + 1, step.rows.ids).integers((), 0, 3, "pyramid target")
    assert (targets != other).any()


def test_it_costs_its_steps_and_leaves_no_trace():
    system, step = system_with(SMALL), step_of()
    before, draws = copied(system), torch.random.get_rng_state()
    with count_passes(system.model) as passes:
        batch = SMALL.craft(system, batch_of(), step)
    assert (passes.forward_examples, passes.backward_examples) == (3 * 12, 3 * 12)
    assert torch.equal(draws, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), copied(system).values(), strict=True))
    assert (batch.extra["adversarial"] - batch.x).abs().max() <= 11 * 0.02 + 1e-6


def test_a_network_with_batch_norm_keeps_adversaries_in_a_branch_of_their_own():
    system, step = system_with(SMALL, norm=True), step_of()
    assert system.model[1].names == ("main", "adversarial")
    batch = SMALL.craft(system, batch_of(), step)
    SMALL.loss(system, batch, step)
    main, other = (system.model[1].branches[name].running_mean for name in ("main", "adversarial"))
    assert not torch.allclose(main, other)
    assert int(system.model[1].branches["main"].num_batches_tracked) == 1
    assert SMALL.finish(system).state_dict().keys() == cnn().state_dict().keys()


def test_bad_settings_and_models_are_refused():
    with pytest.raises(BadInput, match="weight"):
        PyramidAT(weight=-1.0)
    with pytest.raises(BadInput, match="one that takes an objective"):
        PyramidAT(attack="deepfool()")
    model = cnn(norm=False)
    model[8] = nn.AlphaDropout(0.1)
    with pytest.raises(BadInput, match="AlphaDropout"):
        SMALL.setup(model, images(), Rows.count(0, 24))
    PyramidAT(attack=ATTACK, matched=False).setup(model, images(), Rows.count(0, 24))
