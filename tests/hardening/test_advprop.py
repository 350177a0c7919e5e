import copy

import pytest
import torch
import torch.nn.functional as F

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, copied, crafted, gradients, step_of, system_of
from tests.training.conftest import same
from withstand.attacks import PGD
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.hardening.advprop import AdvProp
from withstand.hardening.half_half import HalfHalf
from withstand.models import count_passes
from withstand.models.layers import route
from withstand.random import Rows, derive
from withstand.threats import Linf
from withstand.training import SGD, Trainer
from withstand.training.augment import Mixup

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


def test_the_defaults_are_the_published_ones():
    recipe = AdvProp()
    assert recipe.attack == PGD(Linf(1 / 255), steps=1, step=1.0, random_start=True, clean_starts=0.2)
    assert (recipe.target, recipe.weights, recipe.branches, recipe.ship) == ("random", (0.5, 0.5), "own", "main")
    assert (recipe.adversarial_share, recipe.paired, recipe.sources) == (1.0, True, ())


@pytest.mark.parametrize("target", ["random", "true"])
def test_the_attack_is_sign_steps_on_the_auxiliary_branch_some_from_the_clean_point(target):
    recipe = AdvProp(attack="pgd(linf(0.1), steps=2, step=0.5, clean_starts=0.5)", target=target)
    system, step, batch = system_of(recipe, dropout=True), step_of(), batch_of()
    with torch.no_grad(), route(system.model, "adversarial"):
        system(batch.x)  # the branches part, and running statistics differ from those of the batch
    found = recipe.craft(system, batch, step).extra["adversarial"]

    x, y, sign = batch.x, batch.y, 1
    if target == "random":
        y, sign = (y + step.rows.integers((), 1, 3, "advprop target")) % 3, -1
    rows = Rows(derive(derive(step.rows.seed, "attack"), "pgd"), step.rows.ids)
    start = Linf(0.1).random_start(x, rows, "pgd", 0, (0.0, 1.0))
    clean = rows.uniform((), "pgd clean start") < 0.5
    assert 0 < clean.sum() < len(x)
    z = torch.where(clean[:, None, None, None], x, start)
    system.eval()
    for _ in range(2):
        z.requires_grad_(True)
        with route(system.model, "adversarial"):
            (g,) = torch.autograd.grad(F.cross_entropy(system(z), y, reduction="sum"), z)
        z = (z.detach() + sign * 0.05 * g.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-6)


def test_soft_labels_count_by_their_largest_class():
    system, batch = system_of(SMALL), batch_of()
    hard = SMALL.craft(system, batch, step_of()).extra["adversarial"]
    batch.y = 0.7 * F.one_hot(batch.y, 3) + 0.1
    assert torch.equal(SMALL.craft(system, batch, step_of()).extra["adversarial"], hard)


def test_without_a_radius_nothing_moves():
    system, batch = system_of(SMALL), batch_of()
    found = AdvProp(attack="pgd(linf(0.0), steps=2)").craft(system, batch, step_of()).extra["adversarial"]
    assert torch.equal(found, batch.x)


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


def test_of_a_share_one_example_is_left_on_either_side():
    few = AdvProp(attack="pgd(linf(0.1), steps=1)", adversarial_share=0.01)
    assert len(crafted(few)[2].extra["adversarial"]) == 1
    with pytest.raises(BadInput, match=r"adversarial_share: got 0\.99 of 12 examples, unpaired"):
        crafted(AdvProp(attack="pgd(linf(0.1), steps=1)", adversarial_share=0.99, paired=False))


def test_each_source_has_a_branch_a_weight_and_draws_of_its_own():
    recipe = AdvProp(attack="pgd(linf(0.1), steps=1)", sources="crop_flip(1)", weights=(0.3, 0.9))
    system, _, batch = crafted(recipe)
    step = step_of(smoothing=0.2)
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
            terms.append(F.cross_entropy(other(x), batch.y, label_smoothing=0.2))
    torch.testing.assert_close(loss, 0.3 * terms[0] + 0.9 * terms[1] + 0.3 * terms[2])
    torch.testing.assert_close(step.said["loss_clean"], terms[0].detach())
    torch.testing.assert_close(step.said["loss_adversarial"], terms[1].detach())
    two = AdvProp(attack="pgd(linf(0.1), steps=1)", sources=("crop_flip(2)", "crop_flip(2)"))
    extra = crafted(two)[2].extra
    assert not torch.equal(extra["source_0"], extra["source_1"])


def test_a_source_that_mixes_brings_its_labels():
    recipe = AdvProp(attack="pgd(linf(0.1), steps=1)", sources="mixup(1.0)", branches="shared", weights=(1.0, 0.0))
    system, step, batch = crafted(recipe)
    mixed, labels = batch.extra["source_0"], batch.extra["source_0_labels"]
    own = step_of(seed=derive(0, "source", 0))
    own.rows = Rows(derive(step.rows.seed, "source", 0), step.rows.ids)
    expected = Mixup(1.0)(batch_of(), own, 3)
    assert torch.equal(mixed, expected.x)
    assert torch.equal(labels, expected.y)
    loss = recipe.loss(system, batch, step)
    z = system_of(recipe)(torch.cat([batch.x, batch.extra["adversarial"], mixed])).split(12)
    torch.testing.assert_close(loss, F.cross_entropy(z[0], batch.y) + F.cross_entropy(z[2], labels))


def test_one_class_leaves_nothing_to_aim_at():
    data = from_arrays(torch.rand(6, 1, 8, 8).numpy(), torch.zeros(6, dtype=torch.long).numpy(), classes=1)
    with pytest.raises(BadInput, match="no other class to aim at"):
        SMALL.setup(cnn(), data, Rows.count(0, 6))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": (-1.0, 1.0)}, "weights"),
        ({"adversarial_share": 0.0}, "adversarial_share"),
        ({"paired": False}, "paired"),
        ({"branches": "shared", "ship": "adversarial"}, "ship"),
        ({"attack": "deepfool()"}, "one that takes an objective"),
        ({"attack": "pgd(objective=margin())"}, "objective"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        AdvProp(**settings)


def test_an_attack_whose_own_objective_is_no_cross_entropy_is_aimed_as_well():
    AdvProp(attack="square(linf(0.1))")
    assert AdvProp(attack="pgd(objective=margin())", target="true").attack.objective.component_name == "margin"


def test_what_the_first_step_refuses_leaves_no_folder(tmp_path):
    recipe = AdvProp(attack="pgd(linf(0.1), steps=1)", adversarial_share=0.99, paired=False)
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(BadInput, match="unpaired"):
            Trainer(epochs=1, accelerator="cpu").fit(recipe, cnn(), images(), out=tmp_path / name)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine"]


def test_a_network_without_batch_norm_is_pointed_elsewhere():
    with pytest.raises(BadInput, match="take pyramidat or nofrost"):
        system_of(SMALL, norm=False)
