import copy

import pytest
import torch
import torch.nn.functional as F

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, copied, crafted, gradients, step_of, system_of
from tests.training.conftest import same
from withstand.errors import BadInput
from withstand.hardening.advprop import AdvProp
from withstand.hardening.half_half import HalfHalf
from withstand.models import count_passes
from withstand.models.layers import route
from withstand.training import SGD, Trainer

SMALL = AdvProp(attack="pgd(linf(0.1), steps=2)")


def test_the_joint_pass_is_two_passes_in_loss_gradients_and_buffers():
    system, step, batch = crafted(SMALL)
    system = system.double()
    batch.x, batch.extra["adversarial"] = batch.x.double(), batch.extra["adversarial"].double()
    apart = copy.deepcopy(system)
    joint = SMALL.loss(system, batch, step)
    with route(apart.model, "main"):
        clean = apart(batch.x)
    with route(apart.model, "adversarial"):
        adversarial = apart(batch.extra["adversarial"])
    two = (F.cross_entropy(clean, batch.y) + F.cross_entropy(adversarial, batch.y)) / 2
    torch.testing.assert_close(joint, two, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(system, joint), gradients(apart, two), rtol=0, atol=1e-12)
    for a, b in zip(copied(system).values(), copied(apart).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_copies_instead_of_adversaries_keep_the_branches_alike_and_make_a_plain_step():
    system, step, batch = crafted(SMALL)
    plain = system_of(HalfHalf(attack="pgd(linf(0.1), steps=1)"))
    batch.extra["adversarial"] = batch.x.clone()
    found = gradients(system, SMALL.loss(system, batch, step))
    expected = gradients(plain, F.cross_entropy(plain(batch.x), batch.y))
    assert float(found.norm()) > 0
    torch.testing.assert_close(found.norm() ** 2, _norm_of_split(plain, expected), rtol=1e-4, atol=1e-7)
    for layer in (system.model[1], system.model[4]):
        for a, b in zip(
            layer.branches["main"].state_dict().values(), layer.branches["adversarial"].state_dict().values()
        ):
            torch.testing.assert_close(a, b)


def _norm_of_split(plain, expected):
    """Batch norm's gradient falls in two equal halves on the two branches; all else is as in a plain step."""
    total = expected.square().sum()
    norms = sum(p.grad.square().sum() for m in (plain.model[1], plain.model[4]) for p in m.parameters())
    return total - norms / 2


def test_the_main_branch_neither_sees_nor_feels_the_other():
    system, _step, batch = crafted(SMALL)
    clean = copied(system.model[1].branches["main"])
    with route(system.model, "adversarial"):
        system(batch.extra["adversarial"])
    assert same_state(clean, copied(system.model[1].branches["main"]))
    system.eval()
    before = system(batch.x)
    for layer in (system.model[1], system.model[4]):
        for t in layer.branches["adversarial"].state_dict().values():
            if t.is_floating_point():
                t.normal_()
    assert torch.equal(before, system(batch.x))


def same_state(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("ship", ["main", "adversarial"])
def test_what_ships_is_the_branch_with_the_original_keys(ship):
    recipe = AdvProp(attack="pgd(linf(0.1), steps=2)", ship=ship)
    system, step, batch = crafted(recipe)
    recipe.loss(system, batch, step)
    system.eval()
    with route(system.model, ship):
        expected = system(batch.x)
    shipped = recipe.finish(system)
    assert torch.equal(shipped(batch.x), expected)
    assert shipped.state_dict().keys() == cnn().state_dict().keys()


def test_one_batch_norm_for_both_is_the_joint_mixture():
    settings = {"epochs": 2, "batch": 8, "optimizer": SGD(0.05), "accelerator": "cpu"}
    attack = "pgd(linf(0.1), steps=2)"
    shared = Trainer(**settings).fit(AdvProp(attack=attack, target="true", branches="shared"), cnn(), images()).last
    mixed = Trainer(**settings).fit(HalfHalf(attack=attack, norm="joint"), cnn(), images()).last
    assert same(shared, mixed)


def test_the_attack_sees_the_auxiliary_branch_in_eval_mode_and_costs_its_steps():
    system = system_of(SMALL)
    for layer in (system.model[1], system.model[4]):
        layer.branches["main"].weight.data.zero_()  # an attack on the main branch would have no gradient
    before = copied(system)
    with count_passes(system.model) as passes:
        batch = SMALL.craft(system, batch_of(), step_of())
    assert (passes.forward_examples, passes.backward_examples) == (2 * 12, 2 * 12)
    moved = (batch.extra["adversarial"] - batch.x).abs()
    assert moved.mean() > 0.05
    assert moved.max() <= 0.1 + 1e-6
    assert same_state(before, copied(system))
    assert all(p.grad is None and p.requires_grad for p in system.parameters())
    assert system.training


def test_targets_are_other_classes_drawn_evenly_and_the_attack_goes_towards_them():
    system = system_of(AdvProp(attack="pgd(linf(0.3), steps=5)")).eval()
    seen = []

    class Watch(AdvProp):
        def craft(self, system, batch, step):
            offset = step.rows.integers((), 1, 3, "advprop target")
            seen.append(offset)
            return super().craft(system, batch, step)

    recipe = Watch(attack="pgd(linf(0.3), steps=5)")
    batch = recipe.craft(system, batch_of(), step_of())
    target = (batch.y + seen[0]) % 3
    assert set(seen[0].tolist()) == {1, 2}
    assert (target != batch.y).all()
    with route(system.model, "adversarial"), torch.no_grad():
        before, after = (
            system(z).log_softmax(1).gather(1, target[:, None]).mean() for z in (batch.x, batch.extra["adversarial"])
        )
    assert after > before


def test_a_share_has_a_twin_and_unpaired_ones_lose_the_clean_copy():
    recipe = AdvProp(attack="pgd(linf(0.1), steps=1)", adversarial_share=0.25, paired=False, branches="shared")
    system, step, batch = crafted(recipe)
    assert len(batch.extra["adversarial"]) == 3
    loss = recipe.loss(system, batch, step)
    system = system_of(recipe)
    logits = system(torch.cat([batch.x[3:], batch.extra["adversarial"]]))
    expected = (F.cross_entropy(logits[:9], batch.y[3:]) + F.cross_entropy(logits[9:], batch.y[:3])) / 2
    torch.testing.assert_close(loss, expected)


def test_each_source_has_a_branch_of_its_own():
    recipe = AdvProp(attack="pgd(linf(0.1), steps=1)", sources="crop_flip(1)")
    system, step, batch = crafted(recipe)
    assert system.model[1].names == ("main", "adversarial", "source_0")
    loss = recipe.loss(system, batch, step)
    terms = []
    for name, x in (
        ("main", batch.x),
        ("adversarial", batch.extra["adversarial"]),
        ("source_0", batch.extra["source_0"]),
    ):
        other = system_of(recipe)
        with route(other.model, name):
            terms.append(F.cross_entropy(other(x), batch.y))
    torch.testing.assert_close(loss, sum(terms) / 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": (-1.0, 1.0)}, "weights"),
        ({"adversarial_share": 0.0}, "adversarial_share"),
        ({"paired": False}, "paired"),
        ({"branches": "shared", "ship": "adversarial"}, "ship"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        AdvProp(**settings)


def test_a_network_without_batch_norm_is_pointed_elsewhere():
    with pytest.raises(BadInput, match="take pyramidat or nofrost"):
        system_of(SMALL, norm=False)
