import math

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.attacks.engine import Problem
from withstand.attacks.square import Square, _bumps, _Squares, _Windows, side
from withstand.errors import BadInput
from withstand.objectives import Margin
from withstand.random import Rows

LAST = {"keep": "last", "active": False}


def problem(net, points, threat):
    x, y = points
    return Problem(net, x, y, Rows.count(0, len(x)), threat=threat, objective=Margin())


@pytest.mark.parametrize("threat", [ws.Linf(0.05), ws.L2(0.3), ws.L1(1.0)], ids=repr)
def test_acceptance_never_lowers_the_objective(threat, net, points):
    x, y = points
    last = None
    for queries in range(0, 60, 6):
        z = Square(threat, queries=queries, rescale=False, **LAST)(net, x, y)
        value = problem(net, points, threat).value(z)
        assert last is None or (value >= last - 1e-5).all()
        last = value if last is None else torch.maximum(last, value)
    start = problem(net, points, threat).value(Square(threat, queries=0, **LAST)(net, x, y))
    assert (last > start + 1e-3).any()


def test_no_queries_return_the_stripes(net, points):
    x, y = points
    z = Square(ws.Linf(0.05), queries=0, **LAST)(net, x, y)
    moved = torch.where((z > 1e-6) & (z < 1 - 1e-6), (z - x).abs() - 0.05, 0.0)
    assert moved.abs().max() < 1e-7
    signs = (z - x).sign()
    assert (signs == signs[:, :, :1]).all()  # one sign for each channel and column
    assert not (signs == signs[:, :, :, :1]).all()
    assert not (signs == signs[:1]).all()


def test_a_proposal_sets_one_square_of_every_channel_to_a_corner(net):
    x = Rows.count(0, 9).uniform((3, 8, 8), "x", low=0.3, high=0.6, dtype=torch.float64)
    p = Problem(
        lambda z: z.mean((2, 3)), x, torch.zeros(9).long(), Rows.count(0, 9), threat=ws.Linf(0.1), objective=Margin()
    )
    moves = _Squares(p)
    before = x.clone()
    draw = p.rows.uniform((moves.numbers,), "draw")
    after, settle = moves.propose(x.clone(), 9 / 64, draw)
    after = after.clone()
    for i in range(9):
        r, c = int(draw[i, 0] * 5), int(draw[i, 1] * 5)
        for channel in range(3):
            expected = before[i, channel].clone()
            sign = 1 if draw[i, 2 + channel] < 0.5 else -1
            expected[r : r + 3, c : c + 3] += sign * 0.1
            assert torch.allclose(after[i, channel], expected)
    kept = torch.arange(9) % 2 == 0
    settled = settle(kept)
    assert torch.equal(settled[kept], after[kept])
    assert torch.equal(settled[~kept], before[~kept])


