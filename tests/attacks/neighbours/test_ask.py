"""The ASK attack, and the guided attacks that it is measured by, on a small classifier of the plane and of images."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks.neighbours.ask import ASK
from withstand.attacks.neighbours.mean_guide import MeanGuide, MeanGuideL2
from withstand.attacks.neighbours.soft_knn import ask_loss
from withstand.errors import BadInput
from withstand.models import HiddenKNN, TorchTarget
from withstand.random import Rows, derive
from withstand.threats import L2, Linf

CLASSES, K = 3, 3


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar whose place is the class, [n, 1, 6, 6]."""
    y = torch.arange(n) % CLASSES
    x = Rows.count(seed, n).uniform((1, 6, 6), "x", low=0.2, high=0.6)
    for c in range(CLASSES):
        x[y == c, :, 2 * c : 2 * c + 2] += 0.2
    return x, y


REFERENCES = images(30, 1)


@pytest.fixture(scope="module", params=["cosine", "l2"])
def knn(request) -> HiddenKNN:
    return HiddenKNN(network(), ["1", "3"], *REFERENCES, k=K, metric=request.param)


def by_hand(knn: HiddenKNN, x: Tensor, y: Tensor, attack: ASK, taus, kappas, start: Tensor | None = None) -> Tensor:
    """Steps from a start (x) on the loss of the sheet, with references of x found by sorting."""
    net, (x_ref, y_ref) = network(), REFERENCES
    layers = [lambda u: net[:2](u).flatten(1), lambda u: net[:4](u)]
    labels = torch.arange(CLASSES).repeat_interleave(attack.neighbours)
    found = []
    for h in layers:
        clean, refs = h(x).detach(), h(x_ref).detach()
        if knn.metric == "cosine":
            away = 1 - F.normalize(clean, dim=1) @ F.normalize(refs, dim=1).T
        else:
            away = (clean[:, None] - refs).norm(dim=2)
        chosen = []
        for c in range(CLASSES):
            rows = (y_ref == c).nonzero().flatten()
            chosen.append(rows[away[:, rows].argsort(1)[:, : attack.neighbours]])
        found.append(refs[torch.cat(chosen, 1)])
    z = x.clone() if start is None else start.clone()
    for _ in range(attack.steps):
        z.requires_grad_(True)
        loss = sum(
            kappa * ask_loss(h(z), y, refs, labels, tau, knn.metric, attack.form, floor=0).sum()
            for h, refs, tau, kappa in zip(layers, found, taus, kappas)
        )
        (gradient,) = torch.autograd.grad(loss, z)
        z = (z + attack.step * attack.threat.eps * gradient.sign()).detach()
        z = (x + (z - x).clamp(-attack.threat.eps, attack.threat.eps)).clamp(0, 1)
    return z


@pytest.mark.parametrize("form", ["class", "instance"])
def test_its_steps_are_those_of_the_sheet(knn, form):
    x, y = images(9, 2)
    attack = ASK(
        Linf(0.1), steps=4, neighbours=2, tau=(0.3, 0.6), kappa=(1.0, 0.5), form=form, random_start=False,
        keep="last", active=False,
    )  # fmt: skip
    expected = by_hand(knn, x, y, attack, (0.3, 0.6), (1.0, 0.5))
    torch.testing.assert_close(attack(knn, x, y), expected, rtol=0, atol=1e-6)


def test_it_starts_at_a_random_point(knn):
    x, y = images(9, 2)
    attack = ASK(Linf(0.1), steps=1, neighbours=2, tau=0.3, keep="last", active=False)
    start = Linf(0.1).random_start(x, _rows_of(attack, len(x)), "pgd", 0, (0.0, 1.0))
    expected = by_hand(knn, x, y, attack, (0.3, 0.3), (1.0, 1.0), start)
    torch.testing.assert_close(attack(knn, x, y), expected, rtol=0, atol=1e-6)


def test_the_real_vote_judges(knn):
    x, y = images(30, 2)
    found = ASK(Linf(0.08), steps=10, tau=0.05, neighbours=K).run(knn, x, y)
    assert torch.equal(found.success, knn.predict(found.x_adv) != y)
    clean = knn.predict(x) != y
    assert clean.sum() < found.success.sum() < 30


def test_it_breaks_more_than_noise_and_a_large_radius_leaves_nothing(knn):
    x, y = images(30, 2)
    noise = Linf(0.08).random_start(x, Rows.count(0, 30), box=(0.0, 1.0))
    found = ASK(Linf(0.08), tau=0.05, neighbours=K).run(knn, x, y)
    assert found.success.sum() >= (knn.predict(noise) != y).sum() + 5
    assert ASK(Linf(0.6), tau=0.05, neighbours=K).run(knn, x, y).success.all()


def test_without_room_or_start_it_returns_the_image(knn):
    x, y = images(9, 2)
    assert torch.equal(ASK(Linf(0.0), neighbours=K, keep="last", active=False)(knn, x, y), x)


