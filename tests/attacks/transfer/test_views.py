"""Each view and shaping against its formula, written out."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import withstand as ws
from withstand.errors import BadInput
from withstand.random import Rows
from withstand.registry import parse

from .naive import ascend, gradient

A = ws.attacks
EPS = 0.1


def run(attack, net, points, **context):
    return attack.run(net, *points, seed=3, **context)


def mi(**changes):
    return A.MI(ws.Linf(EPS), steps=5, **changes)


# Reductions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"views": (A.Diversity(probability=0.0),)},
        {"views": (A.Scale(copies=1),)},
        {"views": (A.Variance(radius=0.0, samples=4),)},
        {"views": (A.Admixture(portion=0.0),)},
        {"views": (A.Spectrum(rho=0.0, sigma=0.0, samples=2),)},
        {"views": (A.PenalisedNorm(radius=0.0, mix=0.0, samples=2),)},
        {"shapings": (A.Translation(size=1), A.Momentum())},
    ],
    ids=["diversity", "scale", "variance", "admixture", "spectrum", "penalised_norm", "translation"],
)
def test_without_its_effect_each_part_leaves_momentum_alone(changes, net, points):
    plain, reduced = run(mi(), net, points).x_adv, run(mi(**changes), net, points).x_adv
    assert torch.allclose(plain, reduced, atol=1e-12)
    assert not torch.equal(plain, points[0])


@pytest.mark.parametrize("views", [(), (A.Nesterov(),)], ids=["mi", "ni"])
def test_without_momentum_the_basic_iterative_method_is_left(views, net, points):
    basic = A.PGD(ws.Linf(EPS), steps=5, step=0.2, random_start=False, keep="last", active=False)
    reduced = mi(views=views, shapings=(A.Momentum(0.0),))
    assert torch.allclose(run(reduced, net, points).x_adv, run(basic, net, points).x_adv, atol=1e-12)


# Formulas --------------------------------------------------------------------------------------------------------


def test_momentum_steps_as_published(net, points):
    x, y = points
    assert torch.allclose(run(mi(), net, points).x_adv, ascend(x, EPS, 5, lambda z, t, m: gradient(net, z, y)))


def test_nesterov_looks_ahead_by_one_step_along_the_momentum(net, points):
    x, y = points
    look = lambda z, t, m: gradient(net, z + EPS / 5 * 0.7 * m, y)  # noqa: E731
    ours = run(mi(views=(A.Nesterov(),), shapings=(A.Momentum(0.7),)), net, points).x_adv
    assert torch.allclose(ours, ascend(x, EPS, 5, look, 0.7))
    assert not torch.allclose(ours, ascend(x, EPS, 5, lambda z, t, m: gradient(net, z, y), 0.7))


def test_scale_averages_the_loss_over_halved_copies(net, points):
    x, y = points

    def look(z, t, m):
        point = z.clone().requires_grad_(True)
        loss = sum(F.cross_entropy(net(point / 2**i), y, reduction="sum") for i in range(4)) / 4
        return torch.autograd.grad(loss, point)[0]

    assert torch.allclose(run(mi(views=(A.Scale(4),)), net, points).x_adv, ascend(x, EPS, 5, look))


def test_variance_of_one_step_corrects_the_next(net, points):
    """The view's own draws, rebuilt: neighbour i of step t is draw 4 t + i."""
    x, y = points
    attack = mi(views=(A.Variance(radius=1.5, samples=3),))
    rows = Rows(ws.random.derive(3, "mi"), torch.arange(len(x)))
    held = torch.zeros_like(x)

    def look(z, t, m):
        nonlocal held
        g = gradient(net, z, y)
        about = torch.zeros_like(g)
        for i in range(3):
            noise = rows.uniform((1, 6, 6), "variance", 4 * t + i + 1, -1, 1, dtype=torch.float64)
            about += gradient(net, z + 1.5 * EPS * noise, y) / 3
        corrected, held = g + held, about - g
        return corrected

    assert torch.allclose(run(attack, net, points).x_adv, ascend(x, EPS, 5, look))


def test_variance_moves_with_its_row_when_others_leave(net, points):
    attack = A.VMI(ws.Linf(EPS), steps=5, keep="best", active=True)
    whole = attack.run(net, *points, seed=2)
    assert int(whole.success.sum()) > 0
    assert len(set(whole.backwards.tolist())) > 1, "rows left at different steps"
    for i in range(0, 24, 5):
        alone = attack.run(net, points[0][i : i + 1], points[1][i : i + 1], seed=2, ids=torch.tensor([i]))
        assert torch.allclose(alone.x_adv, whole.x_adv[i : i + 1], atol=1e-12)


