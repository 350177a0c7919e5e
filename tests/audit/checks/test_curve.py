import numpy as np
import pytest
import torch

from withstand.errors import BadInput
from withstand.registry import parse, replace

LADDER = (0.03, 0.08, 0.15, 0.3)


@pytest.fixture
def done(run, hardened, digits, arrays):
    data = arrays(digits.x[:60], digits.y[:60])
    return run(f"curve(linf(0.1), radii={LADDER}, attack=pgd(steps=4))", hardened, data, seed=3)


def at(done, eps):
    return done.table.where(eps=eps)


def test_the_curve_starts_at_the_clean_accuracy_and_never_rises(done, hardened, digits):
    right = (hardened.model(digits.x[:60]).argmax(1) == digits.y[:60]).numpy()
    assert (at(done, 0.0).outcome == right).all()
    outcomes = np.stack([at(done, e).outcome for e in (0.0, *LADDER)])
    assert (outcomes[1:] <= outcomes[:-1]).all()
    curve = done.findings.figures[0].data
    assert curve["series"][0]["y"] == pytest.approx(outcomes.mean(1).tolist())
    assert [m.value for m in done.findings.metrics] == pytest.approx(outcomes.mean(1)[1:].tolist())


def test_each_radius_attacks_what_still_stands_and_nothing_else(done, hardened, digits):
    stood = at(done, 0.0).outcome
    for eps in LADDER:
        rows = at(done, eps)
        assert ((rows.cost > 0) == stood).all()
        attack = parse(f"pgd(linf({eps}), steps=4)")
        left = np.flatnonzero(stood)
        ids = at(done, 0.0).id[left]
        result = attack.run(hardened, digits.x[ids], digits.y[ids], seed=3, ids=torch.from_numpy(ids.copy()))
        assert (rows.outcome[left] == ~result.success.numpy()).all()
        broken_now = stood & ~rows.outcome
        assert (rows.distance[broken_now] <= eps + 1e-6).all()
        stood = rows.outcome


def test_the_default_ladder_surrounds_the_threats_radius():
    check = parse("curve(linf(0.08))")
    assert check.ladder == pytest.approx((0.01, 0.02, 0.04, 0.08, 0.16, 0.32))
    assert replace(check, radii=(0.5,)).ladder == (0.5,)


@pytest.mark.parametrize("radii", ["(0.2, 0.1)", "(0.1, 0.1)", "(0, 0.1)", "(-0.1, 0.2)"])
def test_ladders_rise_from_above_zero(radii):
    with pytest.raises(BadInput, match="radii"):
        parse(f"curve(radii={radii})")
