import pytest

from withstand.hardening.ask_def import ASKDef
from withstand.registry import parse
from withstand.reproductions import ask as system
from withstand.reproductions.arms import TRAINER
from withstand.reproductions.runner import judge
from withstand.training import Trainer

TINY = {"epochs": 1, "inner": 1, "train": 80, "test": 20, "steps": 2, "search": 2, "guides": 2}


@pytest.fixture(scope="module")
def rows():
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", system.SCALES["smoke"] | TINY)
    found = system.measure("smoke", 0, lambda text: None)["rows"]
    patch.undo()
    return found


def test_all_claims_can_be_judged(rows):
    for claim in system.CLAIMS:
        assert judge(claim, [rows])["verdict"] in ("shown", "not shown", "inconclusive")


def test_the_worst_case_stands_under_every_attack_of_its_radius(rows):
    found = {r["arm"]: r["examples"] for r in rows}
    for name in system.TRAININGS:
        faced = [
            e
            for arm, e in found.items()
            if arm.startswith(f"{name} / ") and not arm.endswith(("worst", "transfer", "large"))
        ]
        assert len(faced) == 8  # clean, four attacks, three temperatures
        assert found[f"{name} / worst"] == "".join("1" if set(column) == {"1"} else "0" for column in zip(*faced))
    assert "ask_def / transfer" in found


def test_what_is_transferred_has_taken_all_its_steps(monkeypatch):
    """Also where the source is wrong from the start, or fooled at once: else they stay there, and hardly transfer."""
    judged, right = [], system.right
    monkeypatch.setattr(system, "right", lambda model, x, y: judged.append(x) or right(model, x, y))
    monkeypatch.setitem(system.SCALES, "smoke", system.SCALES["smoke"] | TINY)
    monkeypatch.setattr(system, "TRAININGS", {n: system.TRAININGS[n] for n in ("pgd_at", "ask_def")})
    found = {r["arm"]: r["examples"] for r in system.measure("smoke", 0, lambda text: None)["rows"]}
    assert "0" in found["pgd_at / clean"]
    clean, _, transferred = judged
    far = (transferred - clean).abs().flatten(1).amax(1)
    assert (far > system.SCALES["smoke"]["eps"] / 2).all()


def test_every_scale_says_what_its_trainings_and_attacks_need():
    for s in system.SCALES.values():
        for text in system.TRAININGS.values():
            parse(text.format(**s), "recipe")
        Trainer(**{k: s[k] for k in TRAINER if k in s})
        assert {a.threat.eps for a in system.attacks(0.1, s).values()} == {0.1}
        defence = parse(system.TRAININGS["ask_def"].format(**s), "recipe")
        assert isinstance(defence, ASKDef)
        assert defence.augment == Trainer(augment=s["augment"]).augment  # references as the images learned from
        assert s["undefended"] < s["eps"]
        assert (defence.attack.threat.eps, defence.ask_attack.threat.eps) == (s["half"], s["eps"])
