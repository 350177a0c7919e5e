import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, copied, step_of
from withstand.attacks import PGD
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.hardening.pyramidat import PyramidAT
from withstand.hardening.terms import towards
from withstand.models import count_passes
from withstand.models.layers import matched_masks, route
from withstand.parameterisations import Pyramid
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


def test_the_defaults_are_the_published_ones():
    levels = Pyramid(scales=(32, 16, 1), multipliers=(20, 10, 1), clip="once")
    attack = PGD(Linf(3 / 255), steps=5, step=1 / 6, random_start=False, parameterisation=levels)  # steps of 0.5/255
    assert PyramidAT().attack == attack
    assert (PyramidAT().weight, PyramidAT().matched) == (1.0, True)


def test_both_terms_have_the_smoothed_labels_and_are_told_apart():
    recipe = PyramidAT(attack=ATTACK, weight=0.5)
    system, step = system_with(recipe, dropout=0.0), step_of(smoothing=0.3)
    batch = recipe.craft(system, batch_of(), step)
    z = [system(x) for x in (batch.x, batch.extra["adversarial"])]
    clean, adversarial = (F.cross_entropy(logits, batch.y, label_smoothing=0.3) for logits in z)
    torch.testing.assert_close(recipe.loss(system, batch, step), clean + 0.5 * adversarial)
    torch.testing.assert_close(step.said["loss_clean"], clean.detach())
    torch.testing.assert_close(step.said["loss_adversarial"], adversarial.detach())
    system.model[9].bias.data -= z[0].detach().mean(0)  # now the network tells classes apart
    batch.y = system(batch.x).argmax(1)
    batch.extra["adversarial"] = batch.x.flip(0)
    recipe.loss(system, batch, step)
    assert step.said["train_accuracy_clean"] == 1
    assert step.said["train_accuracy_adversarial"] < 1


def test_masks_are_new_in_every_step():
    system, batch = system_with(SMALL), batch_of()
    rows = step_of().rows
    losses = []
    for i in (0, 1):
        step = step_of(step=i)
        step.rows = rows
        batch.extra["adversarial"] = batch.x
        losses.append(SMALL.loss(system, batch, step))
    assert losses[0] != losses[1]


def test_the_attack_is_sign_descent_on_every_level():
    """Each cell follows m times the sum of the pixels' gradients over its block; what is clipped adds nothing."""
    system, step = system_with(SMALL, dropout=0.0), step_of()
    x = batch_of().x
    found = SMALL.craft(system, batch_of(), step).extra["adversarial"]
    target = step.rows.integers((), 0, 3, "pyramid target")
    levels = {4: (10.0, torch.zeros(12, 1, 2, 2)), 1: (1.0, torch.zeros(12, 1, 8, 8))}

    def image():
        grown = [m * d.repeat_interleave(s, 2).repeat_interleave(s, 3) for s, (m, d) in levels.items()]
        return x + sum(grown)

    for _ in range(3):
        raw = image()
        z = raw.clamp(0, 1).requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(system(z), target, reduction="sum"), z)
        g = g * ((raw >= 0) & (raw <= 1))
        for s, (m, d) in levels.items():
            block = m * F.avg_pool2d(g, s) * s * s
            levels[s] = (m, (d - 0.02 / 3 * block.sign()).clamp(-0.02, 0.02))
    torch.testing.assert_close(found, image().clamp(0, 1), rtol=0, atol=1e-5)
    assert (found - x).abs().max() > 0.1


def test_unmatched_the_attack_runs_in_its_own_mode():
    recipe = PyramidAT(attack=ATTACK, matched=False)
    system, step = system_with(recipe), step_of()
    found = recipe.craft(system, batch_of(), step).extra["adversarial"]
    without = system_with(SMALL, dropout=0.0)
    assert torch.equal(found, SMALL.craft(without, batch_of(), step).extra["adversarial"])


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
    given = copied(system.model[1].branches["main"])
    shipped = SMALL.finish(system)
    assert shipped.state_dict().keys() == cnn().state_dict().keys()
    assert all(torch.equal(t, given[k]) for k, t in shipped[1].state_dict().items())


def test_attack_and_adversarial_pass_go_through_the_branch_of_adversaries_and_the_clean_pass_does_not():
    system, step = system_with(SMALL, norm=True, dropout=0.0), step_of()
    for layer in (system.model[1], system.model[4]):
        layer.branches["main"].weight.data.zero_()  # an attack on the main branch would have no gradient
    batch = SMALL.craft(system, batch_of(), step)
    assert (batch.extra["adversarial"] - batch.x).abs().mean() > 0.05
    terms = []
    for name, x in (("main", batch.x), ("adversarial", batch.extra["adversarial"])):
        with route(system.model, name):
            terms.append(F.cross_entropy(system(x), batch.y))
    torch.testing.assert_close(SMALL.loss(system, batch, step), sum(terms))


def test_data_without_classes_are_refused():
    data = from_arrays(torch.rand(6, 1, 8, 8).numpy(), None)
    with pytest.raises(BadInput, match="labelled data"):
        SMALL.setup(cnn(norm=False), data, Rows.count(0, 6))


def test_bad_settings_and_models_are_refused():
    with pytest.raises(BadInput, match="weight"):
        PyramidAT(weight=-1.0)
    with pytest.raises(BadInput, match="one that takes an objective"):
        PyramidAT(attack="deepfool()")
    with pytest.raises(BadInput, match="objective"):
        PyramidAT(attack="pgd(objective=margin())")
    model = cnn(norm=False)
    model[8] = nn.AlphaDropout(0.1)
    with pytest.raises(BadInput, match="AlphaDropout"):
        SMALL.setup(model, images(), Rows.count(0, 24))
    PyramidAT(attack=ATTACK, matched=False).setup(model, images(), Rows.count(0, 24))
