"""Attacks that see scores or decisions only, and the counting of their questions."""

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks.engine import Problem
from withstand.attacks.engine.decisions import Decisions
from withstand.attacks.engine.queries import Queries
from withstand.attacks.rays import Rays, strange_point
from withstand.errors import BadInput
from withstand.objectives import Margin

from .lines import Line, inside

A = ws.attacks
MODEL = Line()
X = inside()
Y = MODEL(X).argmax(1)
EXACT = MODEL.side(X).abs() / MODEL.w.norm()

DECISION = [A.Boundary(queries=2000), A.OPT(queries=2000), A.SignOPT(queries=3000)]
ALL = [*DECISION, A.ZOO(queries=6000, searches=2)]
QUICK_DECISION = [A.Boundary(queries=300), A.OPT(queries=300, q=4), A.SignOPT(queries=300, k=30)]
QUICK = [*QUICK_DECISION, A.ZOO(queries=300, searches=2, coordinates=4)]


def problem(model=MODEL, x=X, y=Y, **settings) -> Problem:
    rows = ws.Rows.count(0, len(x))
    return Problem(model, x, y, rows, threat=ws.L2(), objective=Margin(), nearest=True, **settings)


class Counting:
    """A plain callable that counts the questions of each example by the value that marks it (its last one)."""

    def __init__(self, answer) -> None:
        self.answer, self.asked, self.calls = answer, 0, 0

    def __call__(self, x):
        assert not torch.is_grad_enabled() or not x.requires_grad
        self.asked += len(x)
        self.calls += 1
        return self.answer(x)


# Reach ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_the_exact_distance_is_approached_within_the_budget(attack):
    r = attack.run(MODEL, X, Y)
    assert r.success.all()
    assert (r.distance >= EXACT - 1e-9).all()
    assert r.distance.mean() <= 1.1 * EXACT.mean()
    assert (r.forwards <= attack.queries).all()
    assert (r.backwards == 0).all()


@pytest.mark.parametrize("attack", QUICK, ids=repr)
def test_the_trace_tells_distance_against_questions(attack):
    r = attack.run(MODEL, X, Y, block=7)
    trace, counts = r.notes["trace"], r.notes["trace_queries"]
    assert trace.shape == (len(X), len(counts))
    assert counts[-1] == attack.queries
    assert list(counts) == sorted(set(counts))
    assert (trace[:, 1:] <= trace[:, :-1]).all()
    assert torch.equal(trace[:, -1], r.distance)
    known = trace.isfinite()
    first = torch.tensor(counts)[known.double().argmax(1)]
    assert (r.cost_at_success <= first).all()
    assert (~known[:, 0]).all()


@pytest.mark.parametrize("attack", QUICK, ids=repr)
def test_every_question_is_counted(attack):
    model = Counting(MODEL)
    r = attack.run(model, X, Y)
    assert model.asked == int(r.forwards.sum())


@pytest.mark.parametrize("attack", QUICK_DECISION, ids=repr)
def test_one_call_serves_all_rows(attack):
    one, many = Counting(MODEL), Counting(MODEL)
    attack.run(one, X[:1], Y[:1])
    attack.run(many, X, Y)
    assert many.calls < len(X) / 3 * one.calls


@pytest.mark.parametrize("attack", QUICK_DECISION, ids=repr)
def test_only_the_decision_is_used(attack):
    """Logits, squashed logits, labels, and labels as an array lead to the same points."""
    answers = [
        MODEL,
        lambda x: MODEL(x).sign() * 7 + 1,
        lambda x: MODEL(x).argmax(1),
        lambda x: MODEL(x.detach()).detach().argmax(1).numpy().astype(np.int32),
    ]
    found = [attack.run(Counting(a), X, Y) for a in answers]
    for r in found[1:]:
        assert torch.equal(r.x_adv, found[0].x_adv)
        assert torch.equal(r.forwards, found[0].forwards)


def test_scores_may_come_as_arrays():
    attack = A.ZOO(queries=500, searches=1)
    plain = attack.run(MODEL, X, Y)
    arrays = attack.run(lambda x: MODEL(x.detach()).detach().numpy(), X, Y)
    assert torch.equal(plain.x_adv, arrays.x_adv)


@pytest.mark.parametrize("attack", QUICK, ids=repr)
def test_models_that_forbid_gradients_are_attacked(attack):
    class Sealed(nn.Module):
        @torch.inference_mode()
        def forward(self, x):
            return MODEL(x)

    assert attack.run(Sealed(), X[:4], Y[:4]).success.all()


