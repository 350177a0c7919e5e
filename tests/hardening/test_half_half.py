import torch
import torch.nn.functional as F

from tests.hardening.steps import crafted, gradients, step_of
from withstand.hardening.half_half import HalfHalf
from withstand.hardening.pgd_at import PGDAT
from withstand.models import count_passes

PGD2 = "pgd(linf(0.1), steps=2)"


def test_the_loss_is_the_mean_of_both_halves_and_the_attack_that_of_pgd_at():
    recipe = HalfHalf(PGD2)
    system, step, batch = crafted(recipe, norm=False)
    attacked = PGDAT(PGD2).craft(system, batch, step_of()).x
    assert torch.equal(batch.extra["adversarial"], attacked)
    assert not torch.equal(batch.x, attacked)
    loss = recipe.loss(system, batch, step)
    clean, adversarial = F.cross_entropy(system(batch.x), batch.y), F.cross_entropy(system(attacked), batch.y)
    torch.testing.assert_close(loss, 0.5 * clean + 0.5 * adversarial)
    assert step.said["loss_clean"] == clean
    assert step.said["loss_adversarial"] == adversarial
    assert step.said["train_accuracy_clean"] == (system(batch.x).argmax(1) == batch.y).float().mean()
    assert step.said["train_accuracy_adversarial"] == (system(attacked).argmax(1) == batch.y).float().mean()


def test_one_joint_pass_equals_two_without_batch_norm_and_differs_with_it():
    for norm in (False, True):
        found = []
        for way in ("two_pass", "joint"):
            recipe = HalfHalf(PGD2, norm=way)
            system, step, batch = crafted(recipe, norm=norm)
            found.append(gradients(system, recipe.loss(system, batch, step)))
        assert torch.allclose(*found, atol=1e-6) is not norm


def test_two_passes_move_the_running_statistics_twice():
    for way, moves in (("two_pass", 2), ("joint", 1)):
        recipe = HalfHalf(PGD2, norm=way)
        system, step, batch = crafted(recipe)
        with count_passes(system.model) as passes:
            recipe.loss(system, batch, step).backward()
        assert int(system.model[1].num_batches_tracked) == moves
        assert passes.forward_examples == passes.backward_examples == 2 * len(batch)
        assert passes.forward_calls == moves


def test_smoothed_labels_count_in_both_halves():
    recipe = HalfHalf(PGD2)
    system, step, batch = crafted(recipe, norm=False, step=step_of(smoothing=0.3))
    passes = system(batch.x), system(batch.extra["adversarial"])
    expected = sum(F.cross_entropy(z, batch.y, label_smoothing=0.3) for z in passes) / 2
    torch.testing.assert_close(recipe.loss(system, batch, step), expected)
