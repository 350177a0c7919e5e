"""Each formula against a slow reference; what a score may depend on; what is refused."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity as Reference
from torch import nn

import withstand as ws
from withstand.attacks import PGD
from withstand.detection.adversarial import LID, DropoutVariance, Evading, KernelDensity, Mahalanobis, Odds
from withstand.detection.ood import MSP, Bank
from withstand.detection.ood.bank import content_ids
from withstand.errors import BadInput
from withstand.models import as_target
from withstand.random import Rows
from withstand.threats import Linf

ALL = [KernelDensity(), LID(k=5, batch=30), Mahalanobis(), Odds(samples=3), DropoutVariance(samples=4), MSP()]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Dropout2d(0.3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(16, 3, bias=False),
        ).double()  # fmt: skip


def images(n=12, seed=0):
    return Rows.count(seed, n).uniform((1, 8, 8), "x", dtype=torch.float64)


@pytest.fixture
def trusted(net):
    """Inputs with the class that the net itself gives them: each of three classes has some."""
    x = 0.5 + 0.5 * (images(120, 1) - 0.5)
    with torch.no_grad():
        z = net.eval()(x)
        net[-1].weight -= (z.mean(0)[:, None] * net[:-1](x).mean(0)) / net[:-1](x).mean(0).square().sum()
        y = net(x).argmax(1)
    assert y.bincount(minlength=3).min() >= 5
    return x, y


# Formulas ------------------------------------------------------------------------------------------------------------


def test_kernel_density_is_that_of_scikit_learn_in_the_predicted_class():
    bank, h, y = normal(40, 3), normal(7, 3, seed=1), torch.arange(40) % 2
    logits = torch.eye(2).double()[torch.tensor([0, 1, 1, 0, 1, 0, 0])]
    detector = KernelDensity(0.6)
    fitted = detector.fit({"penultimate": bank, "logits": torch.zeros(40, 2)}, y)
    found = detector.score({"penultimate": h, "logits": logits}, fitted)
    for value, point, said in zip(found, h, logits.argmax(1)):
        expected = Reference(bandwidth=0.6).fit(bank[y == said]).score_samples(point[None].numpy())[0]
        assert float(value) == pytest.approx(-expected, rel=1e-6)


def test_kernel_density_scores_in_blocks_alike(monkeypatch):
    features = {"penultimate": normal(30, 3), "logits": normal(30, 2, seed=1)}
    fitted = KernelDensity().fit(features, torch.arange(30) % 2)
    whole = KernelDensity().score(features, fitted)
    monkeypatch.setattr("withstand.detection.adversarial.kernel_density._PAIRS", 70)
    assert torch.equal(KernelDensity().score(features, fitted), whole)


@pytest.mark.parametrize("size", [1, 3])
def test_the_bandwidth_has_the_largest_leave_one_out_likelihood(size):
    h, y = normal(60, size), torch.arange(60) % 2
    fitted = float(KernelDensity().fit({"penultimate": h, "logits": torch.zeros(60, 2)}, y)["bandwidth"])

    def likelihood(b):
        total = 0.0
        for i in range(60):
            others = [j for j in range(60) if j != i and y[j] == y[i]]
            total += np.log(np.mean([multivariate_normal.pdf(h[i], h[j], b * b) for j in others]))
        return total

    assert likelihood(fitted) > max(likelihood(fitted * 1.13), likelihood(fitted / 1.13))


def naive_lid(h, batch, k):
    found = []
    for a in h:
        r = sorted(float(np.linalg.norm(a - b)) for b in batch)[:k]
        found.append(-1 / (sum(np.log(ri / r[-1]) for ri in r) / k))
    return np.array(found)


def test_lid_is_the_naive_loop_averaged_over_standardised_layers():
    layers = {"penultimate": normal(50, 4), "blocks/a": normal(50, 3, 2, 2, seed=1)}
    new = {"penultimate": normal(9, 4, seed=2), "blocks/a": normal(9, 3, 2, 2, seed=3)}
    detector = LID(k=6, batch=20)
    fitted = detector.fit(layers)
    chosen = np.linspace(0, 49, 20).round().astype(int)
    expected = np.zeros(9)
    for name, h in layers.items():
        flat = lambda v: (v.mean((2, 3)) if v.dim() == 4 else v).numpy()  # noqa: E731
        own = [
            naive_lid(flat(h)[i : i + 1], np.delete(flat(h)[chosen], np.flatnonzero(chosen == i), 0), 6)[0]
            for i in range(50)
        ]
        expected += (naive_lid(flat(new[name]), flat(h)[chosen], 6) - np.mean(own)) / np.std(own, ddof=1) / 2
    np.testing.assert_allclose(detector.score(new, fitted), expected, rtol=1e-9)


@pytest.mark.parametrize("dimension", [2, 5, 8])
def test_lid_of_points_in_a_ball_is_its_dimension(dimension):
    direction = normal(4000, dimension)
    ball = direction / direction.norm(dim=1, keepdim=True)
    ball = ball * torch.rand(4000, 1, generator=torch.Generator().manual_seed(1)).double() ** (1 / dimension)
    detector = LID(k=100, batch=4000)
    own, _ = detector.fit_layer(ball, None)
    centre = detector.score_layer(torch.zeros(1, dimension).double(), own)
    assert float(centre) == pytest.approx(dimension, rel=0.25)  # k neighbours: a deviation of about d / sqrt(k)


def test_lid_of_equal_distances_and_of_a_known_point_is_finite():
    detector = LID(k=3, batch=4)
    own = {"batch": torch.eye(4).double()}
    found = detector.score_layer(torch.cat([torch.zeros(1, 4), torch.eye(4)[:1]]).double(), own)
    assert torch.isfinite(found).all()
    assert found[0] == pytest.approx(1e4)


def test_mahalanobis_is_the_distance_of_scikit_learn_to_the_nearest_class():
    h, y, new = normal(80, 3) @ normal(3, 3, seed=4), torch.arange(80) % 4, normal(9, 3, seed=1)
    h[y == 2] += 3
    detector = Mahalanobis()
    own, scores = detector.fit_layer(h, y)
    means = np.stack([h[y == c].mean(0).numpy() for c in range(4)])
    reference = EmpiricalCovariance(assume_centered=True).fit(h.numpy() - means[y])
    expected = lambda v: np.min([reference.mahalanobis(v.numpy() - m) for m in means], 0)  # noqa: E731
    np.testing.assert_allclose(detector.score_layer(new, own), expected(new), rtol=1e-9)
    np.testing.assert_allclose(scores, expected(h), rtol=1e-9)


def test_mahalanobis_leaves_out_directions_that_do_not_vary():
    h = torch.cat([normal(30, 2), torch.zeros(30, 1).double()], 1)
    own, _ = Mahalanobis().fit_layer(h, torch.arange(30) % 2)
    moved = torch.tensor([[0.0, 0.0, 9.0]]).double()
    assert torch.allclose(Mahalanobis().score_layer(moved, own), Mahalanobis().score_layer(moved * 0, own))


def test_layers_are_weighed_by_a_logistic_regression_once_taught():
    trusted = {"a": normal(60, 3), "b": normal(60, 3, seed=1)}
    detector = Mahalanobis(layers=("a", "b"))
    fitted = detector.fit(trusted, torch.arange(60) % 2)
    clean = {k: normal(40, 3, seed=s) for s, k in enumerate("ab", 5)}
    attacked = {"a": 4 * normal(20, 3, seed=8), "b": normal(20, 3, seed=9)}  # layer a alone tells
    taught = detector.teach(clean, attacked, fitted)
    table = torch.cat([detector.table(clean, fitted), detector.table(attacked, fitted)]).numpy()
    reference = LogisticRegression(class_weight="balanced").fit(table, [0] * 40 + [1] * 20)
    np.testing.assert_allclose(taught["weights"], reference.coef_[0], rtol=1e-3)
    assert taught["weights"][0] > 3 * abs(taught["weights"][1])
    np.testing.assert_allclose(detector.score(clean, fitted), detector.table(clean, fitted).mean(1))
    with pytest.raises(BadInput, match="one kind"):
        detector.teach(clean, {k: v[:0] for k, v in attacked.items()}, fitted)


def test_odds_are_the_naive_loop(net, trusted):
    x, y = trusted
    target, wrong = as_target(net.eval()), y.clone()
    wrong[::9] = (y[::9] + 1) % 3  # examples that the model gets wrong do not count
    detector, T = Odds(noise=0.2, samples=4), 4
    bank = Bank(target, [detector], seed=3)
    fitted = bank.fit(x.split(50), wrong)

    def moves(v):
        with torch.no_grad():
            z = net(v)
            rows = Rows(3, content_ids(v))
            noisy = [net(v + 0.2 * rows.normal((1, 8, 8), "odds", t, v.dtype)) for t in range(T)]
        return z.argmax(1), np.array(
            [
                [[(f[i, c] - f[i, z[i].argmax()]) - (z[i, c] - z[i].max()) for c in range(3)] for f in noisy]
                for i in range(len(v))
            ]
        )

    said, g = moves(x)
    said_new, g_new = moves(images(8, 7))
    expected = []
    for label, moved in zip(said_new.tolist(), g_new):
        own = g[((said == label) & (said == wrong)).numpy()]
        z = [(moved[:, c].mean() - own[..., c].mean()) / own[..., c].std() for c in range(3) if c != label]
        expected.append(max(z))
    np.testing.assert_allclose(bank.score(images(8, 7), fitted)["odds"], expected, rtol=1e-9)


def test_dropout_variance_is_the_variance_of_the_probabilities():
    p = normal(5, 6, 3).softmax(2)
    expected = [np.mean([q @ q for q in one]) - one.mean(0) @ one.mean(0) for one in p.numpy()]
    np.testing.assert_allclose(DropoutVariance().score({"dropped": p}, {}), expected, rtol=1e-9)


def test_dropout_drops_whole_maps_and_single_values_at_their_rates(net):
    seen = {}
    net.eval()
    for name, after in (("1", 2), ("6", 7)):
        net[after].register_forward_pre_hook(lambda _, a, name=name: seen.setdefault(name, []).append(a[0].clone()))
    x = images(300)
    DropoutVariance(samples=4).look(as_target(net), x, Rows.count(0, 300))
    with torch.no_grad():
        maps = net[0](x)
    kept = torch.stack([d / maps for d in seen["1"][:4]])
    assert torch.allclose(kept, kept[..., :1, :1].expand_as(kept))
    assert set(kept.flatten().mul(0.7).round(decimals=6).tolist()) <= {0.0, 1.0}
    assert float((kept == 0).double().mean()) == pytest.approx(0.3, abs=0.03)
    assert len({tuple(k[:, :, 0, 0].flatten().tolist()) for k in kept}) == 4  # every pass draws anew
    zeros = torch.stack(seen["6"][:4]) == 0
    with torch.no_grad():
        alive = [net[3:6](torch.relu(d)) > 0 for d in seen["1"][:4]]
    assert float((zeros & torch.stack(alive)).sum() / torch.stack(alive).sum()) == pytest.approx(0.5, abs=0.03)
    with torch.no_grad():
        assert torch.equal(net(x), net(x))  # dropout is off again


# The contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_id", [False, True])
def test_scores_do_not_depend_on_the_batch_and_leave_the_model_alone(net, trusted, by_id):
    x, y = trusted
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bank = Bank(as_target(net), ALL, seed=1)
    fitted = bank.fit(x.split(50), y)
    new = images(20, 5)
    ids = torch.arange(100, 120) if by_id else None
    whole = bank.score(new, fitted, ids)
    assert list(whole) == ["kernel_density", "lid", "mahalanobis", "odds", "dropout_variance", "msp"]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for rows in order.split(7):
        for name, score in bank.score(new[rows], fitted, ids[rows] if by_id else None).items():
            assert score.dtype == torch.float64
            assert torch.allclose(score, whole[name][rows], rtol=1e-9, atol=1e-12), name
    moved = Bank(as_target(net), ALL, seed=2).score(new, fitted, ids)
    changed = {name for name in whole if not torch.allclose(whole[name], moved[name])}
    assert changed == {"odds", "dropout_variance"}
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_named_detectors_alone_are_scored_and_passes_are_shared(net, trusted):
    x, y = trusted
    bank = Bank(as_target(net), ALL)
    fitted = bank.fit([x], y)
    with ws.count_passes(net) as passes:
        found = bank.score(x, fitted, names=("lid", "odds"))
    assert list(found) == ["lid", "odds"]
    assert passes.forward_examples == len(x) * (1 + 3)


def test_the_default_layers_are_the_last_ones_input_and_the_blocks(net):
    bank = Bank(as_target(net), [LID()])
    assert {n: (t.name, t.side) for n, t in bank.places(images()).items()} == {
        "penultimate": ("model.7", "input"),
        "blocks/model.0": ("model.0", "output"),
        "blocks/model.4": ("model.4", "output"),
    }
    assert set(bank.read(images())["lid"]) == {"penultimate", "blocks/model.0", "blocks/model.4"}
    assert set(Bank(as_target(net), [LID(layers=("0", "2"))]).places(images())) == {"0", "2"}
    with pytest.raises(BadInput, match="submodule"):
        Bank(as_target(net), [LID(layers=("nowhere",))]).features(images())


def test_inputs_are_told_apart_by_what_is_in_them():
    x = images(4)
    x[2] = x[0]
    ids = content_ids(x)
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 3
    assert content_ids(x[1:2])[0] == ids[1]


def test_what_detectors_refuse(net, trusted):
    x, y = trusted
    plain = as_target(nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 3)))
    with pytest.raises(BadInput, match="no dropout modules"):
        Bank(plain, [DropoutVariance()])
    for detector in (KernelDensity(), Mahalanobis()):
        with pytest.raises(BadInput, match="labels"):
            Bank(as_target(net), [detector]).fit([x])
    with pytest.raises(BadInput, match="1 trusted examples of class 2"):
        Bank(as_target(net), [KernelDensity()]).fit(
            [x], torch.cat([torch.zeros(60), torch.ones(59), torch.ones(1) * 2]).long()
        )
    with pytest.raises(BadInput, match="trusted examples of class"):
        Bank(as_target(net), [Odds()]).fit([x[y == 0]], y[y == 0])
    with pytest.raises(BadInput, match="more than k = 20"):
        Bank(as_target(net), [LID()]).fit([x[:20]], y[:20])
    with pytest.raises(BadInput, match="batches"):
        Bank(as_target(net), [LID()]).fit([])
    for wrong in (
        lambda: KernelDensity(0.0), lambda: LID(k=1), lambda: LID(k=100), lambda: Odds(noise=0.0), lambda: Odds(samples=0),
        lambda: DropoutVariance(samples=1),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            wrong()


# The attacker who knows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", ALL, ids=lambda d: d.component_name)
def test_every_detector_can_be_searched_by_gradient(net, trusted, detector):
    """The value is the formula's, of the features that the engine read; the gradient goes the way of the value."""
    x, y = trusted
    bank = Bank(as_target(net), [detector], seed=1)
    fitted, name = bank.fit([x], y), detector.component_name
    objective = Evading(bank, name, fitted, x, 0.7, 0.1, 2.0)
    point = images(6, 9).requires_grad_()
    from withstand.attacks.engine.outputs import see
    from withstand.models.state import frozen

    ids = torch.arange(6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    with frozen(net):
        clean = see(bank.target, images(6, 9), ("model.0",))
        state = objective.begin(clean, labels, Rows(5, ids))
        seen = see(bank.target, point, objective.reads[2:])
        value = objective(seen, labels, state)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        assert gradient.abs().flatten(1).amax(1).gt(0).all()
        with torch.no_grad():
            z = net(point)
            own = Bank(bank.target, [detector], objective._seed).score(point.detach(), fitted, ids)[name]
            nearby = see(
                bank.target,
                point + 1e-6 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None],
                objective.reads[2:],
            )
            rise = objective(nearby, labels, state) - value
    at = z.gather(1, labels[:, None])[:, 0]
    m = z.scatter(1, labels[:, None], -torch.inf).amax(1) - at
    s = torch.asinh((own - 0.1) / 2.0)
    expected = torch.where(m > 0, 1000 - s, m / m.abs() - 0.7 * s)
    assert torch.allclose(value.detach(), expected)
    assert (m > 0).any()
    assert not (m > 0).all()
    assert (rise > 0).all()
    assert torch.allclose(rise, 1e-6 * gradient.flatten(1).norm(dim=1), rtol=0.05, atol=1e-9)


