import pytest
import torch

import withstand as ws
from withstand.data import from_series
from withstand.reproductions import tsa_stat as system
from withstand.reproductions.runner import judge
from withstand.statistics import Statistics

TINY = {"sets": ["one", "two"], "examples": 4, "steps": 5, "epochs": 1, "train": 12, "inner": 1}


def waves(name, split="test", limit=None, seed=None):
    """Three classes of series whose level climbs by their class."""
    y = torch.arange(15) % 3
    noise = ws.Rows.count(len(name + split), 15).normal((1, 20), "waves")
    return from_series(noise + y[:, None, None] * torch.linspace(0, 2, 20), y, name, 3, limit, seed)


@pytest.fixture(scope="module")
def rows():
    """The whole measurement in small, on made-up sets."""
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", TINY)
    patch.setattr(system, "load_data", waves)
    told = []
    found = system.measure("smoke", 0, told.append)["rows"]
    patch.undo()
    assert any("two: tsa_stat" in line for line in told)
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        judged = judge(claim, [rows])
        assert judged["verdict"] in ("shown", "not shown", "inconclusive")
        assert judged["n"] == 8


def test_success_within_is_success_and_a_small_distance(rows):
    cells = {(r["arm"], r["metric"]): r["examples"] for r in rows}
    for arm in {arm for arm, metric in cells if metric == "success_within"}:
        hits, distances = cells[arm, "targeted_success"], cells[arm, "feature_distance"]
        expected = [h == "1" and d <= system.WITHIN for h, d in zip(hits, distances, strict=True)]
        assert [e == "1" for e in cells[arm, "success_within"]] == expected


def test_the_best_radius_succeeds_where_any_does_with_the_least_distance():
    hit = torch.tensor([[True, False, False], [True, True, False]])
    distance = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.9, 0.3]])
    best = system.best_of([{"targeted_success": h, "feature_distance": d} for h, d in zip(hit, distance, strict=True)])
    assert best["targeted_success"].tolist() == [True, True, False]
    torch.testing.assert_close(best["feature_distance"], torch.tensor([0.2, 0.9, 0.3]))


def test_points_are_judged_by_target_and_features():
    x = waves("one").batch(range(15)).x
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 3)).eval()
    arms = system.attacks(5)
    assert {"pgd_0.5", "tsa_stat", "tsa_stat_unpriced", "carlini_wagner"} <= set(arms)
    found = system.judged(arms["pgd_0.5"], model, x, torch.ones(15, dtype=torch.long), 0)
    z = (
        arms["pgd_0.5"]
        .run(model, x, torch.ones(15, dtype=torch.long), box=None, seed=ws.random.derive(0, "attack"))
        .x_adv
    )
    assert torch.equal(found["targeted_success"], model(z).argmax(1) == 0)
    torch.testing.assert_close(found["feature_distance"], Statistics().distance(x, z))
    assert float(found["linf"].max()) <= 0.5 + 1e-6
