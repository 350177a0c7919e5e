"""The attack that was published with DRA: steps along the gradient divided by its spread."""

import pytest
import torch
from torch import Tensor, nn

import withstand as ws
from withstand.attacks.transfer.logit_std import Spread
from withstand.errors import BadInput
from withstand.objectives import LabelLogit, TargetedLogit
from withstand.protocols import Seen

A = ws.attacks


class Given(nn.Module):
    """Logits (g . x, 0), so that the gradient of the first is g whatever x."""

    def __init__(self, g: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.g, self.scale = g, scale

    def forward(self, x: Tensor) -> Tensor:
        z = (self.g * x).flatten(1).sum(1)
        return self.scale * torch.stack([z, torch.zeros_like(z)], 1)


G = torch.tensor([[[1.0, -2.0], [3.0, -4.0]]], dtype=torch.float64)
X = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
Y = torch.tensor([0])


def test_one_step_of_a_two_by_two_image_by_hand():
    """|g| = 1, 2, 3, 4 has the unbiased standard deviation sqrt(5/3)."""
    step = 2 / 255 / (5 / 3) ** 0.5
    moved = X - step * G  # away from the label: the objective is -z_y
    found = A.LogitStd(ws.Linf(16 / 255), steps=1)(Given(G), X, Y)
    assert torch.allclose(found, moved, atol=1e-12)
    small = A.LogitStd(ws.Linf(0.01), steps=1, step=(2 / 255) / 0.01)(Given(G), X, Y)
    assert torch.allclose(small, moved.clamp(0.49, 0.51), atol=1e-12)
    dark = A.LogitStd(ws.Linf(16 / 255), steps=1)(Given(G), X * 0 + 0.005, Y)
    assert torch.allclose(dark, (0.005 - step * G).clamp_min(0), atol=1e-12)


def test_each_channel_and_each_image_has_its_own_spread():
    g = torch.stack([G[0], 10 * G[0].flip(0)])[None].repeat(2, 1, 1, 1)
    g[1] *= 7
    found, _ = Spread()(g, None)
    for n in range(2):
        for c in range(2):
            assert torch.allclose(found[n, c], g[n, c] / g[n, c].abs().flatten().std(), atol=1e-9)


def test_the_scale_of_the_logits_makes_no_difference():
    rows = ws.Rows.count(0, 3)
    x = rows.uniform((3, 6, 6), "x", dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)).double()
    y = net(x).argmax(1)
    attack = A.LogitStd(ws.Linf(0.05))
    assert torch.allclose(attack(net, x, y), attack(lambda_scaled(net, 7.0), x, y), atol=1e-9)


def lambda_scaled(net: nn.Module, by: float) -> nn.Module:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return by * self.net(x)

    return Scaled()


def test_every_iterate_is_in_the_ball_and_the_box():
    rows = ws.Rows.count(0, 4)
    x = rows.uniform((1, 4, 4), "x", dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    y = net(x).argmax(1)
    for steps in range(1, 12):
        z = A.LogitStd(ws.Linf(0.1), steps=steps)(net, x, y)
        assert float((z - x).abs().max()) <= 0.1 + 1e-9
        assert float(z.min()) >= 0
        assert float(z.max()) <= 1
    l2 = A.LogitStd(ws.L2(0.3)).run(net, x, y)
    assert float(l2.distance.max()) <= 0.3 + 1e-9


def test_targets_pull_and_labels_push():
    logits = torch.tensor([[1.0, 5.0, 2.0]])
    seen = Seen(torch.zeros(1, 1), logits, {})
    assert LabelLogit()(seen, torch.tensor([1]), {}).tolist() == [-5.0]
    aimed = TargetedLogit(target=2)
    assert aimed(seen, torch.tensor([1]), aimed.begin(seen, torch.tensor([1]), ws.Rows.count(0, 1))).tolist() == [2.0]
    away = A.LogitStd(ws.Linf(0.1), steps=1)(Given(G), X, Y)
    towards = A.LogitStd(ws.Linf(0.1), steps=1, objective=TargetedLogit(target=0))(Given(G), X, Y)
    assert torch.allclose(away - X, X - towards, atol=1e-12)


def test_flat_gradients_do_not_break_it():
    zero, _ = Spread()(torch.zeros(1, 1, 2, 2), None)
    assert torch.equal(zero, torch.zeros(1, 1, 2, 2))
    flat = A.LogitStd(ws.Linf(0.1), steps=1)(Given(torch.ones_like(G)), X, Y)
    assert torch.allclose(flat, X - 0.1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="images"):
        A.LogitStd(ws.Linf(0.1))(nn.Linear(3, 2).double(), torch.rand(2, 3).double(), torch.tensor([0, 1]))
    with pytest.raises(BadInput, match="two pixels"):
        Spread()(torch.ones(1, 3, 1, 1), None)
    with pytest.raises(BadInput, match="parameterisation"):
        A.LogitStd(parameterisation=object())
    with pytest.raises(BadInput, match="step"):
        A.LogitStd(step=0.0)