def test_diversity_is_resizing_padding_and_resizing_back():
    x = Rows.count(0, 40).uniform((2, 10, 10), "x", dtype=torch.float64)
    view, rows = A.Diversity(probability=1.0, rate=1.5), Rows.count(5, 40)
    shown = view.change(x, rows, 7)
    draws = rows.uniform((4,), "diversity", 7, dtype=torch.float64)
    sides = set()
    for i, (_, size, down, across) in enumerate(draws.tolist()):
        side = 10 + math.floor(size * 5)
        top, left = math.floor(down * (15 - side)), math.floor(across * (15 - side))
        larger = F.interpolate(x[i : i + 1], size=(side, side), mode="bilinear")
        padded = F.pad(larger, (left, 15 - side - left, top, 15 - side - top))
        assert torch.allclose(shown[i : i + 1], F.interpolate(padded, size=(10, 10), mode="bilinear"), atol=1e-12)
        sides.add((side, top, left))
    assert {s for s, *_ in sides} == {10, 11, 12, 13, 14}
    assert len(sides) > 10


def test_diversity_below_one_shrinks_inside_a_frame_of_zeros():
    x = Rows.count(0, 30).uniform((2, 10, 10), "x", dtype=torch.float64)
    rows = Rows.count(5, 30)
    shown = A.Diversity(probability=1.0, rate=0.75).change(x, rows, 7)
    sides = set()
    for i, (_, size, down, across) in enumerate(rows.uniform((4,), "diversity", 7, dtype=torch.float64).tolist()):
        side = 7 + math.floor(size * 3)
        top, left = math.floor(down * (10 - side)), math.floor(across * (10 - side))
        smaller = F.interpolate(x[i : i + 1], size=(side, side), mode="bilinear")
        padded = F.pad(smaller, (left, 10 - side - left, top, 10 - side - top))
        assert torch.allclose(shown[i : i + 1], padded, atol=1e-12)
        sides.add(side)
    assert sides == {7, 8, 9}


def test_diversity_takes_its_share_of_examples_and_oblong_images():
    x = Rows.count(0, 2000).uniform((1, 6, 9), "x", dtype=torch.float64)
    shown = A.Diversity(probability=0.3).change(x, Rows.count(1, 2000), 0)
    changed = (shown != x).flatten(1).any(1).double().mean()
    assert float(changed) == pytest.approx(0.3, abs=5 * (0.21 / 2000) ** 0.5)


def test_larger_diversity_shows_the_frame_itself_and_all_examples_change_together():
    x = Rows.count(0, 12).uniform((2, 10, 10), "x", dtype=torch.float64)
    view, rows = A.Diversity(rate=1.5, larger=True), Rows.count(5, 12)
    changed = 0
    for look in range(40):
        shown = view.change(x, rows, look)
        assert torch.equal(view.change(x[3:5], rows.take(torch.tensor([3, 4])), look), shown[3:5]), "no block decides"
        if shown.shape == x.shape:
            assert torch.equal(shown, x)
            continue
        changed += 1
        for i, (_, size, down, across) in enumerate(
            rows.uniform((4,), "diversity", look, dtype=torch.float64).tolist()
        ):
            side = 10 + math.floor(size * 5)
            top, left = math.floor(down * (15 - side)), math.floor(across * (15 - side))
            large = F.interpolate(x[i : i + 1], size=(side, side), mode="bilinear")
            padded = F.pad(large, (left, 15 - side - left, top, 15 - side - top))
            assert torch.allclose(shown[i : i + 1], padded, atol=1e-12)
    assert 10 <= changed <= 30


