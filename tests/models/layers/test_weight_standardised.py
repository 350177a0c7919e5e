import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from withstand.errors import BadInput
from withstand.models.layers import WSConv2d, clip_adaptively


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_equal_a_naive_standardisation(groups):
    torch.manual_seed(0)
    conv = WSConv2d(4, 6, 3, stride=2, padding=1, groups=groups).double()
    conv.gain.data.uniform_(0.5, 2)
    naive = torch.empty_like(conv.weight)
    for i, w in enumerate(conv.weight):
        flat = w.flatten().tolist()
        n, mean = len(flat), sum(flat) / len(flat)
        var = sum((v - mean) ** 2 for v in flat) / n
        gamma = math.sqrt(2 / (1 - 1 / math.pi))
        values = [conv.gain[i].item() * gamma * (v - mean) / math.sqrt((var + 1e-5) * n) for v in flat]
        naive[i] = torch.tensor(values, dtype=torch.float64).reshape(w.shape)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    assert torch.allclose(conv.standardised(), naive, rtol=1e-12, atol=0)
    assert torch.allclose(conv(x), F.conv2d(x, naive, conv.bias, 2, 1, groups=groups))


def test_weights_ignore_scale_and_shift_and_relu_keeps_the_variance():
    torch.manual_seed(0)
    conv = WSConv2d(256, 512, 1, bias=False)
    conv.weight.data.normal_()
    before = conv.standardised()
    conv.weight.data = 3 * conv.weight + 0.5
    assert torch.allclose(conv.standardised(), before, atol=1e-5)
    assert conv(F.relu(torch.randn(64, 256, 4, 4))).var().item() == pytest.approx(1, abs=0.02)


def test_a_unit_of_one_input_is_refused():
    with pytest.raises(BadInput, match="at least 2 inputs"):
        WSConv2d(1, 4, 1)


def test_clipping_equals_a_naive_loop_over_units():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(s)) for s in ((5, 3, 2, 2), (4, 3), (6,), ())] + [
        nn.Parameter(torch.zeros(3, 2))
    ]
    wanted = []
    for p in parameters:
        p.grad = torch.randn_like(p)
        for i, row in enumerate(p.grad if p.dim() > 1 else ()):
            row.mul_(10.0 ** (i - 3))
        units = list(zip(p.detach(), p.grad)) if p.dim() > 1 else [(p.detach(), p.grad)]
        out = []
        for w, g in units:
            most = 0.05 * max(float(w.norm()), 1e-3)
            out.append(g * most / g.norm() if g.norm() > most else g.clone())
        wanted.append(torch.stack(out) if p.dim() > 1 else out[0])
    parameters.append(nn.Parameter(torch.ones(2)))
    before = [p.grad.clone() for p in parameters[:-1]]
    clip_adaptively(parameters, 0.05)
    assert all(torch.allclose(p.grad, w) for p, w in zip(parameters, wanted))
    assert torch.equal(parameters[0].grad[0], before[0][0])
    assert not torch.equal(parameters[0].grad[4], before[0][4])
    assert parameters[-1].grad is None


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": -1}, {"eps": 0}, {"threshold": float("nan")}])
def test_clipping_refuses_what_is_not_above_zero(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        clip_adaptively([], **wrong)
