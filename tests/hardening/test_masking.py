"""Is a hardened model robust, or does it hide its gradients? Trainings that mask are seen to do so; a sound one is not.

The whole demonstration over three seeds, whose numbers docs/harden.md quotes, is marked slow.
"""

import pytest

import withstand as ws

RECIPES = {
    "collapsed": ("zoo:digits_bn_cnn", "fast_at(linf(0.4), alpha=1.0, start=False)", {"epochs": 30}),
    "sound": ("zoo:digits_bn_cnn", "pgd_at(attack=pgd(linf(0.15), steps=7))", {"epochs": 16}),
    "plain": ("zoo:digits_cnn", "standard", {"epochs": 16}),
    "smoothed": ("zoo:digits_cnn", "standard", {"epochs": 16, "label_smoothing": 0.5}),
    "distilled": ("zoo:digits_cnn", "distillation(temperature=100)", {"epochs": 16}),
}
SETTINGS = {"batch": 64, "optimizer": "adam(3e-3)", "schedule": "constant", "accelerator": "cpu", "validation": None}


def hardened(name, seed=0, **changes):
    model, recipe, settings = RECIPES[name]
    return ws.harden(model, "digits", recipe, seed=seed, **SETTINGS | settings | changes)


def judged(model, eps, examples=64, attacks=("fgsm()", "pgd()")):
    """(accuracy under each attack, flags that are no pass by name)"""
    checks = [f"robust(linf({eps}), attack={attack}, examples=250)" for attack in attacks]
    card = ws.audit({"m": model}, ws.load_data("digits"), checks=[*checks, f"trust(linf({eps}), examples={examples})"])
    assert all(result.status == "done" for result in card.results)
    flags = {flag.name: flag for flag in card.of("trust")[0].flags if flag.level != "pass"}
    return [m.value for _, m in card.metrics("robust_accuracy")], flags


def test_training_on_single_steps_until_it_collapses_is_flagged_and_names_what_it_hides():
    (one_step, many), flags = judged(hardened("collapsed"), 0.4)
    assert one_step > 0.3
    assert many < 0.05
    flag = flags["single step overshoots"]
    assert flag.evidence["standing_fgsm"] > flag.evidence["standing_pgd"] + 15
    assert "catastrophic overfitting" in flag.explanation


def test_a_sound_twin_is_not_flagged():
    recipe = "pgd_at(attack=pgd(linf(0.15), steps=3))"
    model = ws.harden("zoo:digits_bn_cnn", "digits", recipe, **SETTINGS | {"epochs": 8})
    (one_step, many), flags = judged(model, 0.15)
    assert many > 0.55
    assert one_step - many < 0.15
    assert flags == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_collapse_is_flagged_over_seeds_and_no_flag_rises_on_sound_training(seed):
    (one_step, many), flags = judged(hardened("collapsed", seed), 0.4, 256)
    assert one_step > 0.3
    assert many < 0.05
    assert flags["single step overshoots"].level == "fail"
    (_, many), flags = judged(hardened("sound", seed), 0.15, 256)
    assert many > 0.65
    assert flags == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_that_grew_by_distillation_are_flagged_and_the_margin_breaks_them(seed):
    attacks = ("pgd(random_start=False)", "pgd(random_start=False, objective=margin)")
    (climbing, margin), flags = judged(hardened("distilled", seed), 0.15, 256, attacks)
    assert climbing > margin + 0.3
    assert flags["zero gradients"].level == flags["saturated loss"].level == "fail"
    _, flags = judged(hardened("plain", seed), 0.15, 256)
    assert flags == {}
