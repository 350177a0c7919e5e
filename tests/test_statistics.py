"""Features against naive loops, and what the threat made of them promises."""

import math

import pytest
import torch

import withstand as ws
from withstand.errors import BadInput
from withstand.objectives import Penalised, TargetedMargin
from withstand.protocols import Seen
from withstand.registry import parse
from withstand.statistics import FEATURES, Statistics, stat_features


def series(n=5, c=3, t=17, seed=0):
    return ws.Rows.count(seed, n).normal((c, t), "series", dtype=torch.float64) * 2 + 1


def naive(values):
    """The five features of one list, by their definitions."""
    n, ranked = len(values), sorted(values)
    mean = sum(values) / n
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / n)

    def quartile(share):
        place = share * (n - 1)
        return (ranked[math.floor(place)] + ranked[math.ceil(place)]) / 2

    q1, q2, q3 = map(quartile, (0.25, 0.5, 0.75))
    kurtosis = sum((v - mean) ** 4 for v in values) / n / std**4 - 3
    skews = {"bowley": (q1 + q3 - 2 * q2) / (q3 - q1), "released": (q1 - mean) / (q3 - q1)}
    return mean, std, skews, kurtosis, math.sqrt(sum(v * v for v in values) / n)


@pytest.mark.parametrize("skew", ["bowley", "released"])
@pytest.mark.parametrize("t", [4, 5, 6, 7, 60])
def test_features_are_those_of_a_naive_loop(skew, t):
    x = series(t=t)
    found = stat_features(x, skew=skew)
    for i in range(len(x)):
        for c in range(3):
            mean, std, skews, kurtosis, rms = naive(x[i, c].tolist())
            assert found[i, :, c].tolist() == pytest.approx([mean, std, skews[skew], kurtosis, rms], abs=1e-9)


def test_two_worked_examples():
    one, two = torch.tensor([[1.0, 2, 3, 4, 10]]), torch.tensor([[0.0, 0, 1, 1, 5, 9, 2, 2]])
    assert stat_features(one)[0, :, 0].tolist() == pytest.approx([4, 3.162278, 0, -0.212, 5.099020], abs=1e-5)
    assert stat_features(two)[0, :, 0].tolist() == pytest.approx([2.5, 2.872281, 1 / 3, 0.512397, 3.807887], abs=1e-5)
    for x, value in ((one, -1.0), (two, -2 / 3)):
        assert float(stat_features(x, ("skew",), "released")) == pytest.approx(value, abs=1e-5)


def test_shifts_and_scales_move_what_they_should():
    x = series()
    mean, std, skew, kurtosis, rms = stat_features(x).unbind(1)
    torch.testing.assert_close(rms.square(), mean.square() + std.square())
    shifted = stat_features(x + 3).unbind(1)
    torch.testing.assert_close(shifted[0], mean + 3)
    for i, same in ((1, std), (2, skew), (3, kurtosis)):
        torch.testing.assert_close(shifted[i], same)
    scaled = stat_features(2 * x).unbind(1)
    for i, value in enumerate((2 * mean, 2 * std, skew, kurtosis, 2 * rms)):
        torch.testing.assert_close(scaled[i], value)


def test_the_order_of_features_is_the_one_asked_for():
    x = series()
    both = stat_features(x, ("rms", "mean"))
    whole = stat_features(x)
    assert torch.equal(both, whole[:, [4, 0]])


def test_gradients_are_right_and_finite_where_features_are_not_defined():
    x = series(n=2, c=2, t=9).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: stat_features(v), (x,))
    other = series(n=2, c=2, t=9, seed=1)
    assert torch.autograd.gradcheck(lambda v: Statistics().distance(other, v), (x,))
    flat = torch.zeros(1, 1, 9, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stat_features(flat).sum(), flat)
    assert torch.isfinite(gradient).all()
    assert stat_features(flat)[0, 2:4].abs().sum() == 0