def test_targets_declare_what_they_allow():
    class Remote:
        access = frozenset({"decision"})
        space = ws.protocols.Space(box=(0.0, 1.0), classes=2)

        def __call__(self, x):
            return MODEL(x).argmax(1)

    assert A.Boundary(queries=300).run(Remote(), X, Y).success.all()
    for attack in (A.ZOO(), A.Noise(), A.DeepFool()):
        with pytest.raises(BadInput, match="black-box"):
            attack.run(Remote(), X, Y)


@pytest.mark.parametrize("attack", QUICK_DECISION, ids=repr)
def test_a_target_class_is_reached_from_decisions(attack):
    model = Three()
    y = torch.zeros(len(X)).long()
    aimed = ws.registry.replace(attack, objective="targeted_margin(target=2)")
    r = aimed.run(lambda x: model(x).argmax(1), X, y)
    assert r.success.all()
    assert (model(r.x_adv).argmax(1) == 2).all()


class Three(nn.Module):
    """Class by the mean: below 0.55, below 0.7, above."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.55 - mean, 0.05 - (mean - 0.6).abs(), mean - 0.7], 1)


# Starts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", QUICK_DECISION, ids=repr)
def test_examples_that_are_wrong_already_cost_one_question(attack):
    r = attack.run(MODEL, X, 1 - Y)
    assert r.success.all()
    assert (r.forwards == 1).all()
    assert torch.equal(r.x_adv, X)
    assert (r.notes["trace"] == 0).all()


@pytest.mark.parametrize("attack", QUICK_DECISION, ids=repr)
def test_a_model_that_never_errs_is_not_broken_and_the_budget_holds(attack):
    r = attack.run(lambda x: torch.zeros(len(x)).long(), X, torch.zeros(len(X)).long())
    assert not r.success.any()
    assert torch.equal(r.x_adv, X)
    assert (r.forwards <= attack.queries).all()
    assert (r.forwards == r.forwards[0]).all()
    assert r.forwards[0] == (101 if isinstance(attack, A.Boundary) else 300)
    assert r.notes["trace"].isinf().all()


def test_the_first_point_that_reaches_the_goal_is_counted():
    """The third question is the first that the model answers wrongly: clean, one start that misses, one that hits."""
    asked = 0

    def third(x):
        nonlocal asked
        asked += 1
        return torch.full((len(x),), int(asked >= 3))

    for attack in QUICK_DECISION:
        asked = 0
        r = attack.run(third, X[:1], torch.tensor([0]))
        assert r.cost_at_success.tolist() == [3]


def test_starts_differ_in_kind_and_lie_in_the_box():
    x = torch.full((2, 3, 8, 9), 0.5)
    p = problem(nn.Flatten(), x, torch.zeros(2).long(), box=(-1.0, 2.0))
    uniform, corners, blocks, levels = (strange_point(p, "s", i) for i in range(4))
    for z in (uniform, corners, blocks, levels):
        assert z.shape == x.shape
        assert z.min() >= -1
        assert z.max() <= 2
        assert not torch.equal(z[0], z[1])
    assert set(corners.unique().tolist()) == {-1.0, 2.0}
    assert (blocks[..., :4, :4] == blocks[..., :1, :1]).all()
    assert not torch.equal(blocks[..., 3, 3], blocks[..., 4, 4])
    assert (levels == levels[..., :1, :1]).all()
    assert len(uniform.unique()) > 400
    free = problem(nn.Flatten(), x, torch.zeros(2).long(), box=None)
    sizes = [(strange_point(free, "s", i) - x).abs().mean() for i in (0, 5, 10)]
    assert sizes[0] < sizes[1] < sizes[2]


# Methods ----------------------------------------------------------------------------------------------------------------


def test_rays_are_measured_to_the_tolerance_from_any_guess():
    p = problem()
    rays = Rays(p, Queries(p, 100_000))
    rows = torch.arange(len(X))
    theta = -(MODEL.w / MODEL.w.norm()) * MODEL.side(X).sign()[:, None]
    for factor in (0.7, 0.999, 1.001, 1.5):
        g = rays.measure(theta, EXACT * factor, torch.full_like(EXACT, 1e-7), rows)
        assert ((g >= EXACT - 1e-12) & (g <= EXACT + 2e-7)).all()
    assert rays.measure(theta, EXACT * 0.4, torch.full_like(EXACT, 1e-7), rows).isinf().all()
    before = p.forwards.clone()
    assert rays.measure(theta, EXACT * 0.99, torch.full_like(EXACT, 1e-7), rows, grow=False).isinf().all()
    assert (p.forwards - before == 1).all()


@pytest.mark.parametrize("attack", [A.OPT(), A.SignOPT()], ids=repr)
def test_estimated_gradients_point_like_the_true_one(attack):
    """g(theta) = side / (w . theta) along the plane's side: its gradient is known."""
    p = problem()
    rays = Rays(p, Queries(p, 100_000))
    w = -MODEL.w * MODEL.side(X).sign()[:, None]
    theta = torch.nn.functional.normalize(w / w.norm(dim=1, keepdim=True) + 0.5 * p.rows.normal((8,), "t").double())
    g = MODEL.side(X).abs() / (w * theta).sum(1)
    ahead = (g > 0) & (g < 0.3)
    p.keep_only(ahead)
    theta, g, w = theta[ahead], g[ahead], w[ahead]
    exact = -g[:, None] / (w * theta).sum(1, keepdim=True) * (w - (w * theta).sum(1, keepdim=True) * theta)
    total = torch.zeros_like(theta)
    for step in range(10):
        gradient, probe, probed = attack._estimate(rays, theta, g * (1 + 1e-9), torch.full_like(g, 1e-3), step)
        total += gradient
    if isinstance(attack, A.OPT):
        assert (probed < g).all(), "the best of ten probes is closer"
        again = rays.measure(probe, g, torch.full_like(g, 1e-9), torch.arange(len(g)))
        assert torch.allclose(again, probed, atol=3e-6)
    assert (torch.nn.functional.cosine_similarity(total, exact) > 0.85).all()
    if isinstance(attack, A.OPT):  # E[(slope . u) u] = slope / d
        assert torch.allclose(total.norm(dim=1) / 10 * 8, exact.norm(dim=1), rtol=0.5)


