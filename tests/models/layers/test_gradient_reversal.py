import pytest
import torch
from torch import nn

from withstand.errors import BadInput
from withstand.models.layers import GradientReversal


def test_values_pass_and_gradients_turn_round_with_the_present_strength():
    layer = GradientReversal(0.5)
    x = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(layer(x), x)
    assert torch.equal(torch.autograd.grad((layer(x) * 3).sum(), x)[0], torch.full((3, 2), -1.5))
    layer.strength = 0.25
    assert torch.equal(torch.autograd.grad((layer(x) * 3).sum(), x)[0], torch.full((3, 2), -0.75))


def test_what_stands_after_it_learns_as_ever():
    head = nn.Linear(2, 1)
    x = torch.randn(3, 2)
    wanted = torch.autograd.grad(head(x).sum(), head.weight)[0]
    assert torch.equal(torch.autograd.grad(head(GradientReversal(7)(x)).sum(), head.weight)[0], wanted)


@pytest.mark.parametrize("strength", [-1, float("nan"), float("inf")])
def test_another_strength_is_refused(strength):
    with pytest.raises(BadInput, match="strength"):
        GradientReversal(strength)
    layer = GradientReversal()
    layer.strength = strength
    with pytest.raises(BadInput, match="strength"):
        layer(torch.rand(2))
