import pytest
import torch

from withstand.models.layers.gradient_reversal import gradient_reversal


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_the_identity_forwards_and_minus_r_times_the_gradient_backwards(r):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    out = gradient_reversal(x, r)
    assert torch.equal(out, x)
    (out * weight).sum().backward()
    assert torch.equal(x.grad, -r * weight)
    assert torch.equal(weight.grad, x)
