"""The probes against closed forms on linear models, and what they leave behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from withstand.audit.trust.inside import watch
from withstand.audit.trust.probes import Probes, scaled
from withstand.errors import BadInput
from withstand.models import TorchTarget, count_passes
from withstand.protocols import Batch, Context, Space
from withstand.registry import parse
from withstand.threats import L2, Linf, Masked

from . import zoo


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


def images(model, n=24):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def probe(model, x, y, threat=None, seed=0, steps=6):
    target = TorchTarget(model, "m", Space((1, 4, 4), (0.0, 1.0), 4))
    ctx = Context(seed)
    return list(Probes(target, Batch(x, y, torch.arange(len(x))), threat or Linf(0.05), steps, 20, ctx)), ctx


def values(rows, **condition):
    return torch.tensor([r.value for r in rows if r.condition == condition], dtype=torch.float64)


def outcomes(rows, **condition):
    return [r.outcome for r in rows if r.condition == condition]


def test_gradients_and_gaps_of_a_linear_model_are_those_of_the_formula():
    model = linear()
    x, y = images(model)
    rows, _ = probe(model, x, y)
    z, w = model(x), model[1].weight
    slope = (z.softmax(1) - F.one_hot(y, 4)) @ w
    found = values(rows, probe="gradient", objective="cross_entropy")
    assert torch.allclose(found, slope.abs().amax(1).double(), atol=1e-6)
    p = z.double().softmax(1).gather(1, y[:, None]).squeeze(1)
    assert torch.allclose(values(rows, probe="clean"), (p / (1 - p)).log(), atol=1e-5)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (2.0, 1 / 3), (0.25, 0.6), (0.0, 1.0), (-1.0, 1.0)])
def test_the_slope_of_a_scaled_gradient_disagrees_as_the_formula_says(factor, expected):
    model = linear()
    x, y = images(model)
    rows, _ = probe(zoo.Before(zoo.gradient_times(factor), model), x, y)
    found = values(rows, probe="slope")
    assert torch.allclose(found, torch.full_like(found, expected), atol=0.02)


def test_the_losses_are_those_of_a_plain_loop():
    model, steps, eps = linear(), 6, 0.05
    x, y = images(model)
    rows, _ = probe(model, x, y, Linf(eps), steps=steps)
    z = x.clone()
    for step in range(steps + 1):
        z.requires_grad_(True)
        loss = F.cross_entropy(model(z).double(), y, reduction="none")
        (g,) = torch.autograd.grad(loss.sum(), z)
        if step in (0, 1, 2, 3, 5, 6):
            assert torch.allclose(values(rows, probe="steps", step=step), loss.detach(), atol=1e-6)
        z = torch.clamp(z.detach() + eps * 2.5 / steps * g.sign(), x - eps, x + eps).clamp(0, 1)


class Ridge(nn.Module):
    """Wrong (class 1) only in a band of the image's mean, with a gradient that leads across it."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        m = x.flatten(1).mean(1)
        inside = torch.minimum(m - self.low, self.high - m)
        slope = m - m.detach()
        return torch.stack([-inside.detach() - slope, slope - 0.0 * m, -9 + 0.0 * m, -9 + 0.0 * m], 1)


@pytest.mark.parametrize(("band", "expected"), [((0.52, 0.57), 1.0), ((0.52, 2.0), 0.0), ((0.9, 1.0), 0.0)])
def test_a_step_overshoots_where_the_model_is_wrong_on_the_way_only(band, expected):
    x = torch.full((12, 1, 4, 4), 0.5)
    rows, _ = probe(Ridge(*band), x, torch.zeros(12, dtype=torch.long), Linf(0.1))
    found = values(rows, probe="overshoot")
    assert len(found) == 12
    assert abs(float(found.mean()) - expected) < 0.1


