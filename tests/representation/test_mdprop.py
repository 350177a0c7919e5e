"""MDProp: what is attacked, through which norms, and what is left of it."""

import copy

import pytest
import torch

from tests.representation.conftest import cnn, trained
from tests.training.conftest import same
from withstand.attacks import PGD
from withstand.errors import BadInput
from withstand.models.layers import BranchNorm, route
from withstand.random import Rows
from withstand.representation.mdprop import MDProp
from withstand.representation.metric import Metric
from withstand.threats import Linf
from withstand.training.recipe import Step

pytest.importorskip("pytorch_metric_learning")
ATTACK = PGD(Linf(0.05), steps=1, step=1.0, random_start=5e-4)


def made(strokes, n=16, **settings):
    recipe = MDProp(dim=5, attack=ATTACK, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        system = recipe.setup(cnn(), strokes, Rows.count(0, 48)).train()
    batch = strokes.batch(range(n))
    return recipe, system, batch, Step(0, 10, 0, 2, 0, Rows(3, batch.ids))


@pytest.mark.parametrize("n", [16, 13])
def test_each_part_of_the_batch_is_one_attack_through_its_own_branch(strokes, n):
    recipe, system, batch, step = made(strokes, n)
    for layer in system.modules():  # the branches differ
        if isinstance(layer, BranchNorm):
            for b, norm in enumerate(layer.branches.values()):
                norm.running_mean += 0.1 * b
    found = recipe.craft(system, batch, step).extra["adversarial"]
    half = (n + 1) // 2
    assert len(found) == n
    for name, targets, part in (("single", 1, slice(0, half)), ("multi", 5, slice(half, n))):
        with route(system.model, name):
            expected = Step(0, 10, 0, 2, 0, Rows(3, batch.ids[part])).attack(
                PGD(Linf(0.05), 1, 1.0, 5e-4, objective=f"multi_target({targets})"),
                system.model, batch.x[part], batch.y[part], name,
            )  # fmt: skip
        assert torch.equal(found[part], expected)
    assert 0.04 < (found - batch.x).abs().max() <= 0.05 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_default_start_has_the_spread_of_the_published_one_without_the_normalisation_of_imagenet():
    published = 5e-4 / 3**0.5 * (0.229 + 0.224 + 0.225) / 3  # uniform within 5e-4
    assert MDProp().attack.random_start == pytest.approx(published, rel=0.01)


def test_the_attack_leaves_the_system_as_it_was(strokes):
    recipe, system, batch, step = made(strokes)
    before = copy.deepcopy(system.state_dict())
    recipe.craft(system, batch, step)
    assert all(torch.equal(v, before[k]) for k, v in system.state_dict().items())
    assert all(p.requires_grad for p in system.parameters())
    assert all(m.training for m in system.modules())


def test_statistics_of_a_branch_depend_on_its_own_rows_alone(strokes):
    found = []
    for shift in (0.0, 0.3):
        recipe, system, batch, step = made(strokes)
        batch = recipe.craft(system, batch, step)
        batch.extra["adversarial"][8:] += shift  # the multi-targeted half
        recipe.loss(system, batch, step)
        found.append({k: v.clone() for k, v in system.state_dict().items() if "running" in k or "batches" in k})
    changed = {k.split("branches.")[1].split(".")[0] for k in found[0] if not torch.equal(found[0][k], found[1][k])}
    assert changed == {"multi"}
    assert all(int(v) == 1 for k, v in found[0].items() if "num_batches" in k)


def test_one_loss_is_taken_on_all_embeddings_with_the_original_labels(strokes):
    recipe, system, batch, step = made(strokes)
    batch = recipe.craft(system, batch, step)
    system.model.backbone.eval()
    value = recipe.loss(system, batch, step)
    z = system(torch.cat([batch.x, batch.extra["adversarial"]]))  # equal branches: one forward pass is the same
    assert value.item() == pytest.approx(system.metric_loss(z, torch.cat([batch.y, batch.y])).item(), abs=1e-5)


def test_norms_learn_at_rates_of_their_own(strokes):
    recipe, system, _, _ = made(strokes, metric_loss="proxy_anchor", proxy_rate=7.0, norm_rates=(0.5, 0.01))
    found = recipe.optimizers(system, lambda p: torch.optim.Adam(p, lr=0.1))["main"].param_groups
    names = {id(p): name for name, p in system.named_parameters()}
    by_rate = {round(g["lr"], 6): sorted(names[id(p)] for p in g["params"]) for g in found}
    of = {rate: [n for n in names.values() if any(f".{b}." in n for b in branches)] for rate, branches in
          ((0.05, ["main"]), (0.001, ["single", "multi"]))}  # fmt: skip
    assert len(of[0.05]) == 4  # two norms with scale and shift
    assert by_rate[0.05] == sorted(of[0.05])
    assert by_rate[0.001] == sorted(of[0.001])
    assert by_rate[0.7] == ["metric_loss.loss.proxies"]
    assert sorted(by_rate[0.1]) == sorted({*names.values()} - {*of[0.05], *of[0.001], "metric_loss.loss.proxies"})
    assert sum(len(g["params"]) for g in found) == len(names)


def test_norms_at_a_rate_of_zero_stay_as_they_are(strokes):
    recipe, system, batch, step = made(strokes, norm_rates=(1.0, 0.0))
    before = {name: p.clone() for name, p in system.named_parameters()}
    optimizer = recipe.optimizers(system, lambda p: torch.optim.Adam(p, lr=0.01))["main"]
    recipe.loss(system, recipe.craft(system, batch, step), step).backward()
    optimizer.step()
    moved = {name for name, p in system.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".single." not in name and ".multi." not in name}


def test_without_rates_of_their_own_all_learn_in_one_group(strokes):
    recipe, system, _, _ = made(strokes)
    groups = recipe.optimizers(system, lambda p: torch.optim.Adam(p, lr=0.1))["main"].param_groups
    assert [len(g["params"]) for g in groups] == [len([*system.parameters()])]


def test_without_kinds_it_is_its_base_bit_for_bit(strokes):
    base = trained(Metric(dim=5), strokes).last
    assert same(trained(MDProp(dim=5, kinds=()), strokes).last, base)
    assert same(trained(MDProp(dim=5, kinds=(), norms="shared"), strokes, cnn()).last, base)
    assert not same(trained(MDProp(dim=5, attack=ATTACK), strokes).last, base)


def test_branches_begin_as_copies_with_their_statistics(strokes):
    model = cnn()
    model[1].running_mean.fill_(3)
    system = MDProp(dim=5).setup(model, strokes, Rows.count(0, 48))
    norm = system.model.backbone[1]
    assert norm.names == ("main", "single", "multi")
    for branch in norm.branches.values():
        assert torch.equal(branch.running_mean, model[1].running_mean)
        assert torch.equal(branch.weight, model[1].weight)


def test_the_main_branch_ships(strokes):
    recipe, system, batch, _ = made(strokes)
    system.model.backbone[1].branches["main"].running_mean.fill_(2)
    kept = copy.deepcopy(system).model.eval()
    expected = kept(batch.x)
    shipped = recipe.finish(system).eval()
    assert not any(isinstance(m, BranchNorm) for m in shipped.modules())
    assert torch.equal(shipped(batch.x), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"kinds": (("single", 1),), "norms": "shared"},
        {"kinds": (("single", 1),)},
        {"kinds": (("multi", 5),)},
        {"kinds": (("single", 1), ("multi", 5), ("unadversarial", "towards_own_class"))},
        {"norms": "shared"},
    ],
)
def test_the_variants_that_it_is_compared_with_train(strokes, settings):
    fitted = trained(MDProp(dim=5, attack=ATTACK, **settings), strokes)
    assert fitted.history[-1]["loss"] > 0
    assert fitted.last.state_dict().keys() == Metric(dim=5).deploy(cnn(), strokes.space).state_dict().keys()