def test_zoo_estimates_the_slope_of_the_margin_inside_the_box():
    x = X.clone()
    x[0, 2], x[1, 2] = 0.0, 1.0
    p = problem(x=x)
    q = Queries(p, 1000)
    chosen = torch.tensor([[2, 5]]).expand(len(x), 2)
    slope = A.ZOO()._slope(p, q, x, chosen)
    sign = torch.where(Y == 0, -1.0, 1.0)[:, None]
    assert torch.allclose(slope, 2 * MODEL.scale * MODEL.w[[2, 5]] * sign, rtol=1e-6)
    assert (p.forwards == 5).all()


def test_zoo_moves_each_value_by_adam():
    """One round of two full steps against a plain loop."""
    attack = A.ZOO(queries=2 * 17 + 1, searches=1, coordinates=8, c=3.0, lr=0.02)
    seen = []

    def watched(v):
        seen.append(v.detach().clone())
        return MODEL(v)

    x, y = X[:1], Y[:1]
    attack.run(watched, x, y)
    z, m, v = x.clone(), 0.0, 0.0
    sign = 1.0 if y[0] == 1 else -1.0
    for t in (1, 2):
        hinge = 0.0 if MODEL(z).argmax(1) != y else 1.0
        push = 2 * (z - x) - 3.0 * hinge * 2 * MODEL.scale * MODEL.w * sign
        m, v = 0.9 * m + 0.1 * push, 0.999 * v + 0.001 * push**2
        z = z - 0.02 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        points = [s for s in seen if len(s) == 1][t]
        assert torch.allclose(points, z, atol=1e-5)


def test_boundary_shortens_moves_that_never_hold_until_they_are_tiny():
    """Only points far from x reach the goal, and no move on the sphere does: the search ends before its budget."""
    moves = []

    def picky(v):
        seen = v[0].clone()
        first = len(moves) < 1
        moves.append(seen)
        return torch.full((len(v),), int(not first and len(moves) < 14))

    r = A.Boundary(queries=5000, adapt=0.5).run(picky, X[:1], torch.tensor([0]))
    assert r.success.all()
    steps = torch.stack(moves[14:])
    base = r.x_adv
    length = (steps - base).norm(dim=1)
    assert length[-1] < 1e-4 * length[0]
    assert int(r.forwards) < 500


def test_boundary_steps_stay_on_the_sphere_and_sizes_follow_the_rates():
    p = problem()
    z = X + 0.1 * p.rows.normal((8,), "z", dtype=torch.float64)
    delta = torch.full((len(X),), 0.05, dtype=torch.float64)
    aside = A.Boundary()._aside(p, z, delta, 0)
    assert torch.allclose((aside - X).norm(dim=1), (z - X).norm(dim=1))
    length = (aside - z).norm(dim=1) / (z - X).norm(dim=1)
    assert torch.allclose(length, delta, rtol=1e-2)
    adapted = A.Boundary(adapt=0.5)._adapted(torch.full((3,), 0.1), torch.tensor([0.0, 0.3, 0.8]))
    assert torch.allclose(adapted, torch.tensor([0.05, 0.1, 0.2]))


