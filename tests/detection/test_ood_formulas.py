"""Detectors of unfamiliar inputs against their formulas, one example at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from torch import nn

import withstand as ws
from withstand.detection.ood import (
    ASH,
    BATS,
    DICE,
    GEN,
    MDS,
    MSP,
    ODIN,
    RMDS,
    SHE,
    Bank,
    Energy,
    GradNorm,
    KLMatching,
    MaxLogit,
    ReAct,
    TemperatureScaling,
    ViM,
)  # fmt: skip
from withstand.detection.ood.linear import percentile
from withstand.errors import BadInput
from withstand.models import as_target

N, D, K = 60, 7, 3


@pytest.fixture
def seen():
    """Features, logits, head and labels of a random last layer."""
    g = torch.Generator().manual_seed(0)
    w, b = torch.randn(K, D, generator=g).double(), torch.randn(K, generator=g).double()
    h = torch.randn(N, D, generator=g).double().relu() + 0.1 * torch.randn(N, D, generator=g).double()
    z = h @ w.T + b
    y = torch.where(torch.rand(N, generator=g) < 0.8, z.argmax(1), torch.randint(0, K, (N,), generator=g))
    return {"penultimate": h, "logits": z, "head": torch.cat([w, b[:, None]], 1)}, y


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, K)
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -0.8, 1.0, 0.3]))
        model[1].bias.copy_(torch.tensor([0.1, 0.2, -0.1, 0.0]))
        model[1].running_var.fill_(0.02)
        model[1].running_mean.copy_(torch.tensor([0.1, -0.1, 0.0, 0.2]))
    return model


def images(n=24, seed=0):
    return ws.Rows.count(seed, n).uniform((1, 8, 8), "x", dtype=torch.float64)


def energies(z):
    return -np.log(np.exp(z).sum(-1))


def test_gen(seen):
    p = seen[0]["logits"].softmax(1).numpy()
    top = -np.sort(-p, axis=1)
    assert np.allclose(GEN(0.3, 2).score(seen[0], {}), ((top * (1 - top)) ** 0.3)[:, :2].sum(1))
    assert np.allclose(GEN().score(seen[0], {}), ((p * (1 - p)) ** 0.1).sum(1))


def test_temperature_scaling_finds_the_temperature_of_least_loss(seen):
    features, y = seen
    fitted = TemperatureScaling().fit(features, y)
    grid = np.exp(np.linspace(-3, 3, 6001))
    losses = [float(F.cross_entropy(features["logits"] / t, y)) for t in grid]
    assert float(fitted["temperature"]) == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    p = (features["logits"] / fitted["temperature"]).softmax(1)
    assert torch.allclose(TemperatureScaling().score(features, fitted), 1 - p.amax(1))


def test_kl_matching(seen):
    features, _ = seen
    p = features["logits"].softmax(1).numpy()
    profiles = [p[p.argmax(1) == c].mean(0) for c in set(p.argmax(1).tolist())]
    naive = [min(entropy(row, q) for q in profiles) for row in p]
    fitted = KLMatching().fit(features)
    assert np.allclose(KLMatching().score(features, fitted), naive)


def test_kl_matching_passes_over_classes_that_nobody_is_predicted_as():
    z = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]).double()
    assert KLMatching().fit({"logits": z})["profiles"].shape == (2, 3)


def test_react(seen):
    features, _ = seen
    h, head = features["penultimate"].numpy(), features["head"].numpy()
    cut = np.percentile(h, 80)
    naive = energies(np.minimum(h, cut) @ head[:, :-1].T + head[:, -1])
    detector = ReAct(80)
    assert np.allclose(detector.score(features, detector.fit(features)), naive)


def test_dice(seen):
    features, _ = seen
    h, head = features["penultimate"].numpy(), features["head"].numpy()
    share = h.mean(0) * head[:, :-1]
    kept = head[:, :-1] * (share > np.percentile(share, 60))
    detector = DICE(60)
    assert np.allclose(detector.score(features, detector.fit(features)), energies(h @ kept.T + head[:, -1]))


@pytest.mark.parametrize("variant", ["b", "s", "p"])
def test_ash(seen, variant):
    features, _ = seen
    h, head = features["penultimate"].numpy(), features["head"].numpy()
    naive = []
    for row in h:
        k = D - round(D * 0.6)
        kept = np.argsort(-row)[:k]
        new = np.zeros(D)
        new[kept] = {"b": row.sum() / k, "s": row[kept] * np.exp(row.sum() / row[kept].sum()), "p": row[kept]}[variant]
        naive.append(energies(new @ head[:, :-1].T + head[:, -1]))
    assert np.allclose(ASH(60, variant).score(features, {}), naive)


def test_ash_of_an_example_without_active_features(seen):
    features = {**seen[0], "penultimate": torch.zeros(2, D).double()}
    head = features["head"]
    for variant in "bsp":
        assert torch.allclose(ASH(variant=variant).score(features, {}), -head[:, -1].logsumexp(0).expand(2))


@pytest.mark.parametrize("t", [1.0, 2.0])
def test_gradnorm_is_the_norm_of_the_gradient(seen, t):
    features, _ = seen
    naive = []
    for h in features["penultimate"]:
        w = features["head"][:, :-1].clone().requires_grad_()
        loss = -((w @ h + features["head"][:, -1]) / t).log_softmax(0).sum()
        naive.append(-float(torch.autograd.grad(loss, w)[0].abs().sum()) * t)
    assert np.allclose(GradNorm(t).score(features, {}), naive)


def test_vim(seen):
    features, _ = seen
    h, head, z = (features[k].numpy() for k in ("penultimate", "head", "logits"))
    centred = h + np.linalg.pinv(head[:, :-1]) @ head[:, -1]
    variance, axes = np.linalg.eig(centred.T @ centred / N)
    null = axes[:, np.argsort(-variance)[4:]]
    norms = np.linalg.norm(centred @ null, axis=1)
    naive = z.max(1).mean() / norms.mean() * norms - np.log(np.exp(z).sum(1))
    detector = ViM(4)
    assert np.allclose(detector.score(features, detector.fit(features)), naive)


def test_vim_keeps_half_of_the_directions_that_are_used(seen):
    features, _ = seen
    flat = features["penultimate"].clone()
    flat[:, 4:] = 0  # dead units
    head = features["head"].clone()
    head[:, -1] = 0  # an origin of zero
    flat = {**features, "penultimate": flat, "head": head}
    one, two = ViM().fit(flat), ViM(2).fit(flat)
    assert one["null"].shape == (D, D - 2)
    assert torch.equal(one["alpha"], two["alpha"])


def test_what_vim_refuses(seen):
    with pytest.raises(BadInput, match="1 to 6"):
        ViM(D).fit(seen[0])
    flat = seen[0]["penultimate"].clone()
    flat[:, 2:] = 0
    head = torch.cat([seen[0]["head"][:, :-1], torch.zeros(K, 1)], 1)
    with pytest.raises(BadInput, match="residual"):
        ViM(4).fit({**seen[0], "penultimate": flat, "head": head})


def naive_distance(h, means, cov):
    inverse = np.linalg.inv(cov)
    return np.array([[(row - m) @ inverse @ (row - m) for m in means] for row in h])


def test_mds_and_rmds(seen):
    features, y = seen
    h, y = features["penultimate"].numpy(), y.numpy()
    means = [h[y == c].mean(0) for c in range(K)]
    within = h - np.stack(means)[y]
    near = naive_distance(h, means, within.T @ within / N).min(1)
    fitted = MDS().fit(features, seen[1])
    assert np.allclose(MDS().score(features, fitted), near)
    everyone = naive_distance(h, [h.mean(0)], np.cov(h.T, bias=True))[:, 0]
    fitted = RMDS().fit(features, seen[1])
    assert np.allclose(RMDS().score(features, fitted), near - everyone)


def test_she(seen):
    features, y = seen
    h, said = features["penultimate"], features["logits"].argmax(1)
    patterns = [h[(said == c) & (y == c)].mean(0) for c in range(K)]
    naive = torch.stack([-(row @ patterns[c]) for row, c in zip(h, said.tolist())])
    assert torch.allclose(SHE().score(features, SHE().fit(features, y)), naive)


@pytest.mark.parametrize("detector", [TemperatureScaling(), MDS(), RMDS(), SHE()])
def test_labels_are_needed_where_they_are_used(seen, detector):
    with pytest.raises(BadInput, match="labels"):
        detector.fit(seen[0])


def test_a_percentile_is_that_of_numpy():
    for n in (1, 2, 7, 50):
        values = torch.rand(n, generator=torch.Generator().manual_seed(n)).double()
        for q in (1, 37.5, 90, 99.9):
            assert float(percentile(values, q)) == pytest.approx(np.percentile(values, q))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReAct(0), lambda: DICE(100), lambda: ASH(float("nan")), lambda: ASH(variant="x"), lambda: GEN(1.0),
        lambda: GEN(largest=0), lambda: GradNorm(0), lambda: ODIN(0), lambda: ODIN(eps=-1), lambda: BATS(lam=-1),
        lambda: BATS(lam=float("nan")), lambda: BATS(images=1), lambda: BATS(layer="1", where="penultimate"),
        lambda: BATS(BATS()),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(BadInput):
        make()


# ODIN ----------------------------------------------------------------------------------------------------------------


def test_odin_steps_against_the_loss_of_its_prediction():
    model, x = net(), images(5)
    naive = []
    for image in x:
        at = image[None].clone().requires_grad_()
        z = model(at) / 3.0
        step = torch.autograd.grad(F.cross_entropy(z, z.argmax(1)), at)[0].sign()
        naive.append(1 - float((model(at - 0.02 * step) / 3.0).detach().softmax(1).max()))
    bank = Bank(as_target(model), [ODIN(3.0, 0.02)])
    assert np.allclose(bank.score(x, {})["odin"], naive)


def test_odin_costs_a_backward_and_a_forward_pass_beside_the_others():
    model, x = net(), images(6)
    bank = Bank(as_target(model), [MSP(), Energy(), ODIN()])
    bank.score(x, {})
    with ws.count_passes(model) as passes:
        bank.score(x, {})
    assert (passes.forward_examples, passes.backward_examples) == (12, 6)
    alone = Bank(as_target(model), [MSP()]).score(x, {})
    assert torch.equal(bank.score(x, {})["msp"], alone["msp"])


def test_several_detectors_may_climb():
    x = images(4)
    both = Bank(as_target(net()), [ODIN(2.0, 0.01), ODIN(5.0, 0.02)]).score(x, {})
    for name, detector in (("odin", ODIN(2.0, 0.01)), ("odin-2", ODIN(5.0, 0.02))):
        assert torch.allclose(both[name], Bank(as_target(net()), [detector]).score(x, {})["odin"])


def test_odin_wants_gradients():
    from withstand.models.target import TorchTarget

    class Black(TorchTarget):
        access = frozenset({"scores"})

    with pytest.raises(BadInput, match="gradients"):
        Bank(Black(net()), [ODIN()])


# BATS ----------------------------------------------------------------------------------------------------------------


def clipped(model, x, lam):
    """The network with the output of its batch norm in the typical range, written out."""
    h = model[1](model[0](x))
    mean, deviation = model[1].bias.view(1, -1, 1, 1), model[1].weight.abs().view(1, -1, 1, 1)
    return model[2:](torch.minimum(torch.maximum(h, mean - lam * deviation), mean + lam * deviation))


@pytest.mark.parametrize("lam", [0.0, 0.7, 2.0])
def test_bats_clips_what_the_last_batch_norm_makes(lam):
    model, x = net(), images()
    bank = Bank(as_target(model), [Energy(), BATS(lam=lam), BATS(MaxLogit(), lam=lam)])
    fitted = bank.fit([x])
    with torch.no_grad():
        z = clipped(model, x, lam)
    scores = bank.score(x, fitted)
    assert list(scores) == ["energy", "energy+bats", "max_logit+bats"]
    assert torch.allclose(scores["energy+bats"], -z.logsumexp(1))
    assert torch.allclose(scores["max_logit+bats"], -z.amax(1))
    if lam == 0:
        assert torch.allclose(scores["energy+bats"], scores["energy+bats"][:1])


@pytest.mark.parametrize("where", ["bn", "penultimate", "published"])
def test_a_wide_range_changes_nothing(where):
    model, x = net(), images()
    bank = Bank(as_target(model), [Energy(), BATS(lam=1e6, where=where)])
    scores = bank.score(x, bank.fit([x]))
    assert torch.equal(scores["energy"], scores["energy+bats"])


def test_what_is_clipped_before_the_last_layer():
    model, x = net(), images()
    with torch.no_grad():
        h = model[:-1](x)
        m, s = h.mean(0), h.std(0, correction=0)
        expected = -model[-1](h.clamp(m - 0.5 * s, m + 0.5 * s)).logsumexp(1)
        b, g = model[1].bias, model[1].weight.abs()
        published = -model[-1](h.clamp(b - 0.5 * g, b + 0.5 * g)).logsumexp(1)
    bank = Bank(as_target(model), [BATS(lam=0.5, where="penultimate"), BATS(lam=0.5, where="published")])
    scores = bank.score(x, bank.fit(x.split(10)))
    assert torch.allclose(scores["energy+bats"], expected)
    assert torch.allclose(scores["energy+bats-2"], published)


def test_a_few_images_are_the_first():
    model, x = net(), images()
    few = Bank(as_target(model), [BATS(where="penultimate", images=7)]).fit(x.split(4))
    alone = Bank(as_target(model), [BATS(where="penultimate")]).fit([x[:7]])
    assert torch.allclose(few["energy+bats.mean"], alone["energy+bats.mean"])
    assert torch.allclose(few["energy+bats.deviation"], alone["energy+bats.deviation"])


def test_a_layer_by_name_is_clipped_by_what_it_returns():
    model, x = net(), images()
    bank = Bank(as_target(model), [BATS(lam=0.5, layer="0")])
    with torch.no_grad():
        h = model[0](x)
        m = h.mean((0, 2, 3)).view(1, -1, 1, 1)
        s = h.std((0, 2, 3), correction=0).view(1, -1, 1, 1)
        expected = -model[1:](torch.minimum(torch.maximum(h, m - 0.5 * s), m + 0.5 * s)).logsumexp(1)
    assert torch.allclose(bank.score(x, bank.fit([x]))["energy+bats"], expected)


def test_fitted_detectors_are_fitted_on_clipped_features():
    model, x, y = net(), images(), torch.arange(24) % K
    bank = Bank(as_target(model), [MDS(), BATS(MDS(), lam=0.5, where="penultimate"), BATS(ViM(2), lam=0.5)])
    fitted = bank.fit(x.split(10), y)
    with torch.no_grad():
        h = model[:-1](x)
        m, s = h.mean(0), h.std(0, correction=0)
        h = h.clamp(m - 0.5 * s, m + 0.5 * s)
        z = model[-1](h)
    expected = MDS().score({"penultimate": h}, MDS().fit({"penultimate": h}, y))
    scores = bank.score(x, fitted)
    assert torch.allclose(scores["mds+bats"], expected)
    assert not torch.allclose(scores["mds+bats"], scores["mds"])
    assert z.shape == (24, K)
    again = Bank(as_target(net()), [BATS(MDS(), lam=0.5, where="penultimate")])
    kept = {k: v.clone() for k, v in fitted.items() if k.startswith("mds+bats")}
    assert torch.allclose(again.score(x, kept)["mds+bats"], expected)  # from what was kept, in another bank


def test_odin_walks_along_clipped_features():
    model, x = net(), images(5)
    naive = []
    for image in x:
        at = image[None].clone().requires_grad_()
        z = clipped(model, at, 0.5) / 10
        step = torch.autograd.grad(F.cross_entropy(z, z.argmax(1)), at)[0].sign()
        naive.append(1 - float((clipped(model, at - 0.02 * step, 0.5) / 10).detach().softmax(1).max()))
    bank = Bank(as_target(model), [BATS(ODIN(10, 0.02), lam=0.5)])
    assert np.allclose(bank.score(x, bank.fit([x]))["odin+bats"], naive)


def test_equal_clipping_takes_one_more_pass_for_all():
    model, x = net(), images()
    detectors = [MSP(), Energy(), BATS(MSP()), BATS(Energy()), BATS(GradNorm()), BATS(ReAct())]
    bank = Bank(as_target(model), detectors)
    fitted = bank.fit([x])
    bank.score(x, fitted)
    with ws.count_passes(model) as passes:
        bank.score(x, fitted)
    assert passes.forward_examples == 2 * len(x)


def test_the_model_stays_as_it_is():
    model, x = net(), images()
    before, model.training = model(x), True
    bank = Bank(as_target(model), [BATS(), BATS(ODIN())])
    bank.score(x, bank.fit([x]))
    assert model.training
    model.training = False
    assert torch.equal(model(x), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_clipping_shrinks_the_variance_as_computed():
    h = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)).double()
    for lam, ratio in ((1, 0.5161), (2, 0.9205), (3.25, 0.9978)):
        assert float(h.clamp(-lam, lam).var()) == pytest.approx(ratio, abs=0.005)


def test_what_bats_refuses():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, K)).double()
    with pytest.raises(BadInput, match="a model with batch norm"):
        Bank(as_target(plain), [BATS()]).fit([images()])
    wide = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, K)).double()
    with pytest.raises(BadInput, match="64 channels"):
        Bank(as_target(wide), [BATS(where="published")]).fit([images()])
    with pytest.raises(BadInput, match="a bank of detectors"):
        BATS().fit({})
    bank = Bank(as_target(net()), [BATS()])
    with pytest.raises(BadInput, match="as it is"):
        bank.read_by("energy+bats", {}, images(), None)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_bats_on_networks_of_timm(name):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bank = Bank(as_target(model), [Energy(), BATS(lam=1e6), BATS(lam=0.0)])
    scores = bank.score(x, bank.fit([x]))
    assert torch.equal(scores["energy"], scores["energy+bats"])
    assert not torch.equal(scores["energy"], scores["energy+bats-2"])


def test_a_head_of_single_pixels_is_read_as_linear():
    class AllConv(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.body, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, size)

        def forward(self, x):
            return self.last(self.body(x).relu()).mean((2, 3))

    torch.manual_seed(0)
    model = AllConv(1).double().eval()
    bank = Bank(as_target(model), [Energy(), ReAct(99.999)])
    scores = bank.score(images(), bank.fit([images()]))
    assert torch.allclose(scores["energy"], scores["react"], atol=1e-3)
    with pytest.raises(BadInput, match="single pixels"):
        Bank(as_target(AllConv(2).double()), [DICE()]).fit([images()])
