"""The distance between a classifier's gradient and the data's: closed forms, and what fine-tuning on it keeps to."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import withstand as ws
from tests.hardening.conftest import cnn, images
from tests.hardening.test_contract import Interrupted
from tests.training.conftest import same
from withstand.attacks.transfer.dra import DRA, dcg_loss
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.hardening.standard import Standard
from withstand.registry import parse
from withstand.training import SGD, Trainer
from withstand.training.feed import micro_batches
from withstand.training.recipe import Step, System

QUICK = {"epochs": 2, "batch": 8, "optimizer": SGD(0.05), "schedule": "constant", "accelerator": "cpu"}
X = ws.Rows.count(0, 4).uniform((5,), "x", dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 1])


def linear(scale: float = 2.0, classes: int = 3) -> nn.Linear:
    net = nn.Linear(5, classes).double()
    with torch.no_grad():
        net.weight.copy_(scale * ws.Rows.count(1, classes).normal((5,), "w", dtype=torch.float64))
        net.bias.zero_()
    return net


def parts(net: nn.Linear, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """||w_y - wbar||^2 and sum_k p_k ||w_k - wbar||^2 of a linear model, wbar = sum_k p_k w_k."""
    p, w = net(x).softmax(1), net.weight
    mean = p @ w
    return (w[y] - mean).square().sum(1), (p * (w - mean[:, None]).square().sum(2)).sum(1)


def test_all_directions_of_a_linear_model_give_the_closed_form():
    net = linear()
    length, spread = parts(net, X, Y)
    assert torch.allclose(dcg_loss(net, X, Y, "exact"), length - 2 * spread, atol=1e-10)
    assert torch.allclose(dcg_loss(net, X, Y, "norm"), length, atol=1e-10)


def test_many_slices_come_near_the_closed_form():
    net, n = linear(), 10_000
    x, y = X[:1].expand(n, -1), Y[:1].expand(n)
    length, spread = parts(net, X[:1], Y[:1])
    sliced, unit = (dcg_loss(net, x, y, estimator).mean().item() for estimator in ("sliced", "unit"))
    assert sliced == pytest.approx((length - 2 * spread).item(), rel=0.01)
    assert unit == pytest.approx((length.sqrt() - 2 * spread / 5).item(), rel=0.01)


def test_a_mean_over_directions_is_the_mean_over_draws():
    net = linear()
    one = (dcg_loss(net, X, Y, "sliced") - dcg_loss(net, X, Y, "norm")) / 2
    signs = ws.Rows.count(0, 4).signs((5,), "dcg", 0, torch.float64)
    hessian = torch.stack([hessian_of(net, x, int(y)) for x, y in zip(X, Y)])
    assert torch.allclose(one, torch.einsum("ni,nij,nj->n", signs, hessian, signs), atol=1e-10)
    two = (dcg_loss(net, X, Y, "sliced", directions=2) - dcg_loss(net, X, Y, "norm")) / 2
    other = ws.Rows.count(0, 4).signs((5,), "dcg", 1, torch.float64)
    second = torch.einsum("ni,nij,nj->n", other, hessian, other)
    assert torch.allclose(two, (one + second) / 2, atol=1e-10)


def hessian_of(net: nn.Module, x: Tensor, y: int) -> Tensor:
    def log_p(point: Tensor) -> Tensor:
        return net(point[None]).log_softmax(1)[0, y]

    return torch.autograd.functional.hessian(log_p, x)


def test_a_curved_model_has_the_trace_of_its_hessian():
    net = nn.Sequential(linear(classes=4), nn.Tanh(), nn.Linear(4, 3).double())
    trace = torch.stack([hessian_of(net, x, int(y)).trace() for x, y in zip(X, Y)])
    found = (dcg_loss(net, X, Y, "exact") - dcg_loss(net, X, Y, "norm")) / 2
    assert torch.allclose(found, trace, atol=1e-10)


def test_noise_moves_the_point_and_dsm_aims_at_it():
    net, sigma = linear(), 0.1
    shift = sigma * ws.Rows.count(0, 4).normal((5,), "dcg noise", 0, torch.float64)
    length, _ = parts(net, X + shift, Y)
    assert torch.allclose(dcg_loss(net, X, Y, "norm", noise=sigma), length, atol=1e-10)
    p = net(X + shift).softmax(1)
    score = net.weight[Y] - p @ net.weight
    wanted = -shift / sigma**2  # the score of a Gaussian around x
    found = dcg_loss(net, X, Y, "dsm", noise=sigma)
    assert torch.allclose(found, (score - wanted).square().sum(1), atol=1e-8)


def test_dsm_is_the_same_as_dcg_in_the_mean_but_for_a_constant():
    """The denoising form and the integrated form of one objective differ by what does not hang on the model."""
    n, sigma = 20_000, 0.1
    x, y = X[:1].expand(n, -1), Y[:1].expand(n)

    def gap(scale: float) -> float:
        net = linear(scale)
        return float((dcg_loss(net, x, y, "dsm", noise=sigma) - dcg_loss(net, x, y, "exact", noise=sigma)).mean())

    constant = 5 / sigma**2
    assert gap(0.5) == pytest.approx(constant, rel=0.03)
    assert gap(2.0) == pytest.approx(constant, rel=0.03)


def test_the_best_scale_of_a_logistic_model_is_where_the_slope_changes_sign():
    """Two Gaussians of equal covariance: c moves the logit c * w.x, and DCG has its minimum inside."""
    rows = ws.Rows.count(3, 400)
    y = torch.arange(400) % 2
    x = 0.5 + 0.1 * rows.normal((2,), "x", dtype=torch.float64) + 0.08 * (2 * y[:, None] - 1)
    x = x.clamp(0, 1)

    def at(c: float, graph: bool = False) -> Tensor:
        net = nn.Linear(2, 2, bias=False).double()
        w = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
        with torch.no_grad():
            net.weight.copy_(c * w)
        made = dcg_loss(Centred(net), x, y, "exact").mean()
        if not graph:
            return made.detach()
        made.backward()
        return (net.weight.grad * w).sum()  # type: ignore[operator]

    slopes = {c: float(at(c, graph=True)) for c in (0.2, 1.0, 4.0, 16.0, 30.0)}
    for c, slope in slopes.items():
        step = 1e-4
        numeric = float(at(c + step) - at(c - step)) / (2 * step)
        assert slope == pytest.approx(numeric, rel=1e-5, abs=1e-6)
    low, high = 0.2, 30.0
    assert slopes[low] < 0 < slopes[high]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle, graph=True)) < 0 else (low, middle)
    best = (low + high) / 2
    assert float(at(best)) < min(float(at(best * 0.9)), float(at(best * 1.1)))


class Centred(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - 0.5)


@pytest.mark.parametrize("estimator", ["unit", "sliced", "exact", "norm", "dsm"])
def test_the_gradient_by_the_weights_is_that_of_finite_differences(estimator):
    net = nn.Sequential(linear(classes=4), nn.Softplus(), nn.Linear(4, 3).double())
    weight = net[0].weight
    noise = 0.1 if estimator == "dsm" else 0.0

    def value() -> Tensor:
        return dcg_loss(net, X, Y, estimator, noise=noise).mean()

    value().backward()
    step = 1e-5
    for i, j in ((0, 0), (2, 3)):
        with torch.no_grad():
            weight[i, j] += step
        above = value()
        with torch.no_grad():
            weight[i, j] -= 2 * step
        below = value()
        with torch.no_grad():
            weight[i, j] += step
        numeric = float((above - below).detach()) / (2 * step)
        assert float(weight.grad[i, j]) == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_the_mode_is_given_back_and_attention_has_second_derivatives():
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.view(len(x), 1, 5, 1).expand(-1, -1, -1, 4).contiguous()
            return F.scaled_dot_product_attention(z, z * 2, z).mean(3).squeeze(1)

    net = nn.Sequential(Attends(), nn.Dropout(0.5), linear().float()).train()
    one, two = (dcg_loss(net, X.float(), Y) for _ in range(2))
    assert torch.equal(one, two), "dropout is off"
    assert net.training
    one.mean().backward()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "best"}, "estimator"),
        ({"directions": 0}, "directions"),
        ({"noise": -1.0}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"estimator": "dsm"}, "noise"),
        ({"x": X + 1}, r"x: got values from .* allowed: values in \[0, 1\]"),
        ({"x": X * math.nan}, "x: got"),
        ({"x": Y[:, None].expand(-1, 5)}, "x: got"),
        ({"y": X[:, :3]}, "y: got"),
        ({"y": None}, "y: got none"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        dcg_loss(**{"model": linear(), "x": X, "y": Y, **settings})


def test_the_exact_trace_is_for_small_inputs():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4097, 2))
    with pytest.raises(BadInput, match=r"4,097 input values.*sliced"):
        dcg_loss(net, torch.rand(1, 4097), torch.tensor([0]), "exact")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * 2


class Hidden(torch.autograd.Function):
    """Its gradient is made of numbers that no graph leads to."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g.detach() * 2


