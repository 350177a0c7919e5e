"""Self-supervised recipes: what they learn from, what they leave alone, and how they reduce to each other."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.training.conftest import same
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.models.feature_encoder import FeatureEncoder, encoder_of
from withstand.models.layers import route
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import parse
from withstand.registry import replace as changed
from withstand.representation.acl import ACL, Instances
from withstand.representation.advcl import AdvCL
from withstand.representation.contrastive import nt_xent, two_views
from withstand.representation.encoders import VIEWS, say_spread
from withstand.representation.false_negatives import scores, select_false_negatives
from withstand.representation.measures import effective_rank, uniformity
from withstand.representation.simclr import Contrastive
from withstand.representation.simsiam import SimSiam, towards
from withstand.training import Trainer
from withstand.training.recipe import Step

QUICK = {"epochs": 2, "batch": 12, "optimizer": "adam(1e-3)", "schedule": "constant", "accelerator": "cpu"}
ATTACK = "pgd(linf(0.1), steps=2)"


def trained(recipe, data=None, **settings) -> nn.Module:
    return Trainer(**{**QUICK, **settings}).fit(recipe, cnn(), data or images()).last


def step(n: int = 12, at: int = 0, steps: int = 10) -> Step:
    return Step(at, steps, 0, 1, 0, Rows.count(5, n))


def system_and_batch(recipe, at: int = 9):
    data = images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        system = recipe.setup(cnn(), data, Rows.count(0, len(data))).train()
    now = step(at=at)
    batch = recipe.craft(system, data.batch(range(12)), now)
    return system, batch, now


def relabelled(n: int = 24):
    """The same images in other classes, which share nothing with the first ones."""
    return from_arrays(images(n).batch(range(n)).x.numpy(), (torch.arange(n) * 3 // n).numpy(), name="shapes")


def unlabelled(n: int = 24):
    return from_arrays(images(n).batch(range(n)).x.numpy(), None, name="bare")


RECIPES = (
    Contrastive(), Contrastive("afnc"), Contrastive("fnc"), Contrastive("attraction"), Contrastive("debiased"), SimSiam(),
    ACL(attack=ATTACK), ACL("afnc", attack=ATTACK), AdvCL("afnc", attack=ATTACK, clusters=(2, 5)),
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_no_weight_depends_on_a_label(recipe):
    assert same(trained(recipe), trained(recipe, relabelled()))
    assert same(trained(recipe), trained(recipe, unlabelled()))


def test_analysis_reads_labels_and_changes_nothing():
    plain = trained(Contrastive("fnc", q_max=0.5))
    assert same(plain, trained(Contrastive("fnc", q_max=0.5, analysis=True)))
    assert same(plain, trained(Contrastive("fnc", q_max=0.5, analysis=True), relabelled()))


@pytest.mark.parametrize("mode", ["oracle", "supcon"])
def test_what_uses_labels_needs_them(mode):
    assert not same(trained(Contrastive(mode)), trained(Contrastive(mode), relabelled()))
    with pytest.raises(BadInput, match="without labels"):
        trained(Contrastive(mode), unlabelled())


def test_with_nothing_to_remove_every_mode_is_simclr():
    plain = trained(Contrastive())
    for mode in ("afnc", "fnc", "attraction"):
        assert same(plain, trained(Contrastive(mode, q_max=0.0)))
        assert same(plain, trained(Contrastive(mode, q_max=0.5, threshold=2.0)))
    assert same(plain, trained(Contrastive("afnc", q_max=0.5, ramp=(1.0, 1.0))))
    assert same(plain, trained(Contrastive("debiased", tau_plus=0.0)))
    assert not same(plain, trained(Contrastive("debiased")))
    assert not same(plain, trained(Contrastive("fnc", q_max=0.5)))
    x = images().batch(range(12)).x.numpy()
    own_class_each = from_arrays(x, torch.arange(12).numpy(), name="instances")
    assert same(trained(Contrastive("oracle"), own_class_each), trained(Contrastive(), own_class_each))


def test_the_loss_is_nt_xent_of_the_projections_of_two_views():
    recipe = Contrastive("fnc", q_max=0.3, tau=0.3)
    system, batch, now = system_and_batch(recipe)
    views = batch.extra["views"]
    assert views.shape == (24, 1, 8, 8)
    assert batch.y is None
    assert not torch.equal(views[:12], views[12:])
    with torch.no_grad():
        torch.manual_seed(0)
        z = system(views)
        torch.manual_seed(0)
        loss = recipe.loss(system, batch, now)
    unit = F.normalize(z, dim=1)
    s, pairs = unit @ unit.T, two_views(12)
    terms = []
    for i in range(24):
        candidates = sorted((a for a in range(24) if a not in (i, int(pairs[i]))), key=lambda a: -float(s[i, a]))
        kept = [int(pairs[i]), *candidates[int(0.3 * 22) :]]
        terms.append(math.log(sum(math.exp(float(s[i, a]) / 0.3) for a in kept)) - float(s[i, pairs[i]]) / 0.3)
    assert float(loss) == pytest.approx(sum(terms) / 24, abs=1e-5)
    assert float(now.said["removed"]) == int(0.3 * 22)


def test_removal_grows_with_training_only_where_it_is_adaptive():
    removed = {}
    for mode in ("afnc", "fnc", "simclr"):
        for at in (0, 4, 9):
            recipe = Contrastive(mode, q_max=0.5)
            system, batch, now = system_and_batch(recipe, at)
            recipe.loss(system, batch, now)
            removed[mode, at] = float(now.said["removed"])
    assert [removed["afnc", at] for at in (0, 4, 9)] == [0, 5, 11]  # of 22 candidates
    assert [removed["fnc", at] for at in (0, 4, 9)] == [11, 11, 11]
    assert not any(removed["simclr", at] for at in (0, 4, 9))


def test_an_oracle_removes_the_class_and_nothing_else():
    recipe = Contrastive("oracle", analysis=True)
    system, batch, now = system_and_batch(recipe)
    recipe.loss(system, batch, now)
    assert float(now.said["removed"]) == float(now.said["removed_own_class"]) == 6  # 4 of 12 a class, without own views


def test_views_are_drawn_apart_and_by_example():
    recipe = Contrastive()
    data = images()
    batch, now = data.batch(range(12)), step()
    views = recipe.pair(batch, now)
    few = torch.tensor([7, 2])
    part = recipe.pair(batch.index(few), replace(now, rows=now.rows.take(few)))
    assert torch.allclose(part[:2], views[few], atol=1e-6)
    assert torch.allclose(part[2:], views[12 + few], atol=1e-6)


def test_half_precision_leaves_the_views_as_they_are():
    recipe = parse("contrastive(views=['random_resized_crop', 'gaussian_blur(p=1.0)'])", "recipe")
    batch, now = images().batch(range(12)), step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = recipe.craft(None, batch, now).extra["views"]
    assert torch.equal(rounded, recipe.pair(batch, now))


@pytest.mark.parametrize("mode", ["oracle", "supcon"])
def test_labels_that_are_mixed_are_refused(mode):
    with pytest.raises(BadInput, match="mixed"):
        trained(Contrastive(mode), augment="mixup")


def test_support_views_and_the_length_of_projections_are_as_told():
    recipe = Contrastive("fnc", q_max=0.3, support=True, dim=7, hidden=9)
    system, batch, now = system_and_batch(recipe)
    assert [tuple(p.shape) for p in system.projector.parameters()][::2] == [(9, system.model.width), (7, 9)]
    with torch.no_grad():
        z, pairs = system(batch.extra["views"]), two_views(12)
    found = recipe.false_negatives(z, pairs, None, now)
    assert torch.equal(found, select_false_negatives(scores(z, pairs), 0.3, exclude=pairs))
    assert not torch.equal(found, select_false_negatives(scores(z), 0.3, exclude=pairs))


def test_what_is_logged_of_the_spread_are_the_measures():
    now, z = step(), Rows.count(0, 9).normal((4,), "z")
    say_spread(now, z)
    assert float(now.said["uniformity"]) == pytest.approx(uniformity(z), abs=1e-5)
    assert float(now.said["effective_rank"]) == pytest.approx(effective_rank(F.normalize(z, dim=1)), abs=1e-5)
    collapsed = step()
    say_spread(collapsed, torch.zeros(9, 4))
    assert list(collapsed.said) == ["uniformity"]  # a rank of nothing is none


def test_simsiam_is_the_mean_cosine_with_a_barrier():
    recipe = SimSiam(dim=6)
    system, batch, now = system_and_batch(recipe)
    system.model.eval()  # dropout
    first, second = batch.extra["views"].chunk(2)
    loss = recipe.loss(system, batch, now)
    z1, z2 = system(first), system(second)
    p1, p2 = system.predictor(z1), system.predictor(z2)
    cosines = [(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean() for p, z in ((p1, z2), (p2, z1))]
    assert float(loss.detach()) == pytest.approx(-float(torch.stack(cosines).sum().detach()) / 2, abs=1e-5)
    leaf = torch.ones(4, 6, requires_grad=True)
    assert not towards(torch.ones(4, 6), leaf).requires_grad
    assert towards(leaf, torch.ones(4, 6)).requires_grad


def test_acl_attacks_both_views_at_once_with_the_mask_of_the_loss():
    recipe = ACL("fnc", attack="pgd(linf(0.1), steps=1, step=1.0, random_start=False)", q_max=0.4, tau=0.3)
    data = images()
    system = recipe.setup(still(), data, Rows.count(0, 24)).train()
    with torch.no_grad():
        for norm in (m for m in system.model.modules() if type(m).__name__ == "BranchNorm"):
            norm.branches["adversarial"].running_mean.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(0))
    now = step(at=9)
    batch = recipe.craft(system, data.batch(range(12)), now)
    views, moved, dropped = (batch.extra[k] for k in ("views", "adversarial", "dropped"))
    assert (dropped.sum(1) == int(0.4 * 22)).all()
    pairs = two_views(12)
    system.eval()
    point = views.clone().requires_grad_(True)
    with route(system.model, "adversarial"):
        nt_xent(system(point), pairs, 0.3, dropped).sum().backward()
    assert point.grad is not None
    expected = (views + 0.1 * point.grad.sign()).clamp(0, 1)
    assert ((moved - expected).abs() < 1e-5).float().mean() > 0.999  # signs of what is nearly zero may differ
    system.train()
    terms = []
    for branch, x in (("clean", views), ("adversarial", moved)):
        with torch.no_grad(), route(system.model, branch):
            terms.append(float(nt_xent(system(x), pairs, 0.3, dropped).mean()))
    assert float(recipe.loss(system, batch, now).detach()) == pytest.approx(sum(terms) / 2, abs=1e-5)


def test_acl_chooses_on_the_clean_branch_and_leaves_its_statistics_alone():
    recipe = ACL("fnc", attack=ATTACK, q_max=0.4)
    system = recipe.setup(still(), images(), Rows.count(0, 24)).train()
    norms = [m for m in system.model.modules() if type(m).__name__ == "BranchNorm"]
    with torch.no_grad():  # in train mode only weights tell branches apart
        for norm in norms:
            norm.branches["adversarial"].weight.copy_(torch.linspace(-1, 1, norm.branches["clean"].num_features))
    before = {k: v.clone() for k, v in system.state_dict().items()}
    calls = []
    handle = system.register_forward_hook(lambda module, args, out: calls.append(module.training))
    batch = recipe.craft(system, images().batch(range(12)), step(at=9))
    handle.remove()
    assert all(torch.equal(v, before[k]) for k, v in system.state_dict().items())
    assert calls == [True, False, False]  # the choice, then one pass for each step of the attack
    pairs = two_views(12)
    with torch.no_grad(), route(system.model, "clean"):
        s = scores(system(batch.extra["views"]))
    assert torch.equal(batch.extra["dropped"], select_false_negatives(s, 0.4, exclude=pairs))


def test_acl_starts_the_two_views_of_an_example_apart():
    recipe = parse("acl(attack=pgd(linf(0.1), steps=1, step=1e-6), views=['intensity(0.5, 0.5)'])", "recipe")
    system = recipe.setup(still(), images(), Rows.count(0, 24)).train()
    batch = recipe.craft(system, images().batch(range(12)), step())
    moved = batch.extra["adversarial"] - batch.extra["views"]
    assert torch.equal(*batch.extra["views"].chunk(2))
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(*moved.chunk(2)))


def test_acl_attacks_as_published_unless_told():
    attack = ACL().attack
    assert (attack.threat.eps, attack.steps, attack.step, attack.random_start) == (8 / 255, 5, 1 / 4, True)
    assert attack.mode == "eval"
    assert (ACL().tau, ACL().defaults["batch"]) == (0.5, 512)


def still() -> nn.Module:
    """The network without dropout."""
    model = cnn()
    return nn.Sequential(*(m for m in model.children() if not isinstance(m, nn.Dropout)))


def test_acl_keeps_its_streams_apart_and_ships_one():
    recipe = ACL(attack=ATTACK)
    system, batch, now = system_and_batch(recipe)
    recipe.loss(system, batch, now)
    norms = [m for m in system.model.modules() if type(m).__name__ == "BranchNorm"]
    clean, adversarial = (norms[0].branches[name].running_mean for name in ("clean", "adversarial"))
    assert not torch.equal(clean, adversarial)
    kept = recipe.finish(system)
    assert any(torch.equal(b, adversarial) for b in kept.buffers() if b.shape == adversarial.shape)
    other = ACL(attack=ATTACK, ship="clean")
    system, batch, now = system_and_batch(other)
    other.loss(system, batch, now)
    norm = next(m for m in system.model.modules() if type(m).__name__ == "BranchNorm")
    clean = norm.branches["clean"].running_mean
    assert not torch.equal(clean, norm.branches["adversarial"].running_mean)
    assert any(torch.equal(b, clean) for b in other.finish(system).buffers() if b.shape == clean.shape)
    with pytest.raises(BadInput, match="batch norm"):
        recipe.setup(cnn(norm=False), images(), Rows.count(0, 24))
    ACL(attack=ATTACK, branches="shared").setup(cnn(norm=False), images(), Rows.count(0, 24))


def test_an_attack_without_reach_leaves_the_views():
    recipe = ACL(attack="pgd(linf(1e-9), steps=1)", branches="shared")
    _, batch, _ = system_and_batch(recipe)
    assert torch.allclose(batch.extra["adversarial"], batch.extra["views"], atol=1e-6)


def test_the_objective_of_instances_is_coupled():
    pairs = two_views(3)
    z = Rows.count(0, 6).normal((4,), "z")
    seen: object = type("Seen", (), {"logits": z})
    assert torch.equal(Instances(pairs, 0.5)(seen, pairs, {}), nt_xent(z, pairs, 0.5))  # type: ignore[arg-type]
    assert changed(parse(ATTACK, "attack"), objective=Instances(pairs, 0.5)).objective.coupled


class Clips(nn.Module):
    """A tiny network for clips [N, C, T, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.body(x))