def test_the_attack_that_knows_a_detector_lowers_its_score(net, trusted):
    x, y = trusted
    target = as_target(net.eval())
    bank = Bank(target, [Mahalanobis()])
    fitted = bank.fit([x], y)
    found = {}
    for name, objective in (("plain", "margin"), ("knowing", Evading(bank, "mahalanobis", fitted, x))):
        adv = PGD(Linf(0.2), steps=20, objective=objective)(target, x, y)
        with torch.no_grad():
            wrong = target(adv).argmax(1) != y
        assert wrong.double().mean() > 0.9
        found[name] = bank.score(adv, fitted)["mahalanobis"]
    assert (found["knowing"] < found["plain"]).double().mean() > 0.9
    with pytest.raises(BadInput, match="spread"):
        Evading(bank, "mahalanobis", fitted, x, spread=0.0)


def test_the_fitted_tensors_can_be_kept(net, trusted, tmp_path):
    from safetensors.torch import load_file, save_file

    x, y = trusted
    bank = Bank(as_target(net), ALL, seed=1)
    fitted = bank.fit([x], y)
    save_file({k: v.contiguous() for k, v in fitted.items()}, tmp_path / "f.safetensors")
    again = bank.score(x[:5], load_file(tmp_path / "f.safetensors"))
    for name, score in bank.score(x[:5], fitted).items():
        assert torch.equal(score, again[name])


def test_distances_come_from_differences():
    """Far from the origin, |a|^2 - 2ab + |b|^2 would lose them."""
    from withstand.detection.adversarial.kernel_density import squared

    a, b = (normal(40, 5) + 1e6).float(), (normal(50, 5, seed=1) + 1e6).float()
    np.testing.assert_allclose(squared(a, b), cdist(a.numpy(), b.numpy()) ** 2, rtol=1e-3)
