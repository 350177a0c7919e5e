"""Parts that FixMatch and MaxMatch may have: CTAugment, which learns as they train, and a teacher by moving average."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.hardening.conftest import cnn, images
from tests.representation.test_maxmatch import QUICK, a_batch, a_step
from tests.training.conftest import same
from withstand.errors import BadInput
from withstand.random import Rows
from withstand.registry import parse
from withstand.representation import maxmatch
from withstand.representation.maxmatch import FixMatch, MaxMatch, vary
from withstand.training import Trainer
from withstand.training.augment import CTAugment
from withstand.training.averaging import EMA, Average

LEARNING = "weak=crop_flip(1), strong=[crop_flip(1), ctaugment(decay=0.8), cutout(0.375)], tau=0.4"
TAUGHT = "weak=crop_flip(1), strong=[affine, add_noise(0.1)], tau=0.34, teacher=eman"
AVERAGED = QUICK | {"averaging": "ema(0.9)"}


def begun(text):
    recipe = parse(text, "recipe")
    system = recipe.setup(cnn(), images(8), Rows.count(0, 8)).train()
    average = Average(EMA(0.9), system)
    with torch.no_grad():
        for name, t in average.state.items():  # other weights than the system's own
            if t.is_floating_point() and "rates" not in name:
                t.mul_(1.5)
    return recipe, system, average


def step_of(system, average, at=0):
    return replace(a_step(at), averaged=lambda x: average.run(system, x))


# The averaged weights ------------------------------------------------------------------------------------


def test_a_pass_of_the_average_is_that_of_a_model_that_wears_it_in_eval_mode():
    _, system, average = begun("fixmatch")
    x = images(8).batch(range(8)).x
    before = {name: t.clone() for name, t in system.state_dict().items()}
    found = average.run(system, x)
    assert system.training
    assert all(torch.equal(t, before[name]) for name, t in system.state_dict().items())
    twin = copy.deepcopy(system)
    with average.worn_by(twin), torch.no_grad():
        assert torch.equal(found, twin.eval()(x))
    assert not found.requires_grad
    assert not torch.allclose(found, system.eval()(x), atol=1e-3)


def test_the_trainer_hands_its_average_to_the_recipe(monkeypatch):
    made = []

    class Watching(FixMatch):
        def craft(self, system, batch, step):
            made.append(step.averaged)
            return super().craft(system, batch, step)

    recipe = Watching(weak="add_noise(0.1)", strong="add_noise(0.3)")
    Trainer(**QUICK).fit(recipe, cnn(), images())
    assert set(made) == {None}
    made.clear()
    Trainer(**AVERAGED).fit(recipe, cnn(), images())
    assert made
    assert None not in made


# A teacher by moving average -----------------------------------------------------------------------------


def test_pseudo_labels_are_the_averages_and_only_the_rest_passes_the_network():
    recipe, system, average = begun(f"maxmatch({TAUGHT}, lambda_u=0.7)")
    step = step_of(system, average)
    batch = recipe.craft(system, a_batch(), step)
    weak = batch.x[batch.extra["view"] == 1]
    passes = []
    system.model.register_forward_hook(lambda m, args, out: passes.append((m.training, args[0], out)))
    loss = recipe.loss(system, batch, step)
    ((training, x, z),) = passes
    assert training
    assert torch.equal(x, torch.cat([batch.x[:2], batch.x[8:]]))
    twin = copy.deepcopy(system)
    with average.worn_by(twin), torch.no_grad():
        p, label = twin.eval()(weak).softmax(1).max(1)
    assert (p >= 0.34).sum() > 0
    each = torch.stack([F.cross_entropy(part, label, reduction="none") for part in z[2:].split(6)])
    by_hand = F.cross_entropy(z[:2], batch.y[:2]) + 0.7 * (each.max(0).values * (p >= 0.34)).sum() / 6
    assert torch.allclose(loss, by_hand)
    right = label == batch.extra["truth"][2:8]
    assert float(step.said["pseudo_label_accuracy"]) == pytest.approx(float(right.float().mean()))


def test_a_training_with_it_is_that_of_a_bare_loop(monkeypatch):
    recipe, plain = parse(f"fixmatch({TAUGHT})", "recipe"), cnn()
    plain[-2].p = 0.0  # dropout
    made, craft = [], FixMatch.craft
    monkeypatch.setattr(FixMatch, "craft", lambda *given: made.append(craft(*given)) or made[-1])
    settings = {"optimizer": "sgd(0.05, momentum=0, weight_decay=0)", "schedule": "constant"}
    fitted = Trainer(**AVERAGED | settings).fit(recipe, plain, images(96)).last
    net, mean = copy.deepcopy(plain).train(), copy.deepcopy(plain).eval()
    for t, batch in enumerate(made):
        labelled, weak, strong = (batch.x[batch.extra["view"] == i] for i in range(3))
        with torch.no_grad():
            p, label = mean(weak).softmax(1).max(1)
        z = net(torch.cat([labelled, strong]))
        loss = (
            F.cross_entropy(z[:2], batch.y[:2]) + (F.cross_entropy(z[2:], label, reduction="none") * (p >= 0.34)).mean()
        )
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        d = min(0.9, (2 + t) / (11 + t))
        with torch.no_grad():
            for w, slope in zip(net.parameters(), slopes, strict=True):
                w -= 0.05 * slope
            for a, b in zip(mean.state_dict().values(), net.state_dict().values(), strict=True):
                a.copy_(a * d + b * (1 - d) if a.is_floating_point() else b)
    assert len(made) == 32
    for a, b in zip(fitted.state_dict().values(), mean.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_one_variant_is_fixmatch_with_it_too():
    one, other = (
        Trainer(**AVERAGED).fit(parse(f"{text}{TAUGHT})", "recipe"), cnn(), images()).last
        for text in ("maxmatch(variants=1, ", "fixmatch(")
    )
    assert same(one, other)
    itself = parse(f"fixmatch({TAUGHT.replace('eman', 'self')})", "recipe")
    assert not same(one, Trainer(**AVERAGED).fit(itself, cnn(), images()).last)


def test_a_teacher_needs_an_average():
    recipe = parse(f"fixmatch({TAUGHT})", "recipe")
    with pytest.raises(BadInput, match=r"eman.*averaging='ema"):
        Trainer(**QUICK).fit(recipe, cnn(), images())
    with pytest.raises(BadInput):
        parse("fixmatch(teacher=other)", "recipe")


# CTAugment -----------------------------------------------------------------------------------------------


def test_it_learns_from_the_labelled_after_the_views_are_drawn():
    recipe, system, average = begun(f"fixmatch({LEARNING})")
    augment = recipe.strong[1]
    rates = copy.deepcopy(system.rates["1"])
    step = step_of(system, average)
    batch = recipe.craft(system, a_batch(), step)
    strong = [recipe.strong[0], augment.bound(rates), recipe.strong[2]]
    data = a_batch()
    (by_hand,) = vary(data.index(data.y < 0), strong, a_step(), "strong", 3)
    assert torch.equal(batch.x[batch.extra["view"] == 2], by_hand.x)

    seen = []
    probe = CTAugment.probe

    class Spy(CTAugment):
        def probe(self, batch, step):
            seen.append((batch.x, probe(self, batch, step)))
            return seen[-1][1]

    again, system, average = begun(f"fixmatch({LEARNING})")
    again = replace(again, strong=(again.strong[0], Spy(decay=0.8), again.strong[2]))
    batch = again.craft(system, a_batch(), step_of(system, average))
    ((x, found),) = seen
    assert torch.equal(x, batch.x[:2])  # the weak versions that are learned from
    p = average.run(system, found.x).softmax(1)[torch.arange(2), batch.y[:2]]
    augment.learn(rates, found.operation, found.bin, p)
    assert torch.equal(system.rates["1"].values, rates.values)
    assert (rates.values < 1).any()
    assert float(step.said["probe"]) == pytest.approx(float(p.mean()))
    assert float(step.said["open_bins"]) == pytest.approx(float((augment.chances(rates) > 0).sum()) / 298)


def test_what_the_processes_found_is_learned_in_the_order_in_which_one_would_have_it(monkeypatch):
    learned = []
    monkeypatch.setattr(maxmatch, "gathered", lambda rows: torch.cat([rows, rows + 100]))  # as if from another
    monkeypatch.setattr(CTAugment, "learn", lambda self, rates, *found: learned.append(found))
    recipe, system, average = begun(f"fixmatch({LEARNING})")
    recipe.craft(system, a_batch(), replace(step_of(system, average), world=2))
    for rows in learned[0]:
        assert torch.equal(rows[1::2], rows[::2] + 100)


def test_without_an_average_the_network_judges_in_eval_mode():
    recipe, system, _ = begun(f"fixmatch({LEARNING})")
    modes = []
    system.model.register_forward_hook(lambda m, args, out: modes.append((m.training, len(args[0]))))
    recipe.craft(system, a_batch(), a_step())
    assert modes == [(False, 2)]
    assert system.model.training


def test_it_stops_and_goes_on_bit_for_bit(tmp_path):
    recipe, network = parse(f"maxmatch({LEARNING}, teacher=eman)", "recipe"), cnn()

    class Interrupted:
        def __getattr__(self, name):
            return getattr(recipe, name)

        def __repr__(self):
            return repr(recipe)

        def craft(self, system, batch, step):
            if step.step == 5:
                raise KeyboardInterrupt
            return recipe.craft(system, batch, step)

    trainer = Trainer(**AVERAGED | {"checkpoint_seconds": 0, "epochs": 1})
    whole = trainer.fit(recipe, network, images(96), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Interrupted(), network, images(96), out=tmp_path / "stopped")
    again = trainer.fit(recipe, network, images(96), out=tmp_path / "stopped")
    assert again.steps == whole.steps == 16
    assert same(again.last, whole.last)
    for row, other in zip(again.history, whole.history, strict=True):
        assert {k: v for k, v in row.items() if "second" not in k} == {
            k: v for k, v in other.items() if "second" not in k
        }
    states = [sorted((tmp_path / run / "checkpoints").glob("step-*"))[-1] for run in ("whole", "stopped")]
    one, other = ((state / "state.safetensors").read_bytes() for state in states)
    assert one == other  # the rates are in it


def test_it_learns_that_some_strengths_are_too_much():
    recipe = parse(
        "fixmatch(weak=add_noise(0.05), strong=[ctaugment(decay=0.7), cutout(0.3)], labels=8, tau=0.6)", "recipe"
    )
    trainer = Trainer(**AVERAGED | {"epochs": 12, "batch": 32})
    first, *_, last = trainer.fit(recipe, cnn(), images(96)).history
    assert last["probe"] > first["probe"]
    assert last["open_bins"] < 0.9


@pytest.mark.parametrize("text", ["fixmatch(weak=ctaugment)", "supervised(weak=ctaugment)"])
def test_it_is_refused_among_weak_augmentations(text):
    with pytest.raises(BadInput, match="ctaugment"):
        Trainer(**QUICK).fit(parse(text, "recipe"), cnn(), images())
    with pytest.raises(BadInput, match="ctaugment"):
        Trainer(**QUICK, augment="ctaugment").fit(MaxMatch(), cnn(), images())
