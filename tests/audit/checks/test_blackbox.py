"""Queries to success against a count, for attacks that fill a ball and for those that come nearer."""

import numpy as np
import pytest
import torch

from withstand.audit.checks.blackbox import queries_to_success
from withstand.errors import BadInput
from withstand.registry import parse


@pytest.fixture
def done(run, plain64, digits64, arrays):
    return run(
        "blackbox(linf(0.2), attack=square(queries=60))", plain64, arrays(digits64.x[:24], digits64.y[:24], "few")
    )


def test_the_curve_counts_who_still_stands_after_so_many_queries(done):
    queries = np.array([np.inf if r.outcome else r.value for r in done.rows])
    data = done.findings.figures[0].data
    assert data["x"][-1] == 60
    assert data["series"][0]["y"] == [float(np.mean(queries > q)) for q in data["x"]]
    assert len(set(data["series"][0]["y"])) > 3
    assert done.metric("black_box_accuracy", queries=60).value == np.mean(np.isinf(queries))
    fallen = queries[np.isfinite(queries) & (queries > 0)]
    assert done.metric("median_queries").value == pytest.approx(np.quantile(fallen, 0.5), abs=1)


def test_rows_tell_mistakes_successes_and_survivors_apart(done, plain64, digits64):
    right = (plain64(digits64.x[:24]).argmax(1) == digits64.y[:24]).tolist()
    for row, correct in zip(done.rows, right, strict=True):
        assert (row.value == 0) == (not correct)
        assert row.outcome == (row.prediction == row.label and correct)
        if row.outcome:
            assert row.value is None
        assert row.cost <= 62
        assert row.distance <= 0.2 + 1e-6


def test_a_search_for_the_nearest_point_succeeds_with_its_first_point_inside():
    class Result:
        success = torch.tensor([True, True, False])
        cost_at_success = torch.tensor([1, 1, -1])
        forwards = torch.tensor([90, 90, 90])
        notes = {
            "trace": torch.tensor([[3.0, 1.5, 0.4], [2.0, 2.0, 1.9], [4.0, 0.9, 0.8]]),
            "trace_queries": [10, 50, 90],
        }

    assert queries_to_success(Result(), 1.5).tolist() == [50, 90, 50]  # the second never came so near
    Result.notes = {}
    assert queries_to_success(Result(), 1.5).tolist() == [1, 1, 90]


def test_attacks_that_need_more_than_answers_are_refused():
    with pytest.raises(BadInput, match="a black-box attack"):
        parse("blackbox(linf(0.1), attack=pgd())", "check")
    assert parse("blackbox(l2(1.0), attack=boundary())", "check").access == frozenset({"decision"})
    assert parse("blackbox(linf(0.1))", "check").access == frozenset({"scores"})
