"""Every branch of the sentence."""

import pytest

from withstand.audit.scorecard import CheckResult, Scorecard
from withstand.audit.verdict import verdict
from withstand.protocols import Flag, Metric


def accuracy(name, value, width=0.02, **condition):
    return Metric(name, value, max(0, value - width / 2), min(1, value + width / 2), "wilson", 100, condition=condition)


def said(*metrics, flags=(), complete=True, shape=(3, 32, 32), check="robust"):
    result = CheckResult(
        "model", check, "Robust accuracy", "robust()", status="done", metrics=list(metrics), flags=list(flags)
    )
    return verdict(Scorecard("run", results=[result], data={"shape": shape}, complete=complete), "model")


CLEAN = accuracy("clean_accuracy", 0.9)


def robust(value, name="robust_accuracy", **condition):
    return accuracy(name, value, **{"threat": "linf", "eps": 8 / 255} | condition)


@pytest.mark.parametrize(
    ("left", "advice"),
    [
        (0.05, "do not use it where someone gains from fooling it"),
        (0.3, "someone who tries to fool it will mostly succeed"),
        (0.6, "takes away 33 % of what it gets right"),
        (0.8, "it withstands such changes"),
    ],
)
def test_the_advice_goes_by_what_is_kept(left, advice):
    text = said(CLEAN, robust(left))
    assert advice in text
    assert text.startswith("Right on 90 % of ordinary images")
    assert f"{left:.0%}".replace("%", " %") in text
    assert "each pixel may change by 8/255" in text
    assert (", and still" in text) == (left >= 0.8 * 0.9)


def test_without_clean_accuracy_there_is_nothing_to_say():
    assert said(robust(0.5)).startswith("Ordinary accuracy was not measured")


def test_without_an_attack_that_is_said():
    assert (
        said(CLEAN) == "Right on 90 % of ordinary images; how it fares when someone tries to fool it was not measured."
    )


def test_a_vote_is_judged_by_the_worst_attack_from_inside_or_outside():
    outside = robust(0.53, "black_box_accuracy", queries=200)
    rows = [accuracy("knn_accuracy", 0.9, attack="clean"), robust(0.1, "knn_accuracy", attack="worst")]
    assert "but on 10 % once each pixel may change by 8/255: someone" in said(CLEAN, *rows, outside)
    better = [rows[0], robust(0.7, "knn_accuracy", attack="worst")]
    assert "on 53 % once" in said(CLEAN, *better, outside)


def test_corruptions_are_told():
    assert "on 70 % of blurred, noisy" in said(CLEAN, accuracy("corruption_accuracy", 0.7), robust(0.3))


def test_wide_intervals_are_about_and_next_to_nothing_is_none():
    assert "about 30 %" in said(CLEAN, accuracy("robust_accuracy", 0.3, 0.2, threat="linf", eps=0.1))
    assert "but on none once" in said(CLEAN, robust(0.001))


def test_the_worst_number_counts_and_where_it_is_none_the_smallest_radius_that_does_it():
    assert "may change by 4 (L2)" in said(CLEAN, robust(0.5), robust(0.2, threat="l2", eps=4.0))
    curve = [robust(0.0, "curve_accuracy", eps=e) for e in (2 / 255, 4 / 255)]
    assert "change by 2/255" in said(CLEAN, robust(0.0), robust(0.4, "curve_accuracy", eps=1 / 255), *curve)


def test_black_box_numbers_serve_where_there_are_no_others():
    text = said(CLEAN, robust(0.4, "black_box_accuracy", queries=1000))
    assert "by someone who sees only its answers, 1,000 at most" in text
    assert "sees only" not in said(CLEAN, robust(0.4), robust(0.2, "black_box_accuracy", queries=1000))


def test_failed_trust_outweighs_the_number_and_warnings_are_counted():
    fail, warn = Flag("masked gradients", "fail", "why"), Flag("slow attack", "warn", "why")
    text = said(CLEAN, robust(0.8), flags=[fail, fail, warn])
    assert "cannot be trusted, since the attacks fail here (masked gradients)." in text
    assert "(2 warnings about how far to trust this)" in said(CLEAN, robust(0.8), flags=[warn, warn])
    assert "(1 warning about" in said(CLEAN, robust(0.8), flags=[warn])


def test_unfinished_work_is_said_first():
    assert said(CLEAN, complete=False).startswith("So far, with work left: right on")


def test_inputs_that_are_no_images_are_called_inputs():
    text = said(CLEAN, robust(0.5), shape=(7,))
    assert "ordinary inputs" in text
    assert "each value may change" in text
    assert "3 values of each input may change" in said(CLEAN, robust(0.5, threat="l0", eps=3), shape=(7,))


def test_a_detector_that_is_evaded_says_nothing_about_the_attacks():
    flag = Flag("detector fails against an attack that knows it", "warn", "it does")
    assert "warning" in said(CLEAN, robust(0.3), flags=[flag])
    assert "warning" not in said(CLEAN, robust(0.3), flags=[flag], check="detection-2")


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("recall_at_1", "Finds an item of the right class first for 80 % of ordinary images"),
        ("map", "Ranks what belongs together with a mean average precision of 80 % for ordinary images"),
    ],
)
def test_searches_are_judged_by_what_they_find(name, beginning):
    clean = accuracy(name, 0.8)
    text = said(clean, robust(0.2, name), robust(0.3, name))
    assert text.startswith(beginning)
    assert "20 % once each pixel may change by 8/255 in the query: someone who tries to fool it will mostly" in text
    assert said(clean) == f"{beginning}; how it fares when someone tries to fool it was not measured."
    assert "withstands such changes" in said(clean, robust(0.75, name))
    doubted = said(clean, robust(0.75, name), flags=[Flag("attack without effect", "fail", "nothing moved")])
    assert doubted.endswith("that last number cannot be trusted (attack without effect).")
    chance = accuracy("chance", 0.6)
    assert "someone who tries to fool it will mostly succeed" in said(clean, robust(0.65, name), chance)
    little = said(clean, robust(0.75, name), accuracy("chance", 0.77))
    assert little == f"{beginning}, where a random order has 77 %: there is little to attack."
    collapsed = said(clean, robust(0.8, name), flags=[Flag("collapsed", "fail", "all the same")])
    assert collapsed.endswith("but all its outputs are nearly the same: its numbers under attack say little.")
