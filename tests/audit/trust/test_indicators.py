"""Each indicator on rows made by hand: silent without evidence, silent just below its threshold, raised just above."""

import math

import pytest

from withstand.audit.check import Table
from withstand.audit.store import as_table
from withstand.audit.trust import Evidence, assess, indicators, level, worst
from withstand.protocols import Row

N = 64


def rows_of(condition, values=None, broken=(), n=N, unit="image"):
    """One row for each of n examples; `broken` did not withstand."""
    return [Row(unit, i, condition, i not in broken, None if values is None else float(values[i])) for i in range(n)]


def evidence(*groups, others=None, n=N):
    rows = rows_of({"probe": "clean"}, [5.0] * n, n=n)
    for group in groups:
        rows += group
    return Evidence(Table(as_table(rows)), others or {}, "Linf 8/255")


def found(name, *groups, **more):
    return indicators()[name](evidence(*groups, **more))


def attacked(name, broken, times=1.0, n=N):
    return rows_of({"probe": "attack", "attack": name, "times": times}, broken=broken, n=n)


def wilson_low(k, n, z=1.959964):
    p = k / n
    return (p + z * z / 2 / n - z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)) / (1 + z * z / n)


@pytest.mark.parametrize("n", [10, 64, 200, 1000])
def test_a_level_is_wilsons_lower_end_against_1_and_5_percent_and_needs_three(n):
    for k in range(n + 1):
        low = wilson_low(k, n)
        expected = "pass" if k < 3 or low <= 0.01 else "warn" if low <= 0.05 else "fail"
        assert level(k, n) == expected, (k, n)


def test_of_64_examples_three_warn_and_seven_fail():
    assert [level(k, 64) for k in (2, 3, 6, 7)] == ["pass", "warn", "warn", "fail"]


def test_worst_is_the_most_serious():
    assert worst("pass", "warn") == "warn"
    assert worst("fail", "warn", "pass") == "fail"


def test_without_evidence_nothing_is_said():
    assert assess(Evidence(Table(as_table([])), {})) == []
    few = evidence(attacked("pgd", (), n=9), attacked("pgd_margin", (), n=9), attacked("fgsm", range(9), n=9), n=9)
    assert indicators()["single_step_beats_iterative"](few) is None


def test_examples_that_are_wrong_from_the_start_are_no_evidence():
    rows = rows_of({"probe": "clean"}, [1.0] * N, broken=range(40))
    rows += attacked("pgd", ()) + attacked("pgd_margin", ()) + attacked("fgsm", range(40))
    one = indicators()["single_step_beats_iterative"](Evidence(Table(as_table(rows)), {}))
    assert one.level == "pass"
    assert one.evidence == {"examples": 24, "missed": 0, "weaker": 0, "white_box": 0}


@pytest.mark.parametrize(
    ("name", "weaker"),
    [("single_step_beats_iterative", "fgsm"), ("noise_beats_attack", "noise"), ("black_box_beats_white_box", "square")],
)
def test_what_a_weaker_attack_adds_counts(name, weaker):
    strong = [attacked("pgd", range(20)), attacked("pgd_margin", range(10, 30))]
    for extra, expected in ((2, "pass"), (3, "warn"), (7, "fail")):
        one = found(name, *strong, attacked(weaker, range(25, 30 + extra)))
        assert one.level == expected
        assert one.evidence == {"examples": N, "missed": extra, "weaker": 5 + extra, "white_box": 30}


def test_noise_as_strong_as_the_attack_is_raised_unless_both_break_everything():
    same = [attacked(name, range(20)) for name in ("pgd", "pgd_margin", "noise")]
    assert found("noise_beats_attack", *same).level == "fail"
    everything = [attacked(name, range(N)) for name in ("pgd", "pgd_margin", "noise")]
    assert found("noise_beats_attack", *everything).level == "pass"


def judged(broken, threat="linf", eps=8 / 255, attack="x", n=N):
    return Table(as_table(rows_of({"attack": attack, "threat": threat, "eps": eps}, broken=broken, n=n)))


@pytest.mark.parametrize(
    ("name", "check"), [("transfer_beats_white_box", "transfer"), ("black_box_beats_white_box", "blackbox")]
)
def test_other_checks_are_compared_with_robust_threat_by_threat(name, check):
    robust = {"robust": judged(range(10)), "robust-2": judged(range(40), "l2", 0.5)}
    one = found(name, others={**robust, check: judged(range(5, 17))})
    assert (one.level, one.evidence["missed"], one.evidence["white_box"]) == ("fail", 7, 10)
    assert "Linf 8/255" in one.seen
    assert found(name, others={**robust, check: judged(range(40), "l2", 0.5)}).level == "pass"
    assert found(name, others={**robust, check: judged(range(40), "linf", 0.5)}) is None


def test_transfer_is_compared_with_the_probes_where_robust_did_not_run():
    probes = [attacked("pgd", range(10)), attacked("pgd_margin", ())]
    one = found("transfer_beats_white_box", *probes, others={"transfer": judged(range(20))})
    assert (one.level, one.evidence["missed"]) == ("fail", 10)
    assert found("transfer_beats_white_box", *probes) is None


def test_the_loss_must_rise_at_some_step():
    start = rows_of({"probe": "steps", "step": 0}, [1.0] * N)
    up, flat, down = [2.0] * N, [1.0] * N, [0.5] * N
    for k, expected in ((2, "pass"), (3, "warn"), (7, "fail")):
        middle = rows_of({"probe": "steps", "step": 1}, up[k:] + flat[:k])
        end = rows_of({"probe": "steps", "step": 10}, down)
        one = found("loss_does_not_rise_with_steps", start, middle, end)
        assert (one.level, one.evidence["flat"]) == (expected, k)


