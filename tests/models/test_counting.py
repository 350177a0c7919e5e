import pytest
import torch
from torch import nn

from withstand.errors import BadInput
from withstand.models import TorchTarget, as_target, count_passes
from withstand.models.counting import Passes


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


x = torch.rand(5, 3, 2, 2)


def test_forward_and_backward_passes_and_examples_are_counted(model):
    with count_passes(model) as passes:
        with torch.no_grad():
            model(x)
        points = x.clone().requires_grad_()
        for _ in range(4):
            torch.autograd.grad(model(points[:2]).sum(), points)
        assert passes == Passes(5, 5 + 8, 4, 8)
    assert passes.as_dict()["backward_calls"] == 4


def test_gradients_are_untouched(model):
    points = x.clone().requires_grad_()
    (bare,) = torch.autograd.grad(model(points).square().sum(), points)
    with count_passes(model):
        (counted,) = torch.autograd.grad(model(points).square().sum(), points)
    assert torch.equal(bare, counted)


def test_every_class_gradient_is_a_pass(model):
    points = x.clone().requires_grad_()
    with count_passes(model) as passes:
        logits = model(points)
        for k in range(3):
            torch.autograd.grad(logits[:, k].sum(), points, retain_graph=True)
    assert passes == Passes(1, 5, 3, 15)


def test_a_gradient_of_the_loss_alone_is_no_pass(model):
    with count_passes(model) as passes:
        logits = model(x)
        torch.autograd.grad(logits.square().sum(), logits)
    assert passes == Passes(1, 5, 0, 0)


def test_parameter_gradients_count_too(model):
    with count_passes(model) as passes:
        model(x).sum().backward()
    assert passes.backward_calls == 1


def test_two_losses_on_two_outputs_make_one_pass():
    class Two(nn.Module):
        def forward(self, x):
            return {"logits": x * 2, "features": [x * 3, 7]}

    two, points = Two(), torch.rand(4, 3, requires_grad=True)
    with count_passes(two) as passes:
        out = two(points)
        (out["logits"].sum() + out["features"][0].sum()).backward()
    assert points.grad is not None
    assert torch.equal(points.grad, torch.full((4, 3), 5.0))
    assert passes == Passes(1, 4, 1, 4)
    assert out["features"][1] == 7


def test_second_order_gradients_keep_working(model):
    net = nn.Sequential(model, nn.Tanh())
    points = x.clone().requires_grad_()
    with count_passes(net):
        (first,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), points)
    assert second.abs().sum() > 0


def test_a_target_and_its_module_count_the_same(model):
    target = TorchTarget(model)
    with count_passes(target) as outer, count_passes(model) as inner:
        target(x)
        as_target(model)(x)
        target.module(x=x)
    assert outer == inner == Passes(3, 15)


def test_everything_is_removed_afterwards(model):
    with pytest.raises(KeyError), count_passes(model) as passes:
        raise KeyError
    model(x)
    assert passes == Passes()
    assert not model._forward_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_modules_are_counted_through_their_target(model):
    scripted = torch.jit.script(model)
    with pytest.raises(BadInput, match=r"Give as_target\(model\)"), count_passes(scripted):
        pass
    target = as_target(scripted)
    with count_passes(target) as passes:
        target(x)
    assert passes == Passes(1, 5)


def test_other_things_are_refused():
    with pytest.raises(BadInput, match="a torch module or what load_model returns"), count_passes(3):
        pass