def test_clips_are_contrasted_like_images():
    encoder = encoder_of(Clips())
    clips = Rows.count(0, 6).uniform((3, 4, 8, 8), "clips")
    assert encoder(clips).shape == (6, 4)
    recipe = Contrastive(dim=8)
    views = recipe.pair(Batch(clips), step(6))
    assert views.shape == (12, 3, 4, 8, 8)
    made = recipe.projector(encoder)
    loss = nt_xent(made(encoder.features(views)), two_views(6), 0.5).mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_an_encoder_gives_unit_vectors_of_the_features_before_the_head():
    model = cnn().eval()
    x = images().batch(range(4)).x
    encoder = encoder_of(model)
    assert torch.allclose(encoder.features(x), model[:-1](x))
    assert torch.allclose(encoder(x), F.normalize(model[:-1](x), dim=1))
    again = encoder_of(encoder)
    assert again is not encoder
    assert same(again, encoder)
    with pytest.raises(BadInput, match="features"):
        FeatureEncoder(nn.Identity(), 8)(x)


def test_the_last_epoch_ships_whatever_recall_shows():
    fitted = Trainer(**QUICK).fit(Contrastive(), cnn(), images(), images(12))
    assert fitted.best_epoch is None
    assert same(fitted.model, fitted.last)
    assert all("recall_at_1" in row for row in fitted.history)
    fitted = Trainer(**QUICK).fit(Contrastive(), cnn(), unlabelled(), unlabelled(12))
    assert not any("recall_at_1" in row for row in fitted.history)