@pytest.mark.parametrize("order", [1, 2])
def test_the_bumps_are_nested_rectangles_of_opposite_halves(order):
    def norm(v):
        return np.linalg.norm(v.ravel(), order)

    for s in (1, 2, 3, 4, 5, 6, 9):
        expected = np.zeros((s, s))
        for top, rows, sign in ((0, s // 2, 1), (s // 2, s - s // 2, -1)):
            hill = np.zeros((rows, s))
            for j in range(max(rows // 2, s // 2) + 1):
                r0, c0 = rows // 2 - j, s // 2 - j
                hill[max(r0, 0) : r0 + 2 * j + 1, max(c0, 0) : c0 + 2 * j + 1] += 1 / (j + 1) ** (
                    2 if order == 2 else 4
                )
            expected[top : top + rows] = sign * hill / max(norm(hill), 1e-12)
        expected /= norm(expected)
        found = _bumps(s, torch.float64, torch.device("cpu"), order).numpy()
        np.testing.assert_allclose(found[0].reshape(s, s), expected, atol=1e-12)
        np.testing.assert_allclose(found[1].reshape(s, s), expected.T, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 4, 3), (1, 1, 1), (3, 20, 36)])
def test_l2_starts_and_proposals_use_the_whole_radius(shape):
    n, eps = 7, 0.2
    x = torch.full((n, *shape), 0.5, dtype=torch.float64)
    p = Problem(
        lambda z: z.flatten(1)[:, [0, 0, -1]],
        x,
        torch.zeros(n).long(),
        Rows.count(0, n),
        threat=ws.L2(eps),
        objective=Margin(),
    )
    moves = _Windows(p)
    z = moves.start()
    assert torch.allclose(p.threat.distance(x, z), torch.full((n,), eps, dtype=torch.float64), atol=1e-9)
    for step in range(5):
        z, _ = moves.propose(z, 0.8 / 2**step, p.rows.uniform((moves.numbers,), "draw", step))
        assert torch.allclose(p.threat.distance(x, z), torch.full((n,), eps, dtype=torch.float64), atol=1e-9)


def test_an_l2_proposal_moves_the_energy_of_two_windows_into_the_first():
    """A naive transcription for one image and channel by channel."""
    eps, s, size = 0.4, 3, 8
    x = torch.full((4, 2, size, size), 0.5, dtype=torch.float64)
    p = Problem(
        lambda z: z.mean((2, 3)), x, torch.zeros(4).long(), Rows.count(0, 4), threat=ws.L2(eps), objective=Margin()
    )
    moves = _Windows(p)
    z = x + 0.01 * p.rows.normal((2, size, size), "z", dtype=torch.float64)
    draw = p.rows.uniform((moves.numbers,), "draw")
    found, _ = moves.propose(z, 9 / 64, draw)
    bumps = _bumps(s, torch.float64, torch.device("cpu")).reshape(2, s, s)
    for i in range(4):
        delta = (z - x)[i].clone()
        (a, b), (c, d) = ([int(v * (size - s)) for v in draw[i, j : j + 2]] for j in (0, 2))
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[a : a + s, b : b + s] = mask[c : c + s, d : d + s] = True
        total, new = float((delta**2).sum()), []
        for channel in range(2):
            sign = -1 if draw[i, 5 + channel] < 0.5 else 1
            old = delta[channel, a : a + s, b : b + s]
            bump = bumps[int(draw[i, 4] < 0.5)] * sign + old / old.norm()
            energy = max(eps**2 - total, 0) / 2 + float((delta[channel][mask] ** 2).sum())
            new.append(bump / bump.norm() * math.sqrt(energy))
        delta[:, c : c + s, d : d + s] = 0
        delta[:, a : a + s, b : b + s] = torch.stack(new)
        assert torch.allclose(found[i], (x[i] + delta * eps / delta.norm()).clamp(0, 1), atol=1e-9)


@pytest.mark.parametrize("middle", [0.5, 0.02])
def test_an_l1_proposal_gives_the_first_window_what_both_held_and_projects(middle):
    """A naive transcription for one image and channel by channel; near a bound of the box as well."""
    eps, s, size = 2.0, 3, 8
    x = torch.full((4, 2, size, size), middle, dtype=torch.float64)
    p = Problem(
        lambda z: z.mean((2, 3)), x, torch.zeros(4).long(), Rows.count(0, 4), threat=ws.L1(eps), objective=Margin()
    )
    moves = _Windows(p)
    z = p.project(x + 0.03 * p.rows.normal((2, size, size), "z", dtype=torch.float64))
    draw = p.rows.uniform((moves.numbers,), "draw")
    found, _ = moves.propose(z, 9 / 64, draw)
    bumps = _bumps(s, torch.float64, torch.device("cpu"), 1).reshape(2, s, s)
    wanted = []
    for i in range(4):
        delta = (z - x)[i].clone()
        (a, b), (c, d) = ([int(v * (size - s)) for v in draw[i, j : j + 2]] for j in (0, 2))
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[a : a + s, b : b + s] = mask[c : c + s, d : d + s] = True
        total, new = float(delta.abs().sum()), []
        for channel in range(2):
            sign = -1 if draw[i, 5 + channel] < 0.5 else 1
            old = delta[channel, a : a + s, b : b + s]
            bump = bumps[int(draw[i, 4] < 0.5)] * sign + old / old.abs().sum()
            amount = max(eps - total, 0) / 2 + float(delta[channel][mask].abs().sum())
            new.append(bump / bump.abs().sum() * amount * 2)
        delta[:, c : c + s, d : d + s] = 0
        delta[:, a : a + s, b : b + s] = torch.stack(new)
        wanted.append(x[i] + delta)
    assert torch.allclose(found, p.project(torch.stack(wanted)), atol=1e-9)
    assert p.threat.contains(x, found).all()
    assert not torch.allclose(found, z, atol=1e-3)


def test_the_l1_form_stays_in_ball_and_box_and_beats_noise(net, points):
    x, y = points
    threat = ws.L1(1.0)
    found = Square(threat, queries=200).run(net, x, y)
    assert threat.contains(x, found.x_adv).all()
    assert float(found.x_adv.min()) >= 0
    assert float(found.x_adv.max()) <= 1
    assert found.success.sum() >= ws.attacks.Noise(threat, samples=201).run(net, x, y).success.sum() + 5
    assert (found.backwards == 0).all()


def test_the_schedule_halves_the_share_as_queries_are_spent():
    raw, scaled = Square(rescale=False), Square(queries=5000)
    expected = {0: 1, 10: 1, 11: 2, 51: 4, 201: 8, 501: 16, 1001: 32, 2001: 64, 4001: 128, 4999: 128}
    assert {q: round(1 / raw._fraction(q)) for q in expected} == expected
    assert {q: round(1 / scaled._fraction(q // 2)) for q in (10, 12, 8002, 9998)} == {
        10: 1,
        12: 2,
        8002: 512,
        9998: 512,
    }
    assert [side(0.8 / k, 32, 32) for k in (1, 2, 64, 1024)] == [29, 20, 4, 1]
    assert side(0.8, 4, 60) == 4


def test_no_gradient_is_needed_and_any_callable_will_do(net, points):
    x, y = points
    calls = []

    def scores(z):
        calls.append(len(z))
        assert not torch.is_grad_enabled()
        return net(z).mul(20).round() / 20

    r = Square(ws.Linf(0.1), queries=150).run(scores, x, y)
    assert r.success.float().mean() > 0.5
    assert (r.backwards == 0).all()
    assert int(r.forwards.sum()) == sum(calls)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Square(ws.L0(1.0)), "linf, l2 or l1"),
        (lambda: Square(ws.Linf()), "radius"),
        (lambda: Square(queries=-1), "queries"),
        (lambda: Square(share=0.0), "share"),
    ],
)
def test_bad_settings_are_refused(build, said):
    with pytest.raises(BadInput, match=said):
        build()


def test_inputs_that_are_no_images_are_refused():
    with pytest.raises(BadInput, match="images"):
        Square()(torch.nn.Linear(4, 3), torch.rand(2, 4), torch.zeros(2).long())


@pytest.mark.parametrize("threat", [ws.Linf(0.1), ws.L2(0.7), ws.L1(3.0)], ids=repr)
def test_the_memory_format_of_the_images_changes_nothing(threat):
    rows = Rows.count(0, 6)
    x = rows.uniform((3, 8, 8), "x")
    weights = rows.normal((192,), "w")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6))
    model[1].weight.data.copy_(weights / 10)
    model[1].bias.data.zero_()
    y = model(x).argmax(1)
    plain = Square(threat, queries=60).run(model, x, y)
    last = Square(threat, queries=60).run(model, x.to(memory_format=torch.channels_last), y)
    assert plain.success.sum() > 1
    assert torch.equal(plain.forwards, last.forwards)
    assert torch.equal(plain.x_adv, last.x_adv)