def test_the_distance_is_a_weighted_sum_of_the_largest_changes():
    x, z = series(), series(seed=1)
    threat = Statistics(weights=(1, 2, 0.5, 3, 0))
    for i in range(len(x)):
        a, b = stat_features(x)[i], stat_features(z)[i]
        total = sum(w * max(abs(float(b[k, c] - a[k, c])) for c in range(3)) for k, w in enumerate((1, 2, 0.5, 3, 0)))
        assert float(threat.distance(x, z)[i]) == pytest.approx(total)
    assert Statistics().distance(x, x).abs().max() == 0
    reordered = x.flip(2)
    assert Statistics().distance(x, reordered).max() < 1e-9 < (x - reordered).abs().max()


def test_the_set_is_what_its_tolerance_says():
    x = series(n=1)
    threat = Statistics(1.0, features=("mean",))
    inside = [bool(threat.contains(x, x + shift)) for shift in (0.0, 0.999, 1.001, -0.999, -1.001)]
    assert inside == [True, True, False, True, False]
    assert bool(Statistics().contains(x, x + 100))


def test_features_that_the_clean_series_does_not_define_are_left_out():
    x = torch.tensor([[[1.0, 1, 1, 1, 1, 9], [0, 1, 2, 3, 4, 5]]])
    defined = Statistics().defined(x)
    assert defined[0, :, 0].tolist() == [True, True, False, True, True]
    assert defined[0, :, 1].all()
    z = x.clone()
    z[0, 0, 1] = 1.5
    z[0, 0, 2] = 2.0
    assert stat_features(z, ("skew",))[0, 0, 0] > 0
    assert Statistics(features=("skew",)).distance(x, z) == 0


def test_a_penalised_objective_is_the_objective_less_its_price():
    x, z = series(40), series(40, seed=1)
    logits = ws.Rows.count(2, 40).normal((4,), "logits", dtype=torch.float64)
    y = torch.zeros(40, dtype=torch.long)
    eps = float(Statistics().distance(x, z).median())
    inner, threat = TargetedMargin(2, kappa=1.0), Statistics(eps)
    priced = Penalised(inner, threat, 0.7)
    state = priced.begin(Seen(x, logits), y, ws.Rows.count(0, 40))
    found = priced(Seen(z, logits), y, state)
    for i in range(40):
        others = max(float(logits[i, k]) for k in (0, 1, 3))
        wanted = min(float(logits[i, 2]) - others, 1.0) - 0.7 * float(threat.distance(x, z)[i])
        assert float(found[i]) == pytest.approx(wanted)
    reached = priced.criterion(Seen(z, logits), y, state)
    assert torch.equal(reached, (logits.argmax(1) == 2) & (threat.distance(x, z) <= eps + 1e-6))
    assert 0 < int(reached.sum()) < int((logits.argmax(1) == 2).sum())


def test_it_is_written_and_read():
    made = parse("statistics(0.1, features=('mean', 'std'), weights=(1.0, 2.0))")
    assert made == Statistics(0.1, ("mean", "std"), (1.0, 2.0))
    assert parse(repr(made)) == made


def test_bad_settings_and_series_are_refused():
    for bad_one, said in (
        (lambda: stat_features(torch.ones(1, 1, 3)), "at least 4"),
        (lambda: stat_features(torch.ones(1, 1, 8), ("mean", "mean")), "each once"),
        (lambda: Statistics(features=()), "features"),
        (lambda: Statistics(weights=(1.0,)), "5 numbers"),
        (lambda: Statistics(-1.0), "eps"),
        (lambda: Penalised("cross_entropy", Statistics(), -1.0), "weight"),
        (lambda: Statistics().check(torch.zeros(1, 2, 8)), "a constant channel 0 in series 0"),
    ):
        with pytest.raises(BadInput, match=said):
            bad_one()
    Statistics(features=("mean", "std", "rms")).check(torch.zeros(1, 2, 8))
    assert len(FEATURES) == 5
