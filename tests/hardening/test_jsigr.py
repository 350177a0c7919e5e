import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.by_hand import gradients, plain, ready, step_at
from tests.hardening.conftest import cnn
from tests.training.conftest import same
from withstand.errors import BadInput
from withstand.hardening.jsigr import (
    JSIGR,
    blurred,
    input_gradient,
    jacobian_norm,
    linearised_robustness,
    perturbation_saliency,
    selective_penalty,
    top_share,
)
from withstand.random import Rows
from withstand.training import SGD, Trainer


def linear(k=3, side=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, k)).double()


def smooth():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Softplus(), nn.Linear(6, 3)).double()


def pictures(n=6, side=4, channels=1):
    return Rows.count(1, n).uniform((channels, side, side), "x", dtype=torch.float64)


Y = torch.tensor([0, 1, 2, 0, 1, 2])


# The Jacobian


def test_the_jacobian_of_a_linear_model_is_its_matrix():
    model = linear()
    norm = model[1].weight.square().sum()
    exact = jacobian_norm(model, pictures(), "exact")
    assert torch.allclose(exact, norm.expand(6), atol=1e-10)
    draws = jacobian_norm(model, pictures(1).expand(5000, -1, -1, -1), 1).detach()
    error = draws.std() / 5000**0.5
    assert error > 0
    assert abs(draws.mean() - norm) < 4 * error
    more = jacobian_norm(model, pictures(1).expand(5000, -1, -1, -1), 4).detach()
    assert abs(more.mean() - norm) < 4 * error
    assert float(more.var()) == pytest.approx(float(draws.var() / 4), rel=0.2)


def test_the_exact_norm_is_that_of_autograds_jacobian():
    model, x = smooth(), pictures()
    naive = torch.stack([torch.autograd.functional.jacobian(model, v[None]).square().sum() for v in x])
    assert torch.allclose(jacobian_norm(model, x, "exact"), naive)


def test_directions_belong_to_the_example():
    model, x = smooth(), pictures()
    whole = jacobian_norm(model, x, 2)
    part = jacobian_norm(model, x[[4, 1]], 2, Rows(0, torch.tensor([4, 1])))
    assert torch.allclose(whole[[4, 1]], part)
    assert not torch.allclose(whole, jacobian_norm(model, x, 2, Rows.count(1, 6)))


def test_the_norm_can_be_learned_from():
    model = linear()
    (g,) = torch.autograd.grad(jacobian_norm(model, pictures(), "exact").mean(), model[1].weight)
    assert torch.allclose(g, 2 * model[1].weight)


# The saliency


class Reads(nn.Module):
    """Sums the pixels of one place, squared so that logits are not linear."""

    def __init__(self, rows, columns):
        super().__init__()
        self.at, self.drop, self.weight = (slice(None), 0, rows, columns), nn.Dropout(0.5), nn.Parameter(torch.ones(()))

    def forward(self, x):
        s = self.drop(x[self.at].flatten(1).square().sum(1))
        return torch.stack([s * self.weight, -s, 0 * s], 1)


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_a_cell_that_alone_is_read_gets_one_and_the_others_zero(fill):
    model, x = Reads(slice(2, 4), slice(4, 6)), pictures(side=8)
    saliency = perturbation_saliency(model, x, 2, fill)
    expected = torch.zeros(6, 1, 8, 8, dtype=torch.float64)
    expected[:, :, 2:4, 4:6] = 1
    assert torch.equal(saliency, expected)
    assert model.training
    assert model.drop.training