def test_shared_norms_see_all_examples(strokes):
    recipe, system, batch, step = made(strokes, norms="shared")
    batch = recipe.craft(system, batch, step)
    recipe.loss(system, batch, step)
    first = system.model.backbone[0](torch.cat([batch.x, batch.extra["adversarial"]]))
    assert torch.allclose(system.model.backbone[1].running_mean, 0.1 * first.mean((0, 2, 3)), atol=1e-6)


def test_networks_without_batch_norm_are_refused_unless_norms_are_shared(strokes):
    with pytest.raises(BadInput, match="norms='shared'"):
        trained(MDProp(attack=ATTACK), strokes, cnn(norm=False))
    trained(MDProp(attack=ATTACK, norms="shared"), strokes, cnn(norm=False), epochs=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kinds": (("single", 0),)}, "targets"),
        ({"kinds": (("main", 1),)}, "main"),
        ({"kinds": (("a", 1), ("a", 5))}, "different"),
        ({"kinds": 5}, "pairs"),
        ({"kinds": (("a b", 1),)}, "letters"),
        ({"attack": "pgd(linf(0.1), mode='train')"}, "eval"),
        ({"attack": "ask(linf(0.1))"}, "objective"),
        ({"norm_rates": (1.0, -1.0)}, "norm_rates"),
        ({"norm_rates": (1.0, 0.01), "norms": "shared"}, "own"),
        ({"norm_rates": (1.0, 0.01), "kinds": ()}, "own"),
        ({"attack": "pgd(linf(-0.1))"}, "eps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        MDProp(**settings)


def test_a_batch_too_small_for_all_kinds_is_refused(strokes):
    recipe, system, batch, step = made(strokes, 8, kinds=tuple((f"k{i}", 1) for i in range(5)))
    with pytest.raises(BadInput, match="at least 10"):
        recipe.craft(system, batch, step)


def test_a_batch_without_pairs_is_refused_before_the_attack(strokes):
    recipe, system, batch, step = made(strokes)
    batch.y = torch.arange(16)
    with pytest.raises(BadInput, match="per_class"):
        recipe.craft(system, batch, step)


def test_the_default_radius_is_the_published_one_without_the_normalisation_of_imagenet():
    assert MDProp().attack.threat.eps == pytest.approx(0.01 * (0.229 + 0.224 + 0.225) / 3, rel=0.01)
