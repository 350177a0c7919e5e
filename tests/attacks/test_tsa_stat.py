"""TSA-STAT: its parts against naive ones, its forms, and what it promises on series."""

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks import PGD, TSASTAT
from withstand.attacks.tsa_stat import universal_coefficients
from withstand.errors import BadInput
from withstand.hardening.harden import harden, judge_of
from withstand.parameterisations import Polynomial
from withstand.registry import parse
from withstand.statistics import Statistics
from withstand.training import Trainer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, 4)).double().eval()
    for parameter in net.parameters():
        parameter.data.mul_(3)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def x():
    return ws.Rows.count(0, 16).normal((2, 20), "x", dtype=torch.float64)


@pytest.fixture(scope="module")
def y(model, x):
    return model(x).argmax(1)


def run(attack, model, x, y, **more):
    return attack.run(model, x, y, box=None, **more)


@pytest.mark.parametrize("degree", [0, 1, 2, 5])
def test_identity_coefficients_change_nothing(x, degree):
    polynomial = Polynomial(degree)
    z = polynomial.decode(polynomial.identity(x), x)
    assert torch.equal(z, x)
    assert Statistics().distance(x, z).max() == 0


def test_polynomials_are_those_of_a_naive_loop(x):
    a = ws.Rows.count(1, 16).normal((4, 2, 20), "a", dtype=torch.float64)
    z = Polynomial(3).decode({"coefficients": a}, x)
    for i, c, j in ((0, 0, 0), (5, 1, 19), (15, 0, 7)):
        wanted = sum(float(a[i, k, c, j]) * float(x[i, c, j]) ** k for k in range(4))
        assert float(z[i, c, j]) == pytest.approx(wanted)
    assert Polynomial(3, box=(-1.0, 1.0)).decode({"coefficients": a}, x).abs().max() == 1


def test_degree_one_holds_every_additive_change(x):
    delta = ws.Rows.count(1, 16).normal((1, 2, 20), "delta", dtype=torch.float64)
    one = torch.cat([delta, torch.ones_like(delta)], 1)
    added = Polynomial(0).decode({"coefficients": delta}, x)
    assert torch.equal(added, x + delta[:, 0])
    torch.testing.assert_close(Polynomial(1).decode({"coefficients": one}, x), added)


def test_the_parameterisation_serves_other_attacks(model, x, y):
    attack = PGD(ws.Linf(0.2), steps=5, step=0.5, parameterisation=Polynomial(1), random_start=False)
    found = run(attack, model, x, y)
    assert 0 < float((found.x_adv - x).abs().max()) <= 0.2 * (1 + float(x.abs().max())) + 1e-9
    assert bool(found.success.any())


