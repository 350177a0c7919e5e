import json

import numpy as np
import pytest

from withstand.attacks import QAIR
from withstand.reproductions import qair as system
from withstand.reproductions.runner import RESULTS, judge

TINY = {"images": 8, "updates": 30, "steps": 20, "queries": 20, "steal": 60}


@pytest.fixture(scope="module")
def rows():
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", {size: s | TINY for size, s in system.SCALES["smoke"].items()})
    patch.setattr(system, "HELD", 30)
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_rows_say_what_they_are_compared_with(rows):
    found = {(r["arm"], r["metric"]): np.array(r["examples"]) for r in rows}
    for size in ("small", "large"):
        assert np.allclose(found[f"{size} / rgf_60_percent", "queries"], 0.6 * found[f"{size} / rgf", "queries"])
        assert np.allclose(found[f"{size} / rgf_less_5_points", "success"], found[f"{size} / rgf", "success"] - 0.05)
        assert found[f"{size} / stolen", "stealing_queries"] == [60]
        assert (found[f"{size} / stolen", "overlap"] <= 1).all()
        for arm in system.ARMS:
            success, queries = (found[f"{size} / {arm}", metric] for metric in ("success", "queries"))
            assert len(success) == 8
            if system.ARMS[arm].get("substitute") == "stolen":
                assert np.allclose(found[f"{size} / {arm}", "amortised_queries"], queries + 60 / 8)
            assert (queries[success == 0] == 20).all()
            assert ((queries >= 2) & (queries <= 20)).all()
        assert found[f"{size} / white_box", "success"].mean() >= found[f"{size} / prior_alone", "success"].mean()


def test_settings_of_all_scales_are_valid():
    for sets in system.SCALES.values():
        assert sets.keys() == {"small", "large"}
        for s in sets.values():
            for settings in system.ARMS.values():
                more = {"substitute": "artefact:x"} if "substitute" in settings else {}
                given = {**settings, **more}
                given.pop("attack", QAIR)(queries=s["queries"], **given)


def test_recorded_claims_name_the_sources_of_today():
    recorded = json.loads((RESULTS / "qair.cpu.json").read_text(encoding="utf-8"))["claims"]
    assert [(c["statement"], c["source"]) for c in recorded] == [(c.statement, c.source) for c in system.CLAIMS]