def test_a_collapse_is_said():
    assert "collapsed" in Contrastive().remark([{"uniformity": -0.01}] * 10)
    assert Contrastive().remark([{"uniformity": -0.01}]) == ""  # where all begin
    assert "nearly one line" in Contrastive().remark([{"uniformity": -0.7, "effective_rank": 1.1}] * 10)
    assert Contrastive().remark([{"uniformity": -2.0, "effective_rank": 1.8}] * 10) == ""


@pytest.mark.parametrize(
    "text",
    [
        "contrastive(tau=0)", "contrastive(dim=0)", "contrastive('best')", "contrastive(q_max=1)",
        "contrastive(ramp=(0.6, 0.2))", "contrastive(hidden=0)", "simsiam(dim=0)", "acl('supcon')", "acl('attraction')",
        "acl('debiased')", "contrastive('debiased', tau_plus=1)", "advcl('supcon')", "advcl(radius=0)", "advcl(clusters=())",
        "advcl(clusters=(2, 1))", "advcl(ce_weight=-1)",
    ],
)  # fmt: skip
def test_bad_settings_are_refused(text):
    with pytest.raises(BadInput):
        parse(text, "recipe")


def test_views_are_a_value():
    assert parse(repr(Contrastive("afnc", views=["intensity(0.5)"])), "recipe").views[0].low == 0.5
    assert Contrastive().views == VIEWS
