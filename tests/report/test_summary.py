import pytest

from withstand.audit.scorecard import CheckResult, Comparison, Scorecard
from withstand.protocols import Flag, Metric
from withstand.report import summary


def card(values, comparisons=(), better="higher"):
    """One metric of several models, as (value, low, high)."""
    results = [
        CheckResult(name, "clean", "Clean", "clean()", metrics=[Metric("m", v, lo, hi, "wilson", 10, better=better)])
        for name, (v, lo, hi) in values.items()
    ]
    return Scorecard(
        "r", models={name: {} for name in values}, results=results, comparisons=list(comparisons)
    ).to_json()


def marks(made):
    (row,) = summary.groups(made)[0].rows
    return {name: cell.mark for name, cell in row.cells.items()}


def test_the_best_is_best_only_where_intervals_do_not_meet():
    assert marks(card({"a": (0.5, 0.4, 0.6), "b": (0.9, 0.8, 0.95)})) == {"a": "", "b": "best"}
    assert marks(card({"a": (0.5, 0.4, 0.6), "b": (0.55, 0.45, 0.65)})) == {"a": "", "b": "leads"}
    assert marks(card({"a": (0.5, 0.4, 0.6), "b": (0.9, None, None)})) == {"a": "", "b": "leads"}


def test_the_best_is_the_lowest_where_lower_is_better_and_none_where_neither_is():
    values = {"a": (0.1, 0.05, 0.15), "b": (0.9, 0.8, 0.95)}
    assert marks(card(values, better="lower")) == {"a": "best", "b": ""}
    assert marks(card(values, better="")) == {"a": "", "b": ""}


def test_a_paired_comparison_decides_before_the_intervals_do():
    values = {"a": (0.5, 0.4, 0.6), "b": (0.55, 0.45, 0.65)}
    sure = Comparison("m", "clean", "a", "b", 0.05, 0.01, 0.09, 0.01, 10)
    assert marks(card(values, [sure])) == {"a": "", "b": "best"}
    apart = {"a": (0.1, 0.0, 0.2), "b": (0.9, 0.8, 1.0)}
    unsure = Comparison("m", "clean", "b", "a", -0.8, -1.0, 0.1, 0.3, 10)
    assert marks(card(apart, [unsure])) == {"a": "", "b": "leads"}


def test_outcomes_are_compared_as_withstood_whatever_the_metric_is_called():
    values = {"a": (0.5, 0.4, 0.6), "b": (0.55, 0.45, 0.65)}
    sure = Comparison("withstood", "clean", "a", "b", 0.05, 0.01, 0.09, 0.01, 10, condition={"measure": "confidence"})
    assert marks(card(values, [sure])) == {"a": "", "b": "best"}
    assert marks(card(values, [sure], better="lower")) == {"a": "leads", "b": ""}


def test_a_metric_that_each_model_has_once_is_one_row_with_what_is_its_own():
    def result(model, worst):
        condition = {"eps": 0.1, "class": worst}
        return CheckResult(model, "c", "C", "c()", metrics=[Metric("worst", 0.5, condition=condition)])

    made = Scorecard("r", models={"a": {}, "b": {}}, results=[result("a", "cat"), result("b", "dog")]).to_json()
    (row,) = summary.groups(made)[0].rows
    assert row.condition == {"eps": 0.1}
    assert [row.cells[n].own for n in "ab"] == [{"class": "cat"}, {"class": "dog"}]


def test_equal_values_and_single_models_have_no_best():
    assert marks(card({"a": (0.5, 0.4, 0.6), "b": (0.5, 0.4, 0.6)})) == {"a": "", "b": ""}
    assert marks(card({"a": (0.5, 0.4, 0.6)})) == {"a": ""}


def test_best_of_three_needs_to_be_clear_of_all_others():
    values = {"a": (0.1, 0.0, 0.2), "b": (0.85, 0.75, 0.9), "c": (0.9, 0.8, 0.95)}
    assert marks(card(values)) == {"a": "", "b": "", "c": "leads"}


def many(n, compared=(), overall=False):
    metrics = [Metric("m", 1 - k / n, condition={"eps": k / 100}) for k in range(n)]
    metrics += [Metric("m", 0.5)] if overall else []
    comparisons = [
        Comparison("m", "c", "a", "b", 0.1, 0.0, 0.2, 0.5, 9, condition={"eps": k / 100 + 1e-12}) for k in compared
    ]
    result = CheckResult("a", "c", "C", "c()", metrics=metrics)
    made = Scorecard("r", models={"a": {}}, results=[result], comparisons=comparisons).to_json()
    return [(r.condition.get("eps"), r.worst_of) for r in summary.groups(made)[0].headline]


def test_few_conditions_are_all_headlines():
    assert many(4) == [(0.0, 0), (0.01, 0), (0.02, 0), (0.03, 0)]


def test_of_many_conditions_the_compared_ones_are_headlines_at_most_four():
    assert many(9, compared=(2, 5)) == [(0.02, 0), (0.05, 0)]
    assert many(9, compared=range(9)) == [(0.0, 0), (0.03, 0), (0.05, 0), (0.08, 0)]


def test_of_many_conditions_without_comparison_the_worst_is_the_headline_after_the_overall_one():
    assert many(9) == [(0.08, 9)]
    assert many(9, overall=True) == [(None, 0), (0.08, 9)]


def test_flags_are_sorted_by_level_and_counted():
    flags = [Flag("a", "pass", ""), Flag("b", "fail", ""), Flag("c", "warn", ""), Flag("d", "pass", "")]
    made = Scorecard("r", models={"m": {}, "n": {}}, results=[CheckResult("m", "c", "C", "c()", flags=flags)]).to_json()
    found = summary.flags(made)
    assert [f["name"] for f in found["m"]] == ["b", "c", "a", "d"]
    assert summary.trust(found["m"]) == {"fail": 1, "warn": 1, "pass": 2}
    assert found["n"] == []


def test_a_model_that_lacks_a_metric_says_why():
    done = CheckResult("a", "c", "C", "c()", metrics=[Metric("m", 0.5)])
    skipped = CheckResult("b", "c", "C", "c()", "skipped", "needs guide")
    made = Scorecard("r", models={"a": {}, "b": {}, "d": {}}, results=[done, skipped]).to_json()
    (row,) = summary.groups(made)[0].rows
    assert [row.cells[n].reason for n in "abd"] == ["", "needs guide", "not part of this run"]


@pytest.mark.parametrize(
    ("low", "high", "p", "clear"),
    [
        (0.03, 0.17, 0.013, True),
        (-0.17, -0.03, 0.013, True),
        (0.006, 0.151, 0.057, False),
        (-0.01, 0.2, 0.04, False),
        (None, 0.2, 0.01, False),
    ],
)
def test_a_change_is_clear_where_interval_and_test_both_say_so(low, high, p, clear):
    assert summary.clear({"low": low, "high": high, "p_value": p}) is clear
