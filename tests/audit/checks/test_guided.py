"""What the guided check makes of its rows."""

import pytest

from withstand.audit.check import Table
from withstand.audit.checks.guided import Guided
from withstand.audit.store import as_table
from withstand.errors import BadInput
from withstand.protocols import Context, Row
from withstand.threats import Linf

N = 200
SOUND = {"pgd_ce_10": 102, "pgd_ce_50": 100, "cw_pgd_50": 100, "pgd_ce_10x10": 99, "transfer": 150, "gpga_10": 100}


def findings(**standing):
    """The check on rows in which so many of the examples stand, always the first ones."""
    check = Guided(Linf(0.1))
    counts = SOUND | {"gpga_10_long": standing.get("gpga_10", 100)} | standing
    rows = [
        Row("image", i, {"attack": name}, i < counts[name], None, 0, 0 if i < counts[name] else 1, 0.1, 1)
        for name in check.attacks(None)
        for i in range(N)
    ]
    return check.reduce(Table(as_table(rows)), {}, Context())


def metric(found, name, **condition):
    (one,) = [m for m in found.metrics if m.name == name and condition.items() <= m.condition.items()]
    return one


def test_a_sound_model_passes_and_its_score_is_near_zero():
    found = findings()
    (flag,) = found.flags
    assert flag.level == "pass"
    assert metric(found, "masking_score").value == 0
    assert metric(found, "guided_accuracy", attack="pgd_ce_10").value == 102 / N


def test_a_guide_that_finds_more_is_a_warning_with_the_numbers():
    found = findings(gpga_10=80)
    (flag,) = found.flags
    score = metric(found, "masking_score")
    assert score.value == pytest.approx(0.1)
    assert score.low > 0
    assert flag.level == "warn"
    assert "40.0%" in flag.explanation
    assert "50.0%" in flag.explanation
    assert "AutoAttack" in flag.advice


def test_a_gap_within_its_error_is_none():
    found = findings(gpga_10=98)
    assert found.flags[0].level == "pass"
    assert metric(found, "masking_score").low < 0


def test_transfer_that_beats_the_white_box_is_a_warning():
    (flag,) = findings(transfer=60).flags
    assert flag.level == "warn"
    assert "made on the guide alone leave 30.0%" in flag.explanation


def test_a_result_that_hinges_on_the_step_is_a_warning():
    (flag,) = findings(gpga_10_long=70).flags
    assert flag.level == "warn"
    assert "twice the step breaks 15.0% more" in flag.explanation


def test_the_audited_model_cannot_be_its_own_guide(run, plain64, digits64, arrays):
    few = arrays(digits64.x[:4], digits64.y[:4], "digits")
    with pytest.raises(BadInput, match="the audited model itself"):
        run(Guided(Linf(0.1)), plain64, few, {"guide": plain64})


def test_a_threat_without_one_radius_is_refused():
    with pytest.raises(BadInput, match="one radius"):
        Guided(Linf())
