"""The check of certified radii against the function behind it, and its metrics against a count."""

import numpy as np
import pytest

from withstand.errors import BadInput
from withstand.hardening.smoothing import certify
from withstand.metrics import wilson
from withstand.registry import parse


@pytest.fixture
def done(run, digits64, plain64, arrays):
    check = parse("certified(sigma=0.2, n0=20, n=300, radii=(0.0, 0.1, 0.3))", "check")
    return run(check, plain64, arrays(digits64.x[:20], digits64.y[:20], "digits"), {})


def test_rows_are_the_certificates(done, digits64, plain64):
    found = certify(plain64, digits64.x[:20], 0.2, 20, 300, seed=done.ctx.seed)
    assert [row.prediction for row in done.rows] == found.prediction.tolist()
    assert [row.value for row in done.rows] == found.radius.tolist()
    assert [row.outcome for row in done.rows] == (found.prediction == digits64.y[:20]).tolist()
    assert len({row.value for row in done.rows}) > 3
    assert done.rows[0].cost == 320


def test_metrics_count_what_is_right_and_far_enough(done, digits64):
    radius = np.array([row.value for row in done.rows])
    right = np.array([row.outcome for row in done.rows])
    for eps in (0.0, 0.1, 0.3):
        hits = int((right & (radius >= eps)).sum())
        metric = done.metric("certified_accuracy", eps=eps)
        assert metric.value == hits / 20
        assert (metric.low, metric.high) == wilson(hits, 20)
    assert done.metric("abstained").value == np.mean([row.prediction == -1 for row in done.rows])
    series = done.findings.figures[0].data
    assert series["series"][0]["y"][0] == right.mean()
    assert all(a >= b for a, b in zip(series["series"][0]["y"], series["series"][0]["y"][1:]))


@pytest.mark.parametrize("settings", ["sigma=0.0", "alpha=2.0", "n=0", "radii=()", "radii=(-1.0,)"])
def test_bad_settings_are_refused(settings):
    with pytest.raises(BadInput):
        parse(f"certified({settings})", "check")


def test_it_needs_no_more_than_decisions():
    assert parse("certified()", "check").access == frozenset({"decision"})
