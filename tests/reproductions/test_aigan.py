from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from withstand.attacks.generative.matrix import Targeted
from withstand.reproductions import aigan as system
from withstand.reproductions.classic_attacks import digits
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
        for arm in (*system.GENERATORS, system.PER_CLASS, "fgsm", "carlini_wagner", "pgd_1", "pgd_40"):
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


def test_where_no_number_of_steps_is_enough_the_row_says_so(rows):
    row = rows["undefended / pgd_enough", "seconds"]
    pgd, own = (
        [sum(rows[f"undefended / {arm}", "targeted_success"]["examples"]) for arm in arms]
        for arms in (("pgd_1", "pgd_2", "pgd_40"), ("two_stage",))
    )
    assert row["reached"] == (max(pgd) >= own[0])
    assert row["reached"] or row["is"] == "pgd_40"


def test_rounds_of_time_alternate_and_the_first_does_not_count(monkeypatch):
    clock, asked = [0.0], []
    monkeypatch.setattr(system.time, "perf_counter", lambda: clock[0])

    @dataclass(frozen=True)
    class Slow:
        name: str
        target: int = 5

        def __call__(self, model, x, y, block):
            asked.append(self.name)
            assert (self.target, block, len(y), int((y == 0).sum())) == (0, len(x), 4, 0)
            clock[0] += {"a": 1.0, "b": 2.0}[self.name] + len(asked)

    y = torch.tensor([0, 1, 2, 0, 3, 4])
    found = system._seconds({"a": Slow("a"), "b": Slow("b")}, nn.Identity(), torch.rand(6, 1, 8, 8), y, times=2)
    assert asked == ["a", "b"] * 3
    assert found["a"].tolist() == [(1 + 3) * 250, (1 + 5) * 250]
    assert found["b"].tolist() == [(2 + 4) * 250, (2 + 6) * 250]


@pytest.mark.parametrize(("own", "reached", "enough"), [(0.5, True, "pgd_2"), (0.9, False, "pgd_40")])
def test_steps_that_are_not_enough_are_not_taken_for_it(monkeypatch, own, reached, enough):
    shares = {"pgd_1": 0.2, "pgd_2": 0.5, "pgd_40": 0.8, "two_stage": own}

    def found(attack, model, x, y, seed):
        hit = torch.full((len(x), 10), shares.get(attack, 0.1), dtype=torch.float64)
        return Targeted(y, torch.ones(len(x), 10, dtype=torch.bool), hit, hit, 1.0)

    monkeypatch.setattr(system, "LADDER", (1, 2, 40))
    monkeypatch.setattr(system, "all_targets", found)
    monkeypatch.setattr(system, "PGD", lambda *_, steps=40, **__: f"pgd_{steps}")
    monkeypatch.setattr(system, "AIGAN", lambda **settings: settings)
    monkeypatch.setattr(system, "TargetedGenerated", lambda threat, arm: arm)
    monkeypatch.setattr(system, "_seconds", lambda attacks, *_: {arm: torch.ones(2) for arm in attacks})
    arms = iter(system.GENERATORS)
    monkeypatch.setattr(system.Trainer, "fit", lambda *_, **__: SimpleNamespace(last=next(arms, None)))
    monkeypatch.setattr(system, "PerClass", lambda generators: "")
    train = digits("train")
    made = system._attacked("undefended", nn.Identity(), train, *digits("test", 4), TINY, 0, lambda text: None)
    row = next(r for r in made if r["arm"] == "undefended / pgd_enough")
    assert (row["reached"], row["is"]) == (reached, enough)


def test_a_generator_for_each_class_gets_the_images_of_its_class():
    class Says(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, x, target):
            assert (target == self.by).all()
            return x + self.by

    x, target = torch.rand(7, 1, 2, 2), torch.tensor([2, 0, 1, 1, 2, 0, 2])
    made = system.PerClass([Says(0), Says(1), Says(2)])(x, target)
    assert torch.equal(made, x + target[:, None, None, None])


def test_points_of_the_nearest_attack_are_moved_into_the_ball():
    (x, y), net = digits("test", 6), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    z = system.MovedInto(target=3)(net, x, y, seed=0)
    assert float((z - x).abs().max()) <= system.EPS + 1e-6
    assert not torch.equal(z, x)
