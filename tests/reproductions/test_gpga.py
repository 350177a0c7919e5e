import pytest

from withstand.reproductions import gpga as system
from withstand.reproductions.runner import judge


@pytest.fixture(scope="module")
def rows():
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", {"images": 20, "epochs": 1, "queries": 5})
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_the_score_is_what_fifty_steps_leave_and_guided_ones_break(rows):
    found = {(r["arm"], r["metric"]): r["examples"] for r in rows}
    for name in system.TARGETS:
        pgd, guided = (found[f"{name} / {a}", "robust_accuracy"] for a in ("pgd_ce_50", "gpga_10"))
        assert found[f"{name} / masking", "masking_score"] == [int(a) - int(b) for a, b in zip(pgd, guided)]
        clean = found[f"{name} / clean", "robust_accuracy"]
        assert all(c == "1" for c, p in zip(clean, pgd) if p == "1")