# Queries ------------------------------------------------------------------------------------------------------------------


def test_rows_may_ask_several_points_and_never_exceed_their_budget():
    p = problem()
    q = Queries(p, 6)
    far = X + 3 * (-(MODEL.w / MODEL.w.norm()) * (MODEL.side(X).sign() * EXACT)[:, None])
    near = X + (far - X) * 0.5
    at = torch.tensor([0, 0, 0, 1, 2, 2])
    z = torch.stack([far[0], near[0], X[0], X[1], near[2], far[2]])
    won, value = q.ask(z, at)
    assert won.tolist() == [True, True, False, False, True, True]
    assert torch.allclose(value, Margin()(ws.protocols.Seen(z, MODEL(z)), Y[at], {}))
    assert p.forwards[:4].tolist() == [4, 2, 3, 1]
    assert torch.equal(p.best[[0, 1, 2]], torch.stack([near[0], X[1], near[2]]))
    assert p.won[:4].tolist() == [True, False, True, False]
    won, value = q.ask(z, at)  # row 0 has two questions left and asks three
    assert won.tolist() == [False, False, False, False, True, True]
    assert value[0] == -torch.inf
    assert p.forwards[:4].tolist() == [4, 3, 5, 1]
    assert q.left[:4].tolist() == [2, 3, 1, 5]


def test_positions_mean_alive_rows():
    p = problem()
    q = Queries(p, 10)
    p.keep_only(torch.arange(len(X)) % 2 == 1)
    beyond = X + 2 * (-(MODEL.w / MODEL.w.norm()) * (MODEL.side(X).sign() * EXACT)[:, None])
    won, _ = q.ask(beyond[[3, 5]], torch.tensor([1, 2]))
    assert won.all()
    assert p.won.nonzero().flatten().tolist() == [3, 5]


def test_trace_is_the_distance_known_after_so_many_questions():
    p = problem()
    q = Queries(p, 8)
    assert q._counts == (1, 2, 4, 8)
    way = -(MODEL.w / MODEL.w.norm()) * (MODEL.side(X).sign() * EXACT)[:, None]
    for factor in (0.5, 3.0, 2.0, 4.0):
        q.ask(X + factor * way)
    inf = torch.full_like(EXACT, torch.inf)
    assert torch.allclose(p.notes["trace"], torch.stack([inf, inf, 2 * EXACT, 2 * EXACT], 1))


def test_decisions_are_one_hot_and_bad_answers_are_refused():
    x = torch.zeros(2, 3)
    assert Decisions(lambda v: torch.tensor([[0.1, 2.0, 0.3], [5.0, 1.0, 1.0]]))(x).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert Decisions(lambda v: torch.tensor([1, 0]), torch.tensor([3, 0]))(x).shape == (2, 4)
    assert Decisions(lambda v: np.array([1, 0]), None, 6)(x).shape == (2, 7)
    for wrong in (torch.tensor([1]), torch.tensor([-1, 0])):
        with pytest.raises(BadInput, match="class index"):
            Decisions(lambda v, wrong=wrong: wrong)(x)
    for wrong, said in ((torch.full((20, 2), torch.nan), "NaN"), ("yes", "logits"), (torch.zeros(20), "logits")):
        with pytest.raises(BadInput, match=said):
            A.Boundary().run(lambda v, wrong=wrong: wrong, X, Y)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("boundary(linf())", "l2"),
        ("boundary(queries=0)", "queries"),
        ("boundary(delta=1.0)", "delta"),
        ("boundary(adapt=0.0)", "adapt"),
        ("opt(alpha=0.0)", "alpha"),
        ("opt(q=0)", "q: got"),
        ("sign_opt(beta=-1.0)", "beta"),
        ("sign_opt(k=0)", "k: got"),
        ("zoo(h=0.0)", "h: got"),
        ("zoo(objective=margin())", "kappa"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text, said):
    with pytest.raises(BadInput, match=said):
        ws.parse(text, "attack")


def test_a_budget_too_small_for_one_step_is_refused():
    with pytest.raises(BadInput, match="at least 35"):
        A.ZOO(queries=34, searches=2).run(MODEL, X, Y)
    with pytest.raises(BadInput, match="goal"):
        A.Boundary(objective=NoGoal()).run(MODEL, X, Y)


class NoGoal:
    reads = ("logits",)
    criterion = None

    def __call__(self, seen, y, state):
        return seen.logits[:, 0]
