"""The trust check inside an audit."""

import torch

import withstand as ws
from withstand.audit.checks.trust import Trust
from withstand.models import TorchTarget

from . import zoo


def test_an_audit_reads_the_other_checks_and_says_whom_not_to_believe(plain, hardened, digits, tmp_path):
    rounding = TorchTarget(zoo.Before(zoo.straight_through(zoo.quantise), plain.model), "rounding", plain.space)
    erased = TorchTarget(zoo.Before(zoo.gradient_times(0.0), plain.model), "erased", plain.space)
    card = ws.audit(
        {"hardened": hardened, "rounding": rounding, "erased": erased},
        (digits.x[:64], digits.y[:64]),
        checks=[
            "clean",
            "trust(linf(0.15), examples=40)",
            "robust(linf(0.15), attack=pgd(steps=5, random_start=False))",
            "transfer(linf(0.15))",
        ],
        given={"surrogate": plain},
        out=tmp_path / "run",
    )
    flags = {name: {f.name: f for f in card.of("trust", name)[0].flags} for name in card.models}
    assert all(f.level == "pass" for f in flags["hardened"].values()), flags["hardened"]
    assert "transfer beats white box" in flags["hardened"]
    assert flags["rounding"]["wrong gradient"].level == "fail"
    assert flags["erased"]["transfer beats white box"].level == "fail"
    assert flags["erased"]["transfer beats white box"].evidence["examples"] == 64
    assert "wrong gradient" in card.verdict["erased"]
    assert "gradient" not in card.verdict["hardened"]


def test_the_curves_hold_the_median_loss_and_the_share_broken(run, digits, plain):
    done = run("trust(linf(0.15), examples=40, steps=6)", plain, digits)
    loss, success = done.findings.figures
    assert loss.data["x"] == [0, 1, 2, 3, 5, 6]
    median = [float(torch.tensor(done.table.where(probe="steps", step=s).value).quantile(0.5)) for s in loss.data["x"]]
    assert torch.allclose(torch.tensor(loss.data["series"][0]["y"]), torch.tensor(median), atol=1e-6)
    series = success.data["series"][0]
    assert success.data["x_ticks"] == ["0.25", "0.5", "1", "2", "4", "unbounded"]
    for tick, y, low, high in zip((0.25, 0.5, 1.0, 2.0, 4.0, "unbounded"), series["y"], series["low"], series["high"]):
        rows = done.table.where(probe="attack", attack="pgd", times=tick)
        assert y == 1 - rows.outcome.mean()
        assert low <= y <= high
    assert series["y"][-1] == 1


def test_the_estimate_is_above_the_cost(run, digits, plain, hardened):
    for target in (plain, hardened):
        done = run("trust(linf(0.05), examples=40)", target, digits)
        spent = max(done.ctx.cost["forwards"], done.ctx.cost["backwards"]) / 40
        assert spent / 2 < Trust().passes(target)


def test_the_checks_that_indicators_read_are_those_it_waits_for():
    assert Trust().after == ("blackbox", "robust", "transfer")