def test_saliency_is_the_divergence_of_each_cells_blurring():
    model, x = smooth().eval(), pictures()
    other = blurred(x, 2)
    scores = torch.zeros(6, 2, 2, dtype=torch.float64)
    for n in range(6):
        p = model(x[n : n + 1]).softmax(1)
        for i in range(2):
            for j in range(2):
                changed = x[n : n + 1].clone()
                changed[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = other[n, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                scores[n, i, j] = (p * (p / model(changed).softmax(1)).log()).sum()
    scores /= scores.amax((1, 2), keepdim=True)
    found = perturbation_saliency(model, x, 2)
    assert torch.allclose(found, torch.kron(scores, torch.ones(2, 2))[:, None].double(), atol=1e-9)
    assert found.amax((1, 2, 3)).tolist() == [1.0] * 6


def test_saliency_has_no_graph_and_the_eighth_of_the_image_as_its_cell():
    model, x = cnn(), pictures(side=8).float()
    before = copy.deepcopy(model)
    saliency = perturbation_saliency(model, x)
    assert not saliency.requires_grad
    assert torch.equal(saliency, perturbation_saliency(model, x, 2))
    assert same(model, before)
    flat = perturbation_saliency(Reads(slice(0, 0), slice(0, 0)), x, 4)
    assert (flat == 0).all()


def test_a_blur_keeps_flat_images_and_is_a_gaussian():
    assert torch.allclose(blurred(torch.full((1, 2, 5, 5), 0.3), 2), torch.full((1, 2, 5, 5), 0.3))
    spot = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    spot[..., 20, 20] = 1
    out = blurred(spot, 3)[0, 0]
    assert torch.allclose(out, out.T)
    assert float(out[20, 23] / out[20, 20]) == pytest.approx(torch.exp(torch.tensor(-0.5)).item())
    assert float(out[20, 26]) > 0
    assert float(out[20, 27]) == 0


def test_the_top_share_of_the_cells():
    scores = torch.tensor([[[0.1, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    assert top_share(scores, 0.5)[0].tolist() == [[0, 1], [1, 0]]
    assert top_share(scores, 0.01)[0].tolist() == [[0, 1], [0, 0]]
    assert (top_share(scores, 0.5)[1] == 0).all()
    assert top_share(scores, 0.5)[2].tolist() == [[0, 1], [0, 0]]


# The gradient and the distance


def test_the_selective_penalty_spares_what_the_mask_names():
    model, x = linear(), pictures().requires_grad_(True)
    z = model(x)
    g = input_gradient(z, x, Y, "loss")
    by_hand = (z.softmax(1) - F.one_hot(Y, 3)) @ model[1].weight
    assert torch.allclose(g.flatten(1), by_hand)
    assert torch.allclose(selective_penalty(g, torch.zeros(6, 1, 4, 4)), by_hand.square().sum(1))
    assert (selective_penalty(g, torch.ones(6, 1, 4, 4)) == 0).all()
    half = torch.zeros(6, 1, 4, 4)
    half[..., :2] = 1
    assert torch.allclose(selective_penalty(g, half), g[..., 2:].square().flatten(1).sum(1))
    logit = input_gradient(z, x, Y, "logit")
    assert torch.allclose(logit.flatten(1), model[1].weight[Y])
    assert torch.allclose(input_gradient(z, x, F.one_hot(Y, 3).double(), "logit"), logit)


def test_robustness_of_a_linear_model_is_the_distance_to_its_nearest_boundary():
    model, x = linear(), pictures()
    z, w = model(x).detach(), model[1].weight.detach()
    by_hand = [
        min(float((z[n, y] - z[n, k]) / (w[y] - w[k]).norm()) for k in range(3) if k != y)
        for n, y in enumerate(Y.tolist())
    ]
    found = linearised_robustness(model, x, Y)
    assert found.tolist() == pytest.approx(by_hand)
    assert not found.requires_grad
    predicted = z.argmax(1)
    rho = linearised_robustness(model, x, predicted)
    assert (rho > 0).all()
    for n, y in enumerate(predicted.tolist()):
        k = min((k for k in range(3) if k != y), key=lambda k: float((z[n, y] - z[n, k]) / (w[y] - w[k]).norm()))
        edge = x[n].flatten() - rho[n] * (w[y] - w[k]) / (w[y] - w[k]).norm()
        at_edge = model[1](edge).detach()
        assert float(at_edge[y] - at_edge[k]) == pytest.approx(0, abs=1e-9)


def test_no_gradient_to_another_class_is_an_infinite_distance():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([0 * x.sum((1, 2, 3)) + 1, 0 * x.sum((1, 2, 3))], 1)

    assert linearised_robustness(Flat(), pictures(2), torch.tensor([0, 1])).tolist() == [torch.inf, -torch.inf]


# The recipe


def test_the_loss_is_the_sum_of_its_terms():
    recipe = JSIGR(0.3, 0.2, projections="exact", warmup=0.0)
    system, batch, step = ready(recipe, plain())
    twin = copy.deepcopy(system)
    loss = recipe.loss(system, batch, step)
    ce = F.cross_entropy(twin.model(batch.x), batch.y)  # in train mode: moves the statistics as the recipe's pass did
    twin.model.eval()
    x = batch.x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(F.cross_entropy(twin.model(x), batch.y, reduction="sum"), x)
    mask = perturbation_saliency(twin.model, batch.x)
    by_hand = ce + 0.15 * jacobian_norm(twin.model, batch.x, "exact").mean()
    by_hand = by_hand + 0.2 * ((1 - batch.extra["saliency"]) * g.square()).sum((1, 2, 3)).mean()
    assert torch.allclose(loss, by_hand, atol=1e-10)
    assert mask.shape == batch.extra["saliency"].shape
    assert all(torch.equal(a, b) for a, b in zip(system.buffers(), twin.buffers()))
    assert all(m.training for m in system.modules())


def test_the_mask_is_made_in_eval_mode_before_the_step_and_has_no_graph():
    recipe = JSIGR()
    system, batch, _ = ready(recipe, cnn())
    assert torch.equal(batch.extra["saliency"], perturbation_saliency(system.model, batch.x))
    assert not batch.extra["saliency"].requires_grad
    binary = ready(JSIGR(mask=0.25), cnn())[1].extra["saliency"]
    assert binary.unique().tolist() == [0, 1]
    assert binary.mean((1, 2, 3)).tolist() == pytest.approx([0.25] * 24)


def test_without_weights_it_is_plain_training_bit_for_bit(shapes):
    trainer = Trainer(epochs=2, batch=8, optimizer=SGD(0.05), accelerator="cpu")
    models = [trainer.fit(r, cnn(), shapes).last for r in (JSIGR(0.0, 0.0), "standard")]
    assert same(*models)


def test_one_weight_alone_is_jacobian_or_input_gradient_regularisation():
    only = JSIGR(0.3, 0.0, projections="exact", warmup=0.0)
    system, batch, step = ready(only, plain(norm=False))
    assert "saliency" not in batch.extra
    by_hand = F.cross_entropy(system(batch.x), batch.y) + 0.15 * jacobian_norm(system.model, batch.x, "exact").mean()
    assert torch.allclose(only.loss(system, batch, step), by_hand, atol=1e-12)
    only = JSIGR(0.0, 0.3, warmup=0.0)
    batch.extra["saliency"] = torch.zeros(24, 1, 8, 8)
    x = batch.x.clone().requires_grad_(True)
    g = torch.autograd.grad(F.cross_entropy(system(x), batch.y, reduction="sum"), x, create_graph=True)[0]
    by_hand = F.cross_entropy(system(batch.x), batch.y) + 0.3 * g.square().sum((1, 2, 3)).mean()
    ours = only.loss(system, batch, step)
    assert torch.allclose(ours, by_hand, atol=1e-12)
    for a, b in zip(gradients(ours, system), gradients(by_hand, system)):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("target", ["loss", "logit"])
def test_gradients_of_the_whole_loss_are_its_finite_differences(target):
    recipe = JSIGR(0.3, 0.4, projections=2, warmup=0.0, target=target)
    system, batch, step = ready(recipe, nn.Sequential(nn.AvgPool2d(2), *smooth().float()))
    weight = system.model[2].weight
    found = gradients(recipe.loss(system, batch, step), system.model[2])[0]
    for at in ((0, 0), (3, 7), (5, 15)):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += shift
            values.append(float(recipe.loss(system, batch, step_at()).detach()))
            with torch.no_grad():
                weight[at] -= shift
        assert float(found[at]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_the_weights_grow_linearly():
    recipe = JSIGR(0.3, 0.2, warmup=0.5)
    system, batch, _ = ready(recipe, plain(norm=False))
    values = [float(recipe.loss(system, batch, step_at(step=s, steps=100)).detach()) for s in (0, 25, 50, 99)]
    ce = float(F.cross_entropy(system(batch.x), batch.y).detach())
    full = JSIGR(0.3, 0.2, warmup=0.0)
    said = step_at()
    full.loss(system, batch, said)
    assert values[0] == pytest.approx(ce)
    penalty = 0.15 * float(said.said["jacobian_squared"]) + 0.2 * float(said.said["selective_penalty"])
    assert values[2] == pytest.approx(values[3])
    assert values[1] - ce == pytest.approx((values[2] - ce) / 2)
    assert values[2] == pytest.approx(ce + penalty)


def test_it_flattens_the_logits(shapes):
    trainer = Trainer(epochs=6, batch=8, optimizer=SGD(0.05), accelerator="cpu")
    x = shapes.batch(range(24)).x
    flat, steep = (
        float(jacobian_norm(trainer.fit(r, cnn(), shapes).last, x, "exact").mean().detach())
        for r in (JSIGR(1.0, 0.1, warmup=0.0), "standard")
    )
    assert flat < 0.8 * steep


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"jacobian_weight": -1.0}, "jacobian_weight"),
        ({"selective_weight": float("nan")}, "selective_weight"),
        ({"projections": 0}, "projections"),
        ({"projections": "all"}, "projections"),
        ({"cell": 0}, "cell"),
        ({"mask": 0.0}, "mask"),
        ({"mask": "hard"}, "mask"),
        ({"target": "margin"}, "target"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        JSIGR(**settings)


class Cut(nn.Module):
    def forward(self, x):
        return x.detach().flatten(1)[:, :3] * nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: perturbation_saliency(linear(), pictures(), 3), "divide the image"),
        (lambda: perturbation_saliency(linear(), pictures().flatten(1)), "N, C, H, W"),
        (lambda: jacobian_norm(linear(), pictures() + 1), "Normalise inside the model"),
        (lambda: jacobian_norm(linear(), torch.ones(2, 1, 4, 4).long()), "int64"),
        (lambda: jacobian_norm(linear(), pictures(), 0), "projections"),
        (lambda: jacobian_norm(Cut(), pictures()), "differentiable"),
        (lambda: linearised_robustness(Cut(), pictures(), Y), "differentiable"),
        (lambda: perturbation_saliency(linear(), pictures() * float("nan")), "values"),
    ],
)
def test_bad_inputs_are_refused(ask, said):
    with pytest.raises(BadInput, match=said):
        ask()