def test_the_default_temperature_knows_the_scale_of_distances():
    """Features that are ten times as long make the same attack."""
    long = network()
    with torch.no_grad():
        long[0].weight *= 10
        long[0].bias *= 10
    x, y = images(9, 2)
    found = [
        ASK(Linf(0.1), neighbours=K)(HiddenKNN(n, ["1"], *REFERENCES, k=K, metric="l2"), x, y)
        for n in (network(), long)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    cosines = HiddenKNN(network(), ["1", "3"], *REFERENCES, k=K)
    default, stated = (ASK(Linf(0.1), neighbours=K, tau=tau)(cosines, x, y) for tau in (None, 0.01))
    assert torch.equal(default, stated)


def test_a_target_is_attacked_as_its_classifier_is(knn):
    x, y = images(9, 2)
    attack = ASK(Linf(0.1), neighbours=K)
    assert torch.equal(attack(TorchTarget(knn), x, y), attack(knn, x, y))


def test_an_example_that_is_a_reference_is_not_its_own(knn):
    """Else the nearest of its class is at distance zero, and says nothing."""
    x, y = REFERENCES[0][:6], REFERENCES[1][:6]
    attack = ASK(Linf(0.1), steps=1, step=1.0, neighbours=1, random_start=False, keep="last", active=False, tau=0.3)
    for i in range(6):
        rest = [torch.cat([t[:i], t[i + 1 :]]) for t in REFERENCES]
        others = HiddenKNN(network(), ["1", "3"], *rest, k=K, metric=knn.metric)
        torch.testing.assert_close(attack(knn, x, y)[i], attack(others, x[i : i + 1], y[i : i + 1])[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"neighbours": 0}, "neighbours"),
        ({"tau": 0.0}, "tau"),
        ({"tau": (0.1, -1.0)}, "tau"),
        ({"form": "sample"}, "form"),
        ({"kappa": (0.0, 0.0)}, "kappa"),
        ({"kappa": (1.0, -1.0)}, "kappa"),
        ({"steps": 0}, "steps"),
        ({"threat": Linf()}, "radius"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        ASK(**settings)


def test_what_does_not_fit_the_classifier_is_refused(knn):
    x, y = images(3, 2)
    with pytest.raises(BadInput, match="class 0 has"):
        ASK(Linf(0.1), neighbours=11)(knn, x, y)
    with pytest.raises(BadInput, match="one for each of the layers 1, 3"):
        ASK(Linf(0.1), neighbours=2, tau=(0.1, 0.1, 0.1))(knn, x, y)
    with pytest.raises(BadInput, match="one for each of the layers 1, 3"):
        ASK(Linf(0.1), neighbours=2, kappa=(1.0,))(knn, x, y)
    for attack in (ASK(), MeanGuide(), MeanGuideL2()):
        with pytest.raises(BadInput, match="kNN classifier"):
            attack(network(), x, y)


# Guides --------------------------------------------------------------------------------------------------------------


def guides_of(knn: HiddenKNN, x: Tensor, y: Tensor, m: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Features of x in both layers, positions of the guides [N, m] and of the friends [N, m], by sorting."""
    net, (x_ref, y_ref) = network(), REFERENCES
    unit = (lambda h: F.normalize(h, dim=1)) if knn.metric == "cosine" else (lambda h: h)
    h = [unit(net[:2](x).flatten(1)), unit(net[:4](x))]
    refs = [unit(net[:2](x_ref).flatten(1)).detach(), unit(net[:4](x_ref)).detach()]
    away = (h[1][:, None] - refs[1]).norm(dim=2)
    away = away.square() / 2 if knn.metric == "cosine" else away
    guides, friends = [], []
    for i in range(len(x)):
        near = {}
        for c in range(CLASSES):
            rows = (y_ref == c).nonzero().flatten()
            order = rows[away[i, rows].argsort()[:m]]
            near[c] = (float(away[i, order].detach().mean()), order)
        friends.append(near[int(y[i])][1])
        guides.append(min((v for c, v in near.items() if c != int(y[i])), key=lambda v: v[0])[1])
    return h, refs, [torch.stack(guides), torch.stack(friends)]


def guided(knn: HiddenKNN, x: Tensor, z: Tensor, y: Tensor, loss: str, m: int, sharpness: float = 4.0) -> Tensor:
    """Minus the loss of the sheet at z, summed."""
    clean, refs, (guides, friends) = guides_of(knn, x, y, m)
    moved, _, _ = guides_of(knn, z, y, m)
    value = torch.zeros(())
    for h0, h, r in zip(clean, moved, refs):
        if loss == "mean":
            value = value - (h[:, None] - r[guides]).square().sum()
            continue
        eta = (h0.detach()[:, None] - r).norm(dim=2).sort(1).values[:, knn.k - 1]
        for positions, w in ((guides, -1), (friends, 1)):
            d = (h[:, None] - r[positions]).norm(dim=2)
            value = value - w * torch.sigmoid(sharpness * (eta[:, None] - d)).sum()
    return value


@pytest.mark.parametrize("loss", ["mean", "sigmoid"])
def test_one_step_follows_the_loss_of_the_sheet(knn, loss):
    x, y = images(9, 2)
    attack = MeanGuide(
        Linf(0.1), guides=4, loss=loss, sharpness=3.0, rule="sign", steps=1, step=1.0, keep="last", active=False
    )
    start = Linf(0.1).random_start(x, _rows_of(attack, len(x)), "pgd", 0, (0.0, 1.0)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(guided(knn, x, start, y, loss, 4, 3.0), start)
    expected = (x + (start.detach() + 0.1 * gradient.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(attack(knn, x, y), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["mean", "sigmoid"])
def test_the_published_search_is_adam_inside_tanh(knn, loss):
    """Also from pixels at the end of their range, where tanh is flat."""
    x, y = images(9, 2)
    x[:, :, ::2] = 0.0
    x[:, :, 1::2, ::2] = 1.0
    low, high = (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)
    middle, half = (low + high) / 2, (high - low) / 2
    w = torch.atanh(((x - middle) / half).clamp(-0.99, 0.99)).requires_grad_(True)
    optimizer = torch.optim.Adam([w], lr=0.8, maximize=True)
    for _ in range(2):
        optimizer.zero_grad()
        guided(knn, x, middle + half * w.tanh(), y, loss, 4).backward()
        optimizer.step()
    found = MeanGuide(Linf(0.1), guides=4, loss=loss, steps=2, lr=0.8, keep="last", active=False)(knn, x, y)
    torch.testing.assert_close(found, (middle + half * w.tanh()).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["mean", "sigmoid"])
def test_an_example_that_is_a_reference_guides_itself_nowhere(knn, loss):
    """Nor is it its own friend. With a label that is not its own it would be its nearest guide."""
    x, y = REFERENCES[0][:6], REFERENCES[1][:6]
    y = (y + 1) % CLASSES if loss == "mean" else y
    attack = MeanGuide(Linf(0.1), guides=1, loss=loss, steps=2, lr=0.5, keep="last", active=False)
    for i in range(6):
        rest = [torch.cat([t[:i], t[i + 1 :]]) for t in REFERENCES]
        others = HiddenKNN(network(), ["1", "3"], *rest, k=K, metric=knn.metric)
        found, expected = (attack(m, x[i : i + 1], y[i : i + 1]) for m in (knn, others))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _rows_of(attack, n: int) -> Rows:
    return Rows(derive(0, attack.component_name), torch.arange(n))


@pytest.mark.parametrize("loss", ["mean", "sigmoid"])
def test_both_searches_come_nearer_to_the_guides_and_change_votes(knn, loss):
    x, y = images(30, 2)
    for settings in ({"rule": "sign", "steps": 10}, {"steps": 60, "lr": 0.1}):
        found = MeanGuide(Linf(0.15), guides=5, loss=loss, **settings).run(knn, x, y)
        assert torch.equal(found.success, knn.predict(found.x_adv) != y)
        assert found.success.sum() > (knn.predict(x) != y).sum() + 5
        last = MeanGuide(Linf(0.05), guides=5, keep="last", active=False, **settings)(knn, x, y)
        h0, refs, (guides, _) = guides_of(knn, x, y, 5)
        h1, _, _ = guides_of(knn, last, y, 5)
        before, after = ((h[1][:, None] - refs[1][guides]).square().sum((1, 2)) for h in (h0, h1))
        assert (after < before).float().mean() > 0.9


def test_the_nearest_points_change_votes_and_are_found_closer_with_more_searches(knn):
    x, y = images(12, 2)
    few, many = (MeanGuideL2(guides=5, steps=60, searches=s, lr=0.05, c=0.1).run(knn, x, y) for s in (2, 5))
    for found in (few, many):
        assert torch.equal(found.success, knn.predict(found.x_adv) != y)
    assert many.success.sum() >= few.success.sum() >= 6
    both = few.success & many.success
    assert many.distance[both].mean() <= few.distance[both].mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"guides": 0}, {"steps": 0}, {"lr": 0.0}, {"sharpness": 0.0}, {"loss": "median"}, {"rule": "random"},
        {"threat": Linf()}, {"threat": L2(1.0)},
    ],
)  # fmt: skip
def test_bad_settings_of_guides_are_refused(settings):
    with pytest.raises(BadInput):
        MeanGuide(**settings)


def test_more_guides_than_references_are_refused(knn):
    for attack in (MeanGuide(guides=11), MeanGuideL2(guides=11)):
        with pytest.raises(BadInput, match="class 0 has"):
            attack(knn, *images(3, 2))
    with pytest.raises(BadInput, match="l2"):
        MeanGuideL2(Linf(0.1))