def test_no_bound_means_the_whole_range_and_everything_falls_in_it():
    model = linear()
    x, y = images(model)
    rows, _ = probe(model, x, y)
    assert not any(outcomes(rows, probe="attack", attack="pgd", times="unbounded"))
    assert any(outcomes(rows, probe="attack", attack="pgd", times=0.25))


def test_only_examples_that_are_right_are_probed():
    model = linear()
    x, y = images(model)
    y[:5] = (y[:5] + 1) % 4
    rows, _ = probe(model, x, y)
    assert len(outcomes(rows, probe="clean")) == 24
    assert outcomes(rows, probe="clean")[:6] == [False] * 5 + [True]
    assert {r.id for r in rows if r.condition["probe"] == "slope"} == set(range(5, 24))
    nobody, _ = probe(model, x, (model(x).argmax(1) + 1) % 4)
    assert {r.condition["probe"] for r in nobody} == {"clean", "repeat", "output"}


def test_rows_repeat_and_depend_on_no_global_generator_even_for_a_random_model():
    model = zoo.Before(zoo.noise, linear())
    x, y = images(linear())
    torch.manual_seed(1)
    first, _ = probe(model, x, y)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again, _ = probe(model, x, y)
    assert [(r.condition, r.id, r.outcome, r.value) for r in first] == [
        (r.condition, r.id, r.outcome, r.value) for r in again
    ]
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_the_model_is_given_back_as_it_was_and_its_passes_are_counted():
    model = nn.Sequential(linear(), nn.Dropout(0.5)).train()
    x, y = images(model.eval())
    model.train()
    with count_passes(model) as passes:
        _, ctx = probe(model, x, y)
    assert model.training
    assert model[1].training
    assert all(p.requires_grad for p in model.parameters())
    assert ctx.cost["forwards"] == passes.forward_examples
    assert ctx.cost["backwards"] == passes.backward_examples


def test_the_inside_of_a_forward_pass_is_seen():
    model, x = linear(), torch.rand(2, 1, 4, 4)
    assert watch(model, model, x) == (0, 1)
    purifier, blind = zoo.Purifier(model), zoo.BlindPurifier(model)
    assert watch(purifier, purifier, x)[0] > 0
    assert watch(blind, blind, x) == (0, 9)
    assert not model[1]._forward_pre_hooks


@pytest.mark.parametrize("way", ["backward", "func"])
def test_every_way_to_differentiate_inside_is_seen(way):
    class Inside(nn.Module):
        def forward(self, x):
            if way == "func":
                return x + torch.func.grad(lambda v: v.square().sum())(x)
            with torch.enable_grad():
                point = x.detach().requires_grad_(True)
                point.square().sum().backward()
            return x + point.grad

    model = Inside()
    assert watch(model, model, torch.rand(2, 3))[0] > 0


def test_a_scaled_threat_keeps_its_kind_and_its_mask():
    assert scaled(L2(0.5), 2.0) == L2(1.0)
    mask = torch.ones(1, 4, 4)
    assert scaled(Masked(Linf(0.1), mask), 0.5).inner == Linf(0.05)


def test_a_masked_threat_leaves_out_what_a_mask_makes_meaningless():
    model = linear()
    x, y = images(model)
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    rows, _ = probe(model, x, y, Masked(Linf(0.1), mask))
    attacks = {(r.condition["attack"], r.condition["times"]) for r in rows if r.condition["probe"] == "attack"}
    assert ("pgd", 4.0) in attacks
    assert not {a for a in attacks if a[0] == "square" or a[1] == "unbounded"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trust(l1(12))", "linf or l2"),
        ("trust(l0(24))", "linf or l2"),
        ("trust(linf())", "one radius"),
        ("trust(linf(0.0))", "radius > 0"),
        ("trust(steps=0)", "steps"),
        ("trust(queries=0)", "queries"),
    ],
)
def test_bad_settings_are_refused(text, said):
    with pytest.raises(BadInput, match=said):
        parse(text, "check")
