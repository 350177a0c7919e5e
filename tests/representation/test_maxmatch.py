"""MaxMatch: its loss in closed form, its steps against a bare loop, and what it refuses."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.hardening.conftest import cnn, images
from tests.training.conftest import Points, net, same
from withstand.data.arrays import from_arrays
from withstand.data.series import from_series
from withstand.errors import BadInput
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import parse
from withstand.representation.maxmatch import FixMatch, MaxMatch, Supervised, maxmatch_loss
from withstand.training import Step, Trainer
from withstand.training.augment import CropFlip, Cutout, RandAugment

K, N, C = 3, 40, 5
SMALL = "weak=crop_flip(1), strong=[affine, add_noise(0.1), cutout(0.375)]"
QUICK = {"epochs": 2, "sampler": "labelled_and_not(3)", "batch": 8, "optimizer": "sgd(0.05)", "accelerator": "cpu"}


@pytest.fixture
def logits():
    draws = Rows.count(0, N)
    weak = draws.normal((C,), "weak", dtype=torch.float64) * 3
    strong = draws.normal((K, C), "strong", dtype=torch.float64).transpose(0, 1) * 2
    return weak.requires_grad_(), strong.contiguous().requires_grad_()


def naive(weak, strong, tau, reduce):
    """Example by example."""
    total = 0.0
    for i in range(weak.shape[0]):
        p = weak[i].detach().softmax(0)
        if p.max() < tau:
            continue
        each = torch.stack([-z[i].log_softmax(0)[p.argmax()] for z in strong])
        total = total + (each.max() if reduce == "max" else each.mean())
    return total / weak.shape[0]


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_the_loss_is_that_of_a_loop_over_examples(logits, reduce):
    weak, strong = logits
    found = maxmatch_loss(weak, strong, 0.8, reduce)
    assert 0.1 < found.mask.double().mean() < 0.9
    theirs = naive(weak, strong, 0.8, reduce)
    assert torch.allclose(found.loss, theirs, rtol=1e-12)
    ours = torch.autograd.grad(found.loss, strong)[0]
    assert torch.allclose(ours, torch.autograd.grad(theirs, strong)[0], atol=1e-14)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_one_variant_is_fixmatch(logits, reduce):
    weak, strong = logits
    ours = maxmatch_loss(weak, strong[:1], 0.7, reduce).loss
    p, label = weak.detach().softmax(1).max(1)
    theirs = (F.cross_entropy(strong[0], label, reduction="none") * (p >= 0.7)).mean()
    assert torch.equal(ours, theirs)
    a, b = (torch.autograd.grad(loss, strong)[0] for loss in (ours, theirs))
    assert torch.equal(a, b)


def test_the_worst_is_above_the_mean_for_every_example_and_grows_with_another_variant(logits):
    weak, strong = logits
    losses = [
        torch.stack([maxmatch_loss(weak[i : i + 1], part[:, i : i + 1], 0, how).loss for i in range(N)])
        for part, how in ((strong, "max"), (strong, "mean"), (strong[:2], "max"))
    ]
    each = F.cross_entropy(strong.flatten(0, 1), weak.argmax(1).repeat(K), reduction="none").view(K, N)
    assert (losses[0] >= losses[1]).all()
    assert (losses[1] >= each.min(0).values).all()
    assert (losses[0] >= losses[2]).all()
    assert (losses[0] > losses[2]).any()


def test_no_gradient_reaches_weak_logits_unsure_examples_or_the_better_variants(logits):
    weak, strong = logits
    found = maxmatch_loss(weak, strong, 0.8)
    found.loss.backward()
    assert weak.grad is None
    moved = (strong.grad != 0).any(2)
    expected = F.one_hot(found.argmax, K).bool().T & found.mask
    assert torch.equal(moved, expected)


def test_tau_of_zero_takes_all_pseudo_labels_and_above_one_none(logits):
    weak, strong = logits
    assert maxmatch_loss(weak, strong, 0).mask.all()
    none = maxmatch_loss(weak * 1e6, strong, 1.0001)
    assert not none.mask.any()
    assert none.loss == 0
    assert torch.equal(torch.autograd.grad(none.loss, strong)[0], torch.zeros_like(strong))


def test_a_threshold_just_above_one_is_not_rounded_to_it(logits):
    weak, strong = logits
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        sure = F.one_hot(weak.argmax(1), C).to(dtype) * 1000
        assert maxmatch_loss(sure, strong.to(dtype), 1).mask.all()
        for tau in (1 + 1e-9, 1.0001):
            assert not maxmatch_loss(sure, strong.to(dtype), tau).mask.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_compared_in_single(dtype):
    rows = Rows.count(0, 2000)
    weak = rows.normal((C,), "weak").mul(2).to(dtype)
    strong = rows.normal((K, C), "strong").transpose(0, 1).to(dtype)
    half, single = maxmatch_loss(weak, strong, 0.95), maxmatch_loss(weak.float(), strong.float(), 0.95)
    assert torch.equal(half.mask, single.mask)
    assert torch.equal(half.argmax, single.argmax)
    assert torch.equal(half.loss, single.loss)


def test_the_order_of_the_variants_does_not_matter(logits):
    weak, strong = logits
    found, turned = maxmatch_loss(weak, strong, 0.5), maxmatch_loss(weak, strong[[2, 0, 1]], 0.5)
    assert torch.equal(found.loss, turned.loss)
    assert torch.equal(torch.tensor([2, 0, 1])[turned.argmax], found.argmax)


def test_equal_variants_are_fixmatch_on_one_of_them(logits):
    weak, strong = logits
    alike = strong[:1].detach().expand(K, N, C).clone().requires_grad_()
    loss, single = maxmatch_loss(weak, alike, 0.5).loss, maxmatch_loss(weak, strong[:1], 0.5).loss
    assert torch.equal(loss, single)
    assert torch.equal(torch.autograd.grad(loss, alike)[0].sum(0), torch.autograd.grad(single, strong)[0][0])


@pytest.mark.parametrize(
    ("weak", "strong", "tau", "match"),
    [
        ((4, 3), (2, 4, 4), 0.9, "weak .4, 3. and strong .2, 4, 4."),
        ((4, 3), (4, 3), 0.9, "K, N, C"),
        ((4, 3), (0, 4, 3), 0.9, "N, K >= 1"),
        ((0, 3), (2, 0, 3), 0.9, "N, K >= 1"),
        ((4, 3), (2, 4, 3), -0.1, "tau"),
        ((4, 3), (2, 4, 3), 1.1, "tau"),
        ((4, 3), (2, 4, 3), float("nan"), "tau"),
    ],
)
def test_what_does_not_fit_is_refused(weak, strong, tau, match):
    with pytest.raises(BadInput, match=match):
        maxmatch_loss(torch.zeros(weak), torch.zeros(strong), tau)


@pytest.mark.parametrize(
    "text",
    [
        "maxmatch(variants=0)", "maxmatch(tau=1.1)", "maxmatch(tau=-1)", "maxmatch(lambda_u=-1)", "maxmatch(reduce=min)",
        "maxmatch(k_schedule=(.5, .5))", "maxmatch(k_schedule=(.5, .3, .1))", "maxmatch(k_schedule=(1.5, -.5, 0))",
        "fixmatch(variants=2)",
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(text):
    with pytest.raises(BadInput):
        parse(text, "recipe")


# Steps ---------------------------------------------------------------------------------------------------


def a_step(at=0, n=8, box=(0.0, 1.0), world=1, rank=0):
    rows = Rows.count(1, n)
    return Step(step=at, steps=9, epoch=0, epochs=1, seed=5, rows=rows, box=box, world=world, rank=rank)


def a_batch():
    data = images(8).batch(range(8))
    return replace(data, y=torch.tensor([0, 1, -1, -1, -1, -1, -1, -1]), extra={"truth": data.y})


def crafted(recipe, step=None):
    model = cnn().train()
    system = recipe.setup(model, images(8), Rows.count(0, 8)).train()
    with torch.no_grad():
        return system, recipe.craft(system, a_batch(), step or a_step())


def test_a_step_is_one_pass_over_all_views_and_equals_the_loop_by_hand():
    recipe = parse(f"maxmatch({SMALL}, tau=0.34, lambda_u=0.7)", "recipe")
    system, batch = crafted(recipe)
    assert len(batch) == 2 + 6 * 4
    assert batch.extra["view"].tolist() == [0] * 2 + [v for v in range(1, 5) for _ in range(6)]
    passes = []
    system.model.register_forward_hook(lambda m, args, out: passes.append((m.training, len(args[0]), out)))
    torch.manual_seed(0)
    step = replace(a_step(), smoothing=0.1)
    loss = recipe.loss(system, batch, step)
    ((training, count, z),) = passes
    assert training
    assert count == 26
    by_hand = F.cross_entropy(z[:2], batch.y[:2], label_smoothing=0.1)  # of labels, not of pseudo-labels
    p, label = z[2:8].detach().softmax(1).max(1)
    assert (p >= 0.34).any()
    each = torch.stack([F.cross_entropy(part, label, reduction="none") for part in z[8:].split(6)])
    by_hand = by_hand + 0.7 * (each.max(0).values * (p >= 0.34)).sum() / 6
    assert torch.allclose(loss, by_hand)
    said = {name: float(value) for name, value in step.said.items()}
    assert said["loss_labelled"] + 0.7 * said["loss_unlabelled"] == pytest.approx(float(loss.detach()))
    right = label == batch.extra["truth"][2:8]
    assert said["mask_rate"] == pytest.approx(float((p >= 0.34).float().mean()))
    assert said["pseudo_label_accuracy"] == pytest.approx(float(right.float().mean()))
    assert said["wrong_and_sure"] == pytest.approx(float(((p >= 0.34) & ~right).float().mean()))
    assert sum(said[f"worst_is_{k}"] for k in (1, 2, 3)) == pytest.approx(said["mask_rate"])


def test_a_training_is_that_of_a_bare_loop(monkeypatch):
    """With Nesterov momentum, weight decay as a term of the loss, the schedule and the average written out."""
    recipe, plain = parse(f"maxmatch({SMALL}, tau=0.4)", "recipe"), cnn()
    plain[-2].p = 0.0  # dropout
    made, craft = [], MaxMatch.craft
    monkeypatch.setattr(MaxMatch, "craft", lambda *given: made.append(craft(*given)) or made[-1])
    settings = {"optimizer": "sgd(0.05, weight_decay=0.01, nesterov=True)", "schedule": "cosine_arc"}
    fitted = Trainer(**QUICK | settings, averaging="ema(0.9)").fit(recipe, plain, images(96)).last

    net, moved = copy.deepcopy(plain).train(), {}
    mean = {name: t.clone().double() for name, t in net.state_dict().items()}
    for t, batch in enumerate(made):
        z = net(batch.x)
        p, label = z[2:8].detach().softmax(1).max(1)
        each = torch.stack([F.cross_entropy(part, label, reduction="none") for part in z[8:].split(6)])
        decay = sum((w**2).sum() for w in net.parameters() if w.dim() > 1) / 2
        loss = F.cross_entropy(z[:2], batch.y[:2]) + (each.amax(0) * (p >= 0.4)).mean() + 0.01 * decay
        lr, d = 0.05 * math.cos(7 * math.pi * t / (16 * len(made))), min(0.9, (2 + t) / (11 + t))
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for i, (w, slope) in enumerate(zip(net.parameters(), slopes, strict=True)):
                moved[i] = 0.9 * moved.get(i, 0) + slope
                w -= lr * (slope + 0.9 * moved[i])
        mean = {name: d * mean[name] + (1 - d) * now for name, now in net.state_dict().items()}
    floats = {name: now for name, now in fitted.state_dict().items() if now.is_floating_point()}
    assert len(made) == 32
    for name, now in floats.items():
        assert torch.allclose(now.double(), mean[name], atol=2e-5), name


def test_the_labels_of_the_pool_are_not_learned_from():
    data = images(24)
    x, y = data.batch(range(24)).x.numpy(), np.arange(24) % 3
    pools = [from_arrays(x, labels, name="pool") for labels in (y, np.roll(y, 1), None)]
    recipe = parse(f"maxmatch({SMALL}, tau=0.4)", "recipe")
    one, *others = (
        Trainer(**QUICK).fit(replace(recipe, unlabelled=pool), cnn(), data.subset([0, 1, 2, 3])).last for pool in pools
    )
    assert all(same(one, other) for other in others)


def test_one_variant_trains_as_fixmatch_does_bit_for_bit():
    one, other = (
        Trainer(**QUICK).fit(parse(f"{text}{SMALL}, tau=0.4)", "recipe"), cnn(), images()).last
        for text in ("maxmatch(variants=1, ", "fixmatch(")
    )
    assert same(one, other)
    three = Trainer(**QUICK).fit(parse(f"maxmatch({SMALL}, tau=0.4)", "recipe"), cnn(), images()).last
    mean = Trainer(**QUICK).fit(parse(f"maxmatch({SMALL}, tau=0.4, reduce='mean')", "recipe"), cnn(), images()).last
    assert not same(one, three)
    assert not same(three, mean)


def test_without_weight_the_unlabelled_move_batch_norm_alone():
    """... and the supervised recipe sees the same labelled examples in the same batches."""
    weight = "maxmatch(weak=add_noise(0.1), strong=add_noise(0.3), lambda_u=0.0, labels=4)"
    plain = net()
    ours, theirs = (
        Trainer(**QUICK).fit(parse(text, "recipe"), plain, Points()).last
        for text in (weight, "supervised(weak=add_noise(0.1), labels=4)")
    )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_views_differ_and_so_do_examples_that_come_twice_and_steps():
    recipe = MaxMatch(strong="add_noise(0.1)", weak="add_noise(0.1)")  # alike, so that equal draws were equal views
    system = recipe.setup(cnn(), images(8), Rows.count(0, 8))
    x = torch.full((8, 1, 8, 8), 0.5)
    batch = Batch(x, torch.tensor([0, 0] + [-1] * 6), torch.zeros(8, dtype=torch.long))
    made = recipe.craft(system, batch, a_step()).x
    assert len(made.flatten(1).unique(dim=0)) == len(made) == 26
    assert not torch.equal(made, recipe.craft(system, batch, a_step(at=1)).x)
    assert torch.equal(made, recipe.craft(system, batch, a_step()).x)
    halves = [recipe.craft(system, batch.index(torch.arange(r, 8, 2)), a_step(world=2, rank=r)).x for r in range(2)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), made)  # two processes draw what one draws


def test_views_are_made_in_full_precision():
    recipe = parse(f"maxmatch({SMALL})", "recipe")
    full = crafted(recipe)[1].x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crafted(recipe)[1].x, full)


def test_the_same_augmentation_twice_has_draws_of_its_own():
    recipe = MaxMatch(strong=["add_noise(0.01)", "add_noise(0.01)"], weak="add_noise(0.1)")
    system = recipe.setup(cnn(), images(8), Rows.count(0, 8))
    x = torch.full((8, 1, 8, 8), 0.5)
    made = recipe.craft(system, Batch(x, torch.tensor([0] * 2 + [-1] * 6)), a_step()).x
    assert (made[8:] - 0.5).std() == pytest.approx(0.01 * 2**0.5, rel=0.05)


def test_a_schedule_of_variants_draws_how_many():
    recipe = MaxMatch(k_schedule=(0.5, 0.3, 0.2))
    counts = np.bincount([recipe.plan(a_step(at))[0] for at in range(2000)], minlength=4) / 2000
    assert counts[1:] == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    assert recipe.plan(a_step(3, rank=0)) == recipe.plan(a_step(3, world=2, rank=1))
    only = parse(f"maxmatch({SMALL}, variants=2, k_schedule=(1, 0))", "recipe")
    one = parse(f"maxmatch({SMALL}, variants=1)", "recipe")
    assert same(*(Trainer(**QUICK).fit(r, cnn(), images()).last for r in (only, one)))


def test_steps_of_a_single_variant_count_as_learned_from_it():
    recipe = parse(f"maxmatch({SMALL}, tau=0, k_schedule=(.5, .3, .2))", "recipe")
    row = Trainer(**QUICK).fit(recipe, cnn(), images(96)).history[-1]
    assert row["mask_rate"] == 1
    shares = [row[f"worst_is_{k}"] for k in (1, 2, 3)]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > 0.5


def test_the_defaults_are_the_official_ones():
    assert MaxMatch.defaults == {
        "sampler": "labelled_and_not(7)", "batch": 512, "schedule": "cosine_arc", "averaging": "ema(0.999)",
        "optimizer": "sgd(0.03, weight_decay=5e-4, nesterov=True)",
    }  # fmt: skip
    recipe = MaxMatch()
    assert (recipe.variants, recipe.tau, recipe.lambda_u, recipe.reduce) == (3, 0.95, 1, "max")
    assert recipe.k_schedule is None
    assert recipe.weak == (CropFlip(4),)
    assert recipe.strong == (CropFlip(4), RandAugment(2, share=0.5), Cutout(0.5))


def test_weight_decay_moves_kernels_only():
    recipe = Supervised()
    system = recipe.setup(cnn(), images(), Rows.count(0, 24))
    main = recipe.optimizers(system, lambda parts: torch.optim.SGD(parts, 0.1, weight_decay=0.5))["main"]
    kernels, rest = main.param_groups
    assert kernels["weight_decay"] == 0.5
    assert rest["weight_decay"] == 0
    assert {p.dim() for p in kernels["params"]} == {2, 4}
    assert {p.dim() for p in rest["params"]} == {1}
    assert sum(len(g["params"]) for g in main.param_groups) == len(list(system.parameters()))


def test_it_learns_from_few_labels_and_says_how():
    recipe = parse("fixmatch(labels=2, weak=add_noise(0.05), strong=[add_noise(0.2), cutout(0.3)], tau=0.6)", "recipe")
    trainer = Trainer(**QUICK | {"epochs": 15, "batch": 16, "averaging": "ema(0.9)", "schedule": "cosine_arc"})
    fitted = trainer.fit(recipe, cnn(), images(96), images(24))
    first, last = fitted.history[0], fitted.history[-1]
    assert last["mask_rate"] > first["mask_rate"]
    assert last["pseudo_label_accuracy"] > 0.8
    assert last["accuracy"] > 0.8
    assert {"loss_labelled", "loss_unlabelled", "wrong_and_sure"} <= last.keys()
    assert "worst_is_1" not in last


def test_a_threshold_that_nothing_reaches_is_told_once():
    rows = [{"mask_rate": 0.0}] * 7
    recipe = FixMatch(tau=0.99)
    assert [bool(recipe.remark(rows[:n])) for n in range(1, 8)] == [n == 5 for n in range(1, 8)]
    assert "tau=0.99" in recipe.remark(rows[:5])
    assert not recipe.remark([*rows[:4], {"mask_rate": 0.1}])
    assert not FixMatch(tau=1.0001).remark(rows[:5])


def test_series_with_augmentations_of_their_own():
    x = Rows.count(0, 24).normal((2, 20), "series", dtype=torch.float64).numpy()
    data = from_series(x, np.arange(24) % 2)
    recipe = parse("maxmatch([add_noise(0.3), cutout(0.2)], weak=add_noise(0.05), labels=3)", "recipe")
    model = torch.nn.Sequential(
        torch.nn.Conv1d(2, 4, 3), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    assert Trainer(**QUICK).fit(recipe, model, data).steps == 8
    with pytest.raises(BadInput, match=r"crop_flip.*images"):
        Trainer(**QUICK).fit(MaxMatch(), model, data)


def test_really_unlabelled_examples(tmp_path):
    from PIL import Image

    for i in range(20):
        shade = np.full((10, 10), 10 * i, np.uint8)
        Image.fromarray(shade).convert("RGB").save(tmp_path / f"{i}.png")
    recipe = replace(FixMatch(weak="add_noise(0.1)", strong="add_noise(0.2)"), unlabelled=str(tmp_path))
    made = recipe.examples(cnn(), images(), 0)
    assert len(made) == 24 + 20
    assert made.batch([40]).x.shape == (1, 1, 8, 8)  # in the shape of the labelled ones
    fitted = Trainer(**QUICK).fit(recipe, cnn(), images())
    assert "mask_rate" in fitted.history[-1]
    assert "pseudo_label_accuracy" not in fitted.history[-1]
    given = replace(recipe, unlabelled=images(9))
    assert len(given.examples(cnn(), images(), 0)) == 24 + 9


def test_the_split_of_labels_is_the_seeds():
    splits = [MaxMatch(labels=2).examples(cnn(), images(), seed).chosen.tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_batches_of_one_kind_are_refused():
    recipe = MaxMatch()
    system = recipe.setup(cnn(), images(8), Rows.count(0, 8))
    for y in (torch.zeros(8, dtype=torch.long), torch.full((8,), -1), None, torch.zeros(8, 3)):
        with pytest.raises(BadInput, match="labelled_and_not"):
            recipe.craft(system, Batch(torch.rand(8, 1, 8, 8), y), a_step())


def test_labels_cannot_be_mixed_into_views():
    with pytest.raises(BadInput, match="labels"):
        crafted(MaxMatch(strong="mixup"))
    with pytest.raises(BadInput, match="unlabelled examples"):
        Trainer(**QUICK, augment="mixup").fit(parse(f"maxmatch({SMALL})", "recipe"), cnn(), images())