def test_success_must_not_fall_as_the_radius_grows():
    ladder = [attacked("pgd", range(10 * i), t) for i, t in enumerate((0.25, 0.5, 1.0, 2.0))]
    assert found("success_does_not_rise_with_eps", *ladder, attacked("pgd", range(40), 4.0)).level == "pass"
    one = found("success_does_not_rise_with_eps", *ladder, attacked("pgd", range(7, 64), 4.0))
    assert (one.level, one.evidence["lost"]) == ("fail", 7)
    assert found("success_does_not_rise_with_eps", *ladder) is None


def test_an_example_may_fall_to_any_attack_before_it_stands_without_a_bound():
    some = [attacked("pgd", range(20), 1.0), attacked("pgd_margin", range(20, 40), "unbounded")]
    one = found("unbounded_attack_fails", *some, attacked("pgd", range(40, 57), "unbounded"))
    assert (one.level, one.evidence["standing"]) == ("fail", 7)


def test_zero_and_undefined_gradients_count():
    good = rows_of({"probe": "gradient", "objective": "cross_entropy"}, [1e-9] * N)
    bad = rows_of({"probe": "gradient", "objective": "dlr"}, [0.0, 0.0, math.nan] + [1.0] * (N - 3))
    one = found("zero_gradients", good, bad)
    assert (one.level, one.evidence) == ("warn", {"examples": N, "cross_entropy": 0, "dlr": 3})


def test_a_slope_off_by_more_than_a_factor_of_three_counts():
    one = found("wrong_gradient", rows_of({"probe": "slope"}, [0.49] * 50 + [0.51] * 7 + [math.nan] * 7))
    assert (one.level, one.evidence["wrong"], one.evidence["examples"]) == ("fail", 7, 57)


def test_steps_that_overshoot_count_by_the_lower_end_of_their_mean():
    def seen(share, n=N):
        shares = [share + 0.05 * (-1) ** i for i in range(n)]
        groups = [rows_of({"probe": "overshoot"}, shares, n=n), attacked("fgsm", range(5), n=n)]
        return found("single_step_overshoots", *groups, attacked("pgd", range(9), n=n), n=n)

    half = 1.96 * 0.05 * math.sqrt(N / (N - 1)) / math.sqrt(N)
    for edge, below, above in ((0.025, "pass", "warn"), (0.05, "warn", "fail")):
        assert seen(edge + half - 1e-4).level == below
        assert seen(edge + half + 1e-4).level == above
    assert seen(0.1).evidence == {"examples": N, "share": pytest.approx(0.1), "standing_fgsm": 59, "standing_pgd": 55}
    assert found("single_step_overshoots", rows_of({"probe": "overshoot"}, [1.0] * 9, n=9), n=9) is None


def test_blind_and_brittle_at_the_bounds():
    steps = rows_of({"probe": "steps", "step": 0}, [1.0] * N)
    name = "break_at_the_clipping_bounds"
    assert found(name, steps, rows_of({"probe": "blind"}, broken=range(7))).level == "fail"
    for k, expected in ((15, "pass"), (16, "warn"), (32, "fail")):
        assert found(name, steps, rows_of({"probe": "inward"}, broken=range(k))).level == expected


def test_outputs_that_move_warn_and_decisions_that_move_fail():
    name = "non_deterministic_model"
    assert found(name, rows_of({"probe": "repeat"}, [9e-5] * N)).level == "pass"
    assert found(name, rows_of({"probe": "repeat"}, [9e-5] * 63 + [2e-4])).level == "warn"
    assert found(name, rows_of({"probe": "repeat"}, [2e-4] * N, broken=[3])).level == "fail"


def test_probabilities_are_vectors_that_sum_to_one_without_a_negative_entry():
    def seen(lowest, total):
        low = rows_of({"probe": "output", "measure": "lowest"}, lowest)
        return found("probability_outputs", low, rows_of({"probe": "output", "measure": "sum"}, total)).level

    assert seen([0.0] * N, [1.0005] * N) == "fail"
    assert seen([0.0] * 63 + [-0.1], [1.0] * N) == "pass"
    assert seen([0.0] * N, [1.0] * 63 + [1.1]) == "pass"


def test_a_gap_beyond_float32_fails_and_a_wide_one_warns():
    def seen(gaps):
        rows = rows_of({"probe": "clean"}, gaps)
        return indicators()["saturated_loss"](Evidence(Table(as_table(rows)), {})).level

    assert seen([30.0] * N) == "pass"
    assert seen([5.0] * 58 + [88.0] * 6) == "pass"
    assert seen([5.0] * 57 + [88.0] * 7) == "fail"
    assert seen([5.0] * 31 + [34.0] * 33) == "warn"


def test_a_backward_pass_inside_fails_and_many_calls_warn():
    def seen(backward, calls):
        inside = [Row("model", 0, {"probe": "inside", "measure": m}, None, v) for m, v in
                  (("backward", backward), ("calls", calls))]  # fmt: skip
        return found("optimisation_at_inference", inside).level

    assert seen(0.0, 5.0) == "pass"
    assert seen(0.0, 6.0) == "warn"
    assert seen(1.0, 1.0) == "fail"


def test_flags_name_the_fault_the_numbers_and_the_advice_worst_first():
    flags = assess(evidence(rows_of({"probe": "slope"}, [1.0] * N), rows_of({"probe": "repeat"}, [1.0] * N)))
    order = [f.level for f in flags]
    assert order == sorted(order, key=("fail", "warn", "pass").index)
    assert [f.name for f in flags[:2]] == ["wrong gradient", "non deterministic model"]
    assert "64 of 64" in flags[0].explanation
    assert flags[0].advice
    assert not flags[-1].advice