@pytest.mark.parametrize("larger", [False, True])
def test_gradients_pass_back_through_diversity_looks_made_ahead(net, points, larger):
    x, y = points
    any_size = nn.Sequential(
        nn.Conv2d(x.shape[1], 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    any_size.double()
    view = A.Diversity(rate=1.5, larger=larger)
    rows = Rows(ws.random.derive(3, "mi"), torch.arange(len(x)))
    sizes = set()

    def look(z, t, m):
        point = z.clone().requires_grad_(True)
        shown = view.change(point, rows, t)
        sizes.add(shown.shape[2])
        loss = F.cross_entropy(any_size(shown), y % 3, reduction="sum")
        return torch.autograd.grad(loss, point)[0]

    found = run(mi(views=(view,), shapings=()), any_size, (x, y % 3)).x_adv
    assert torch.allclose(found, ascend(x, EPS, 5, look, decay=0.0))
    assert len(sizes) == 1 + larger


def test_larger_diversity_refuses_a_model_of_one_size_before_work_starts(net, points):
    attack = mi(views=(A.Diversity(rate=1.5, larger=True),))
    with pytest.raises(BadInput, match=r"larger.*fails on images of"):
        run(attack, net, points)
    with pytest.raises(BadInput, match=r"rate.*leaves images"):
        run(mi(views=(A.Diversity(rate=1.01, larger=True),)), net, points)
    with pytest.raises(BadInput, match=r"larger.*a rate above 1"):
        A.Diversity(rate=0.5, larger=True)


def test_gradients_pass_back_through_diversity(net, points):
    x, y = points
    view = A.Diversity(probability=1.0)
    attack = mi(views=(view,), shapings=())
    rows = Rows(ws.random.derive(3, "mi"), torch.arange(len(x)))

    def look(z, t, m):
        point = z.clone().requires_grad_(True)
        loss = F.cross_entropy(net(view.change(point, rows, t)), y, reduction="sum")
        return torch.autograd.grad(loss, point)[0]

    assert torch.allclose(run(attack, net, points).x_adv, ascend(x, EPS, 5, look, decay=0.0))


def test_admixture_takes_images_of_other_labels(net, points):
    x, y = points
    seen = []

    def spy(z, rows, step):
        seen.append(z)
        return torch.zeros_like(z), torch.zeros(len(z))

    from withstand.attacks.engine import Problem

    search = Problem(net, x, y, Rows.count(0, 24), threat=ws.Linf(EPS), objective="cross_entropy")
    A.Admixture(portion=0.2, images=40).wrap(spy, search)(x, Rows.count(0, 24), 0)
    pairs = set()
    for z in seen:
        others = (z - x) / 0.2
        gap = (others[:, None] - x).abs().flatten(2).amax(2)
        assert float(gap.amin(1).max()) < 1e-9, "each is an image of the block"
        picked = y[gap.argmin(1)]
        assert (picked != y).all()
        pairs |= set(enumerate(gap.argmin(1).tolist()))
    assert len(pairs) > 250, "drawn from all of them"
    same = Problem(net, x, torch.zeros_like(y), Rows.count(0, 24), threat=ws.Linf(EPS), objective="cross_entropy")
    seen.clear()
    A.Admixture(images=40).wrap(spy, same)(x, Rows.count(0, 24), 0)
    assert all((z != x).flatten(1).any(1).all() for z in seen), "where all labels are one, any other image serves"


def test_spectrum_multiplies_the_cosine_transform(net, points):
    """A mask of one constant scales the image by it; and the transform itself keeps the energy."""
    from withstand.attacks.transfer.inputs import _dct

    basis = _dct(7, torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(basis @ basis.T, torch.eye(7, dtype=torch.float64), atol=1e-12)
    signal = torch.arange(7.0, dtype=torch.float64) ** 2
    naive = torch.stack(
        [
            sum(signal[j] * math.cos(math.pi * k * (2 * j + 1) / 14) for j in range(7))
            * math.sqrt((1 if k == 0 else 2) / 7)
            for k in range(7)
        ]
    )
    assert torch.allclose(basis @ signal, naive)
    seen = []

    def spy(z, rows, step):
        seen.append(z)
        return torch.ones_like(z) * len(seen), torch.zeros(len(z))

    x, rows = points[0], Rows.count(0, 24)
    g, _ = A.Spectrum(rho=0.5, sigma=0.1, samples=3)(spy)(x, rows, 2)
    assert torch.equal(g, torch.full_like(x, 2.0)), "gradients are averaged where they were taken"
    d = _dct(6, x)
    noisy = x + 0.1 * rows.normal((1, 6, 6), "spectrum noise", 7, torch.float64)
    mask = rows.uniform((1, 6, 6), "spectrum mask", 7, 0.5, 1.5, torch.float64)
    assert torch.allclose(d @ seen[1] @ d.T, d @ noisy @ d.T * mask, atol=1e-12)


def test_penalised_norm_mixes_the_gradient_behind_the_neighbour(net, points):
    x, y = points
    attack = mi(views=(A.PenalisedNorm(radius=3.0, mix=0.3, samples=2),))
    rows = Rows(ws.random.derive(3, "mi"), torch.arange(len(x)))

    def look(z, t, m):
        total = torch.zeros_like(z)
        size = EPS / 5 if t else EPS / 10
        for i in range(2):
            near = z + 3 * EPS * rows.uniform((1, 6, 6), "penalised norm", 2 * t + i, -1, 1, dtype=torch.float64)
            g = gradient(net, near, y)
            unit = torch.stack([row / row.abs().mean() for row in g])
            total += (0.7 * g + 0.3 * gradient(net, near - size * unit, y)) / 2
        return total

    assert torch.allclose(run(attack, net, points).x_adv, ascend(x, EPS, 5, look))


@pytest.mark.parametrize("kernel", ["gaussian", "uniform", "linear"])
def test_translation_is_a_convolution_with_the_kernel(kernel):
    g = Rows.count(0, 3).normal((2, 9, 8), "g", dtype=torch.float64)
    size, k = 5, 2
    weight = {
        "gaussian": lambda i: math.exp(-((i * 3 / k) ** 2) / 2),
        "uniform": lambda i: 1.0,
        "linear": lambda i: 1 - abs(i) / (k + 1),
    }[kernel]
    whole = sum(weight(i) * weight(j) for i in range(-k, k + 1) for j in range(-k, k + 1))
    naive = torch.zeros_like(g)
    for a in range(9):
        for b in range(8):
            for i in range(-k, k + 1):
                for j in range(-k, k + 1):
                    if 0 <= a + i < 9 and 0 <= b + j < 8:
                        naive[:, :, a, b] += weight(i) * weight(j) / whole * g[:, :, a + i, b + j]
    smoothed, memory = A.Translation(kernel, size)(g, None)
    assert torch.allclose(smoothed, naive, atol=1e-12)
    assert memory is None


# Costs, stacks, refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "per_step"),
    [
        ("mi", 1),
        ("ni", 1),
        ("di", 1),
        ("ti", 1),
        ("si", 5),
        ("vmi", 21),
        ("vni", 21),
        ("admix", 15),
        ("ssa", 20),
        ("pgn", 40),
        ("si_ni_ti_dim", 5),
        ("vni_si_ti_dim", 105),
    ],
)
def test_passes_are_those_of_the_definition(text, per_step, net, points):
    r = parse(f"{text}(steps=2)").run(net, *points)
    assert (r.forwards == 2 * per_step).all()
    assert (r.backwards == 2 * per_step).all()


def test_copies_inside_one_look_draw_anew(net, points):
    """Scale around diversity: every copy is resized in its own way, at every step."""
    seen = []
    view = A.Diversity(probability=1.0)

    def spy(z, rows, step):
        seen.append(step)
        return torch.zeros_like(z), torch.zeros(len(z))

    chain = A.EOT(2)(A.Scale(3)(view(spy)))
    for step in range(4):
        chain(points[0], Rows.count(0, 24), step)
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize("text", ["nesterov", "variance", "penalised_norm"])
def test_an_l2_radius_counts_by_its_mean_per_value(text, net, points):
    linf = A.MI(ws.Linf(0.05), steps=4, views=(parse(text),))
    l2 = A.MI(ws.L2(0.05 * 6), steps=4, views=(parse(text),))
    r = l2.run(net, *points)
    assert float(r.distance.max()) <= 0.3 + 1e-9
    assert not torch.equal(r.x_adv, linf(net, *points))
    with pytest.raises(BadInput, match="linf"):
        A.MI(ws.L1(1.0), steps=4, views=(parse(text),))(net, *points)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: A.Diversity(probability=1.5), "probability"),
        (lambda: A.Diversity(rate=1.0), "rate"),
        (lambda: A.Scale(0), "copies"),
        (lambda: A.Admixture(images=0), "images"),
        (lambda: A.Admixture(portion=-1.0), "portion"),
        (lambda: A.Spectrum(rho=-0.1), "rho"),
        (lambda: A.Spectrum(sigma=-0.1), "sigma"),
        (lambda: A.Spectrum(samples=0), "samples"),
        (lambda: A.Variance(radius=-1.0), "radius"),
        (lambda: A.Variance(samples=0), "samples"),
        (lambda: A.PenalisedNorm(mix=2.0), "mix"),
        (lambda: A.PenalisedNorm(radius=-2.0), "radius"),
        (lambda: A.PenalisedNorm(samples=0), "samples"),
        (lambda: A.Translation(size=4), "odd"),
        (lambda: A.MI(steps=0), "steps"),
        (lambda: A.MI(ws.Linf(None)), "radius"),
        (lambda: A.MI(ws.Linf(0.1), keep="last", active=True).run(torch.nn.Identity(), torch.zeros(1, 3)), "keep"),
    ],
)
def test_senseless_settings_are_refused(build, said):
    with pytest.raises(BadInput, match=said):
        build()


def test_what_a_search_cannot_give_is_refused_before_it_starts(net, points):
    x, y = points
    with pytest.raises(BadInput, match="momentum"):
        A.NI(shapings=())(net, x, y)
    with pytest.raises(BadInput, match="one example"):
        A.Admix()(net, x[:1], y[:1])
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3).double())
    for attack in (A.DI(), A.TI(), A.SSA()):
        with pytest.raises(BadInput, match=r"\[N, C, H, W\]"):
            attack(flat, x.flatten(1), y % 3)
