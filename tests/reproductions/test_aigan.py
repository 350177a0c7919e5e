import pytest
import torch

from withstand.reproductions import aigan as system
from withstand.reproductions.classic_attacks import digits, network
from withstand.reproductions.runner import judge

TINY = {"classifier_epochs": 3, "epochs": 1, "switch": 1, "inner": 1, "images": 8, "timed": 2}


@pytest.fixture(scope="module")
def rows():
    """The whole measurement in small."""
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", TINY)
    patch.setattr(system, "LADDER", (1, 2, 40))
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return {(r["arm"], r["metric"]): r for r in found}


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [[*rows.values()]])["verdict"] in ("shown", "not shown", "inconclusive")


def test_every_arm_has_its_matrix_its_length_and_its_time(rows):
    for name in ("undefended", "trained"):
        for arm in (*system.GENERATORS, "pgd_1", "pgd_40"):
            row = rows[f"{name} / {arm}", "targeted_success"]
            assert len(row["examples"]) == 8
            assert all(0 <= v <= 1 for v in row["examples"])
            assert [line[i] for i, line in enumerate(row["matrix"])] == [None] * 10
            assert 0 <= row["worst_target"] <= 1
            assert all(0 <= v <= system.EPS * 8 + 1e-4 for v in rows[f"{name} / {arm}", "l2"]["examples"])
            assert len(rows[f"{name} / {arm}", "seconds"]["examples"]) == 2


def test_the_bar_of_nearness_lies_five_points_below_pgd(rows):
    bar, pgd = (rows[f"undefended / {arm}", "targeted_success"]["examples"] for arm in ("pgd_40 less 0.05", "pgd_40"))
    assert bar == pytest.approx([v - 0.05 for v in pgd], abs=1e-4)


def test_pgd_gets_as_many_steps_as_are_enough_and_as_fit_into_the_time(rows):
    def mean(arm, metric="targeted_success"):
        return sum(rows[f"undefended / {arm}", metric]["examples"])

    enough, fair = rows["undefended / pgd_enough", "seconds"], rows["undefended / pgd_in_its_time", "targeted_success"]
    first = next((p for p in ("pgd_1", "pgd_2", "pgd_40") if mean(p) >= mean("two_stage")), "pgd_40")
    assert enough["is"] == first
    assert enough["examples"] == rows[f"undefended / {first}", "seconds"]["examples"]
    assert fair["examples"] == rows[f"undefended / {fair['is']}", "targeted_success"]["examples"]


def test_the_clock_is_read_for_a_thousand_images():
    seconds = system._seconds(system.PGD(objective="targeted_margin(0)"), network(0), *digits("test", 20), times=3)
    assert seconds.shape == (3,)
    assert seconds.dtype == torch.float64
    assert seconds.min() > 0