def naive(model, x, t, a, steps, lr, rho):
    """Descent for one series of degree 0, step by step, with all points' losses."""
    points = []
    for step in range(steps + 1):
        leaf = a.clone().requires_grad_(True)
        z = x + leaf
        logits = model(z[None])[0]
        margin = torch.stack([logits[k] for k in range(4) if k != t]).max() - logits[t]
        loss = margin.clamp_min(rho) + Statistics().distance(x[None], z[None])[0]
        points.append((z.detach(), float(loss.detach()), int(logits.argmax()) == t))
        if points[-1][1] <= rho + 0.01:
            break
        a = a - max(lr * 0.5 ** (step // 100), 1e-4) * torch.autograd.grad(loss, leaf)[0]
    hits = [p for p in points if p[2]] or points
    return min(hits, key=lambda p: p[1])


def test_the_search_is_a_naive_descent(model, x, y):
    rows = torch.arange(16)[y != 1][:3]
    attack = TSASTAT(target=1, steps=130, rho=-0.5)
    found = run(attack, model, x[rows], y[rows], ids=rows, seed=3)
    seed = ws.random.derive(3, "tsa_stat")
    start = ws.Rows(seed, rows).uniform((1, 2, 20), "coefficients", 0, -1.0, 1.0, torch.float64)[:, 0]
    for i in range(3):
        z, loss, hit = naive(model, x[rows[i]], 1, start[i], 130, 0.5, -0.5)
        torch.testing.assert_close(found.x_adv[i], z, rtol=0, atol=1e-8)
        assert float(found.value[i]) == pytest.approx(-loss, abs=1e-6)
        assert bool(found.success[i]) == hit
    assert int(found.forwards.max()) <= 132
    assert torch.equal(found.distance, Statistics().distance(x[rows], found.x_adv))


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_coefficients_of_large_powers_move_less_and_none_moves_more(model, x, scale):
    x, polynomial = scale * x[:4], Polynomial(2)
    t = (model(x).argmax(1)[0] + 1).remainder(4).item()
    rows = (model(x).argmax(1) != t).nonzero().flatten()
    x = x[rows]
    attack = TSASTAT(target=t, degree=2, steps=1, keep="last", active=False)
    found = run(attack, model, x, model(x).argmax(1), ids=rows, seed=3).x_adv
    noise = ws.Rows(ws.random.derive(3, "tsa_stat"), rows).uniform(
        (3, 2, 20), "coefficients", 0, -0.01, 0.01, torch.float64
    )
    a = (noise + polynomial.identity(x)["coefficients"]).requires_grad_(True)
    z = polynomial.decode({"coefficients": a}, x)
    logits = model(z)
    others = logits.scatter(1, torch.full((len(x), 1), t), -torch.inf).amax(1)
    loss = (others - logits[:, t]).clamp_min(-1.0) + Statistics().distance(x, z)
    (gradient,) = torch.autograd.grad(loss.sum(), a)
    size = torch.stack([(x ** (2 * k)).mean((1, 2)).clamp_min(1) for k in range(3)], 1)[..., None, None]
    wanted = polynomial.decode({"coefficients": a.detach() - 0.5 * gradient / size}, x)
    torch.testing.assert_close(found, wanted)


def test_the_price_keeps_the_features(model, x, y):
    priced = run(TSASTAT(steps=200), model, x, y)
    free = run(TSASTAT(steps=200, stat_weight=0.0), model, x, y)
    assert priced.success.all()
    assert free.success.all()
    assert priced.distance.mean() < 0.5 * free.distance.mean()


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_coefficients_make_the_points(model, x, y, degree):
    found = run(TSASTAT(degree=degree, steps=60), model, x, y, block=5)
    made = Polynomial(degree).decode({"coefficients": found.notes["coefficients"]}, x)
    torch.testing.assert_close(made, found.x_adv)
    assert float(found.success.double().mean()) > 0.8


def test_a_point_outside_the_tolerance_has_failed(model, x, y):
    strict = run(TSASTAT(Statistics(1e-9), steps=30), model, x, y)
    assert not strict.success.any()
    assert torch.equal(strict.x_adv, x)
    loose = run(TSASTAT(Statistics(0.3), steps=200), model, x, y)
    assert loose.success.any()
    assert bool((loose.distance[loose.success] <= 0.3 + 1e-6).all())
    assert bool((model(loose.x_adv).argmax(1) != y)[loose.success].all())


def test_series_of_the_target_class_are_left_alone(model, x, y):
    target = int(y.bincount().argmax())
    found = run(TSASTAT(target=target, steps=30), model, x, y)
    assert not found.success[y == target].any()
    assert torch.equal(found.x_adv[y == target], x[y == target])
    assert found.forwards[y == target].max() == 1
    hits = model(found.x_adv).argmax(1) == target
    assert torch.equal(found.success, hits & (y != target))


def test_one_transformation_serves_a_class(model, x, y):
    attack = TSASTAT(target=1, steps=150, universal=True)
    found = run(attack, model, x, y, block=3)
    a = found.notes["coefficients"]
    attacked = y[(y != 1)]
    for c in attacked.unique():
        mine = (y == c).nonzero().flatten()
        assert torch.equal(a[mine], a[mine[:1]].expand_as(a[mine]))
    new = ws.Rows.count(9, 40).normal((2, 20), "x", dtype=torch.float64)
    label = model(new).argmax(1)
    keep = torch.isin(label, y.unique())
    new, label = new[keep], label[keep]
    moved = Polynomial(0).decode({"coefficients": universal_coefficients(found, y, label)}, new)
    hit = (model(moved).argmax(1) == 1)[label != 1].double().mean()
    assert hit > 0.5
    with pytest.raises(BadInput, match="labels that were attacked"):
        universal_coefficients(found, y, torch.tensor([7]))


def test_a_warm_start_begins_where_the_last_of_its_class_ended(model, x, y):
    rows = torch.cat([(y == c).nonzero().flatten()[:1].expand(2) for c in y.unique()])  # every series twice
    attack = TSASTAT(steps=3000, rho=-0.5, warm_start=True)
    found = run(attack, model, x[rows], y[rows])
    cost = found.forwards.reshape(-1, 2)
    done = found.value.reshape(-1, 2)[:, 0] >= 0.49
    assert done.any()
    assert bool((cost[done, 1] == 2).all())  # the clean pass, and one look at what was found before
    assert bool((cost[done, 0] > 2).all())


def test_it_trains_in_both_recipes_and_judges_epochs(x):
    data = ws.data.from_series(x, torch.arange(16) % 2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    for recipe in ("pgd_at(attack=tsa_stat(steps=3))", "half_half(attack=tsa_stat(statistics(0.5), steps=3))"):
        done = harden(net, data, parse(recipe, "recipe"), trainer=Trainer(epochs=1, batch=8), validation=0.5, seed=0)
        assert done.module is not None
    attack = parse("tsa_stat(statistics(0.5), steps=3)", "attack")
    assert judge_of("auto", parse("pgd_at(attack=tsa_stat(statistics(0.5), steps=3))", "recipe")) == attack


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TSASTAT(rho=0.0), "rho"),
        (lambda: TSASTAT(degree=-1), "degree"),
        (lambda: TSASTAT(target=-1), "target"),
        (lambda: TSASTAT(steps=0), "steps"),
        (lambda: TSASTAT(lr=0.0), "lr"),
        (lambda: TSASTAT(stat_weight=-1.0), "weight"),
        (lambda: TSASTAT(threat=ws.Linf(0.1)), "statistics"),
        (lambda: TSASTAT(universal=True, warm_start=True), "warm_start"),
    ],
)
def test_bad_settings_are_refused(build, said):
    with pytest.raises(BadInput, match=said):
        build()


def test_bad_series_are_refused(model, x, y):
    constant = x.clone()
    constant[2, 1] = 4.0
    for series, said in (
        (constant, "constant channel 1 in series 2"),
        (x.where(x < 2, torch.nan), "NaN"),
        (x[:, :, :3], "at least 4"),
    ):
        with pytest.raises(BadInput, match=said):
            run(TSASTAT(steps=2), model, series, y)
    with pytest.raises(BadInput, match="target: got 9"):
        run(TSASTAT(target=9, steps=2), model, x, y)
    features = Statistics(features=("mean", "std"))
    assert run(TSASTAT(features, steps=2), model, constant, y).x_adv.isfinite().all()
