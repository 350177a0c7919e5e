import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.reproductions import classic_attacks as system
from withstand.reproductions import classic_defences
from withstand.reproductions.attack_table import fixed
from withstand.reproductions.runner import judge

TINY = {
    "images": 10, "nearest": 2, "epochs": 4, "noise": 2, "square": 20, "queries": 80,
    "cw_steps": 5, "cw_searches": 1, "lbfgs_searches": 1, "draws": 2, "certify": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """The whole measurement in small."""
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", TINY)
    patch.setattr(classic_defences, "STEPS", 1)
    patch.setitem(classic_defences.RECIPES, "rse", "rse(draws=2)")
    patch.setitem(classic_defences.RECIPES, "er_cla", "er_cla(attack=pgd(linf(0.15), steps=1), codes=4)")
    told = []
    found = system.measure("smoke", 0, told.append)["rows"]
    patch.undo()
    assert told
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        judged = judge(claim, [rows])
        assert judged["verdict"] in ("shown", "not shown", "inconclusive")
        assert judged["n"] == (2 if claim.metric == "distance" else 10)


def test_every_arm_has_its_examples_and_no_attack_mends_a_mistake(rows):
    bits = {r["arm"]: r["examples"] for r in rows if r["metric"] == "robust_accuracy"}
    assert len(bits) == (5 + len(classic_defences.RECIPES)) * 9 + 2 + 1
    for arm, examples in bits.items():
        clean = bits[arm.split(" / ")[0] + " / clean"]
        assert len(examples) == 10
        assert all(c == "1" for e, c in zip(examples, clean) if e == "1"), arm
    for model in system.TRAININGS:
        over = next(r for r in rows if (r["arm"], r["metric"]) == (f"{model} / pgd_ce_50", "overestimate"))["examples"]
        expected = [p == "1" and a == "0" for p, a in zip(bits[f"{model} / pgd_ce_50"], bits[f"{model} / apgd_ce_t"])]
        assert [v == "1" for v in over] == expected


def test_failures_count_with_the_farthest_distance(rows):
    x, _ = system.digits("test", 2)
    for r in rows:
        if r["metric"] == "distance":
            far = torch.maximum(x, 1 - x).flatten(1).norm(dim=1)
            assert (np.array(r["examples"]) <= far.numpy() + 1e-3).all()
            assert 0 <= r["success"] <= 1
            assert r["passes"] >= 1


def brute_force(layer, x, y, eps):
    """Every corner of the ball, cut to the box."""
    d = x.shape[1]
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=x.dtype)] * d)
    points = (x[:, None] + eps * corners).clamp(0, 1)
    return (layer(points).argmax(2) == y[:, None]).all(1)


def test_the_exact_worst_case_is_that_of_all_corners():
    rows = ws.Rows.count(0, 60)
    layer = nn.Linear(6, 4).double()
    layer.weight.data = rows.take(torch.arange(4)).normal((6,), "w", dtype=torch.float64)
    layer.bias.data.zero_()
    x = rows.uniform((6,), "x", dtype=torch.float64)
    y = layer(x).argmax(1)
    y[:5] = (y[:5] + 1) % 4
    for eps in (0.0, 0.1, 0.3):
        assert torch.equal(system.exact_robust(layer, x, y, eps), brute_force(layer, x, y, eps))


def test_on_a_linear_model_the_suite_is_exact_and_nothing_goes_below():
    x, y = system.digits("test", 120)
    model = system.logistic(0)
    system.fit(model, system.digits("train"), 8, lr=0.01)
    exact = system.exact_robust(model[1], x, y, 0.1)
    found = fixed("logistic", model, x, y, 0.1, TINY, 0, lambda text: None)
    bits = {
        r["arm"]: torch.tensor([c == "1" for c in r["examples"]]) for r in found if r["metric"] == "robust_accuracy"
    }
    assert 0.1 < exact.double().mean() < 0.9
    assert torch.equal(bits["logistic / apgd_ce_t"], exact)
    for arm, stands in bits.items():
        assert (stands | ~exact).all(), arm


def test_models_depend_on_the_seed_alone():
    first, again, other = (system.network(s).state_dict()["0.weight"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
