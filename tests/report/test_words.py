import math

import pytest

from withstand.report import words


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.4321, "share", "43.2%"),
        (1.0, "share", "100.0%"),
        (-0.05, "share", "−5.0%"),
        (0.4721, "nats", "0.472 nats"),
        (142.0, "queries", "142 queries"),
        (0.134, "number", "0.134"),
        (8 / 255, "distance", "8/255"),
        (1234567, "", "1,234,567"),
        (0.0000123, "", "1.23e-05"),
        (None, "share", "—"),
        (math.nan, "share", "—"),
        (math.inf, "nats", "—"),
    ],
)
def test_quantities_carry_their_unit(value, unit, said):
    assert words.quantity(value, unit) == said


@pytest.mark.parametrize(
    ("low", "high", "unit", "said"),
    [
        (0.381, 0.485, "share", "38.1–48.5%"),
        (-0.1, 0.2, "share", "−10.0 – 20.0%"),
        (101, 207, "queries", "101–207 queries"),
        (0.1, 0.2, "number", "0.100–0.200"),
        (1 / 255, 2 / 255, "distance", "1/255–2/255"),
        (None, 0.2, "share", ""),
        (0.1, math.nan, "share", ""),
    ],
)
def test_intervals_name_both_ends_or_nothing(low, high, unit, said):
    assert words.interval(low, high, unit) == said


def test_differences_of_shares_are_signed_points():
    assert words.change(0.125) == "+12.5 points"
    assert words.change(-0.125) == "−12.5 points"
    assert words.change(0.0) == "±0.0 points"
    assert words.change(-2.5, "nats") == "−2.50 nats"
    assert words.changes(-0.166, 0.024) == "−16.6 to +2.4 points"
    assert words.changes(1, 2, "nats") == "+1 to +2 nats"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (8 / 255, "8/255"),
        (0.25 / 255, "0.25/255"),
        (0.5, "0.5"),
        (0.25, "0.25"),
        (0, "0"),
        (12, "12"),
        (100.0, "100"),
        (0.01875, "0.01875"),
        (0.012345678, "0.01235"),
    ],
)
def test_radii_are_written_as_usual(value, said):
    assert words.radius(value) == said


def test_conditions_are_told_in_words():
    assert words.condition({"threat": "linf", "eps": 8 / 255, "severity": 3}) == "Linf 8/255, severity 3"
    assert words.condition({"eps": 0.5}) == "eps 0.5"
    assert words.condition({"threat": "linf"}) == "Linf"
    assert words.condition({"kind": "motion_blur", "against": "svhn"}) == "motion blur, against svhn"
    assert words.condition({"measure": "confidence"}) == ""
    assert words.condition({}) == ""


@pytest.mark.parametrize(("p", "said"), [(0.0, "p < 0.001"), (0.0131, "p = 0.013"), (0.234, "p = 0.23"), (None, "")])
def test_p_values_are_never_zero(p, said):
    assert words.p_value(p) == said


def test_known_metrics_have_titles_and_others_are_spelled_out():
    assert words.title("robust_accuracy") == "Accuracy under attack"
    assert words.title("my_own_score") == "My own score"
    assert words.meaning("my_own_score") == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0.0 s"),
        (0.01, "< 0.1 s"),
        (0.42, "0.4 s"),
        (75.4, "75 s"),
        (720, "12 min"),
        (3 * 3600 + 300, "3 h 05 min"),
    ],
)
def test_durations(seconds, said):
    assert words.duration(seconds) == said


def test_dates_are_readable_and_anything_else_stays():
    assert words.date("2026-11-20T16:42:07+00:00") == "20 November 2026, 16:42 UTC"
    assert words.date("yesterday") == "yesterday"


def test_cells_that_read_as_numbers_are_known():
    assert all(words.looks_numeric(v) for v in (1, 0.5, "12.5%", "−3.1", "1,000", "94.0 %"))
    assert not any(words.looks_numeric(v) for v in ("MSP", "", "3 classes", None, True))