class Applied(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.net = function, linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.net(x))


class In(nn.Module):
    """The function is next to the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.net = function, linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.function(x))


class Lost(nn.Module):
    """Writes over what the backward pass of exp needs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = linear()

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x).exp()
        z.add_(1)
        return z


@pytest.mark.parametrize(
    "model", [Applied(Once.apply), Applied(Hidden.apply), In(Hidden.apply), Applied(Tensor.detach), Lost()]
)
@pytest.mark.parametrize("estimator", ["unit", "exact"])
def test_models_without_second_derivatives_are_told(model, estimator):
    with pytest.raises(BadInput, match=r"model: got .*(derivative|gradient)"):
        dcg_loss(model, X, Y, estimator).sum().backward()


# Fine-tuning -----------------------------------------------------------------------------------------------------------


def plain(seed: int = 0) -> nn.Module:
    """Without batch norm and dropout, so that modes make no difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def tuned(recipe: str, model: nn.Module, out=None, data=None, **settings):
    trainer = Trainer(**{**QUICK, **settings})
    return trainer.fit(parse(recipe, "recipe"), model, data or images(), images(12), out=out)


def test_without_weight_it_is_plain_fine_tuning_bit_for_bit():
    model = plain()
    usual = Trainer(**QUICK).fit(Standard(), model, images()).last
    assert same(tuned("dra(0.0, max_accuracy_drop=None)", model).last, usual)
    assert not same(tuned("dra(0.1, max_accuracy_drop=None)", model).last, usual)


def test_without_weight_it_is_fine_tuning_with_frozen_statistics_bit_for_bit():
    model, by_hand, data = cnn(), cnn().eval(), images()
    fitted = tuned("dra(0.0, max_accuracy_drop=None)", model, epochs=1).last
    optimizer = SGD(0.05)(by_hand.parameters())
    for batch in micro_batches(data, 0, 0, 8, 1, 0, 0, 1):
        optimizer.zero_grad()
        F.cross_entropy(by_hand(batch.x), batch.y).backward()
        optimizer.step()
    assert same(fitted, by_hand)


@pytest.mark.parametrize("estimator", ["unit", "sliced", "norm"])
def test_statistics_stay_weights_move_and_the_given_model_does_not(estimator):
    model = cnn().train()
    model(images().batch(range(24)).x)  # statistics unlike the initial ones
    given = copy.deepcopy(model)
    fitted = tuned(f"dra(0.1, '{estimator}', max_accuracy_drop=None)", model)
    assert same(model, given)
    assert model.training
    for (name, before), after in zip(given.state_dict().items(), fitted.last.state_dict().values()):
        assert torch.equal(before, after) == ("running" in name or "batches" in name), name
    assert {"loss", "loss_clean", "dcg", "train_accuracy"} <= fitted.history[-1].keys()


@pytest.mark.parametrize("estimator", ["unit", "norm"])
def test_it_lowers_its_own_term(estimator):
    start = tuned("dra(0.0, max_accuracy_drop=None)", cnn(), epochs=2).last
    batch = images().batch(range(24))

    def after(weight: float) -> float:
        recipe = f"dra({weight}, '{estimator}', max_accuracy_drop=None)"
        model = tuned(recipe, start, epochs=5, clip_norm=1.0).last
        return float(dcg_loss(model, batch.x, batch.y, estimator, directions=20).mean().detach())

    assert after(10.0) < 0.6 * after(0.0)


def test_the_loss_is_the_sum_of_its_parts():
    model, batch = plain(), images().batch(range(8))
    for recipe in (DRA(0.3, noise=0.1), DRA(0.3, "sliced", 2)):
        step = Step(0, 1, 0, 1, 0, ws.Rows.count(5, 8))
        found = recipe.loss(System(model), batch, step)
        made = dcg_loss(model, batch.x, batch.y, recipe.estimator, recipe.directions, recipe.noise, step.rows)
        assert torch.allclose(found, F.cross_entropy(model(batch.x), batch.y) + 0.3 * made.mean())
        assert torch.allclose(step.said["dcg"], made.mean())


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    recipe = DRA(0.1, max_accuracy_drop=1.0)
    whole = tuned(repr(recipe), cnn())
    trainer = Trainer(**QUICK, checkpoint_seconds=0)
    for at in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(Interrupted(recipe, at), cnn(), images(), images(12), out=tmp_path)
    again = trainer.fit(recipe, cnn(), images(), images(12), out=tmp_path)
    assert same(whole.last, again.last)
    assert same(whole.model, again.model)
    assert [r["accuracy_lost"] for r in whole.history] == [r["accuracy_lost"] for r in again.history]


def test_the_last_epoch_that_held_the_accuracy_is_kept(tmp_path):
    start = tuned("dra(0.0, max_accuracy_drop=None)", cnn(), epochs=20).last
    before = accuracy(start)
    assert before == 1.0
    gentle = tuned("dra(0.01, max_accuracy_drop=0.2)", start, epochs=3, clip_norm=1.0)
    assert gentle.best_epoch == 3
    assert not gentle.stopped
    assert same(gentle.model, gentle.last)
    settings = {"epochs": 8, "clip_norm": 1.0, "optimizer": SGD(0.02)}
    recipe = "dra(10.0, 'sliced', max_accuracy_drop=0.2)"
    hard = tuned(recipe, start, out=tmp_path, **settings)
    assert hard.stopped.startswith("the accuracy fell by")
    assert 1 < len(hard.history) < 8
    assert hard.best_epoch == len(hard.history) - 1
    assert accuracy(hard.model) == hard.history[-2]["accuracy"] >= before - 0.2
    lost = hard.history[-1]["accuracy_lost"]
    assert lost > 0.2
    assert lost == pytest.approx(before - accuracy(hard.last))
    again = tuned(recipe, start, out=tmp_path, **settings)
    assert same(again.model, hard.model)
    assert again.stopped == hard.stopped


def test_where_no_epoch_holds_the_accuracy_the_model_is_given_back_and_said_so(tmp_path):
    start = tuned("dra(0.0, max_accuracy_drop=None)", cnn(), epochs=20).last
    batch = images().batch(range(24))
    mislabelled = from_arrays(batch.x.numpy(), ((batch.y + 1) % 3).numpy(), name="mislabelled")
    with pytest.warns(UserWarning, match="No epoch held the accuracy"):
        lost = tuned("dra(0.0, max_accuracy_drop=0.0)", start, tmp_path, mislabelled, optimizer=SGD(0.5))
    assert len(lost.history) == 1
    assert lost.best_epoch == 0
    assert same(lost.model, start)
    assert (tmp_path / "best.safetensors").is_file()


def accuracy(model: nn.Module) -> float:
    batch = images(12).batch(range(12))
    with torch.no_grad():
        return float((model.eval()(batch.x).argmax(1) == batch.y).float().mean())


def test_a_bound_on_the_accuracy_needs_examples_to_see_it_by():
    with pytest.raises(BadInput, match="validation: got none"):
        Trainer(**QUICK).fit(DRA(), cnn(), images())


def test_it_warns_of_a_term_that_falls_with_the_accuracy():
    rows = [{"epoch": 1, "dcg": 2.0, "accuracy": 0.9}, {"epoch": 2, "dcg": 1.0, "accuracy": 0.8}]
    assert "DCG fell from 2 to 1 while the accuracy fell from 0.900 to 0.800" in DRA().remark(rows)
    assert DRA(0.0).remark(rows) == ""
    assert DRA(1.0, "norm").remark(rows) == ""
    assert DRA().remark(rows[:1]) == ""
    for change in ({"dcg": 3.0}, {"accuracy": 0.89}):
        assert DRA().remark([rows[0], rows[1] | change]) == ""
    start = tuned("dra(0.0, max_accuracy_drop=None)", cnn(), epochs=20).last
    with pytest.warns(UserWarning, match="at the classifier's expense"):
        tuned("dra(10.0, 'sliced', max_accuracy_drop=None)", start, epochs=4, clip_norm=1.0, optimizer=SGD(0.02))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"estimator": "best"}, "estimator"),
        ({"directions": 0}, "directions"),
        ({"estimator": "dsm"}, "noise"),
        ({"max_accuracy_drop": 1.5}, "max_accuracy_drop"),
        ({"max_accuracy_drop": -0.1}, "max_accuracy_drop"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        DRA(**settings)


def test_mixed_labels_are_refused():
    mixed = replace(images().batch(range(4)), y=torch.full((4, 3), 1 / 3))
    step = Step(0, 1, 0, 1, 0, ws.Rows.count(0, 4))
    with pytest.raises(BadInput, match="class indices"):
        DRA().loss(System(plain()), mixed, step)


def test_it_is_fitted_kept_and_attacked_as_any_model(tmp_path):
    digits = ws.load_data("digits", split="train", limit=80, seed=0)
    made = ws.fit_attack(
        "dra(0.01)", ws.load_model("zoo:digits_cnn", pretrained=False), digits, out=tmp_path, epochs=1, batch=20
    )
    assert made.kind == "model"
    read = ws.load_model(f"artefact:{tmp_path}")
    assert read.fingerprint() == made.target.fingerprint()
    batch = ws.load_data("digits", split="test", limit=10).batch(range(10))
    assert ws.attacks.LogitStd(ws.Linf(0.1))(read, batch.x, batch.y).shape == batch.x.shape
