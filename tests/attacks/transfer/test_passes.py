"""Surrogates with passes of their own: linear backpropagation and ghost networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import withstand as ws
from withstand.attacks.transfer.passes import ghost, linear_backward
from withstand.errors import BadInput
from withstand.models.zoo.cifar_resnet import CifarResNet

A = ws.attacks
X = ws.Rows.count(0, 3).uniform((3, 6, 6), "x", dtype=torch.float64)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(z)))
        out += z
        return F.relu(out)


@pytest.fixture
def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), Block(), Block(), nn.Flatten(), nn.Linear(108, 4)]
        return nn.Sequential(*layers).double()


def slope(model, x: Tensor, k: int = 0) -> Tensor:
    point = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(point)[:, k].sum(), point)[0]


def rescaled(own: Tensor, true: Tensor) -> Tensor:
    own_, true_ = (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for g in (own, true))
    return own * true_ / own_


def back(block: Block, z: Tensor, g: Tensor) -> Tensor:
    """The way back by hand: ReLUs as identities, the branch at the length it has with the true one."""
    inner = block.conv1(z)

    def to_z(h: Tensor) -> Tensor:
        return torch.autograd.grad(block.conv1(point := z.detach().requires_grad_(True)), point, h)[0]

    to_relu = torch.autograd.grad(block.conv2(relued := inner.relu().detach().requires_grad_(True)), relued, g)[0]
    return g + rescaled(to_z(to_relu), to_z(to_relu * (inner > 0)))


def test_gradients_pass_relus_as_if_they_were_not_there(net):
    model = linear_backward(net)
    assert torch.equal(model(X), net(X)), "the forward pass is untouched"
    point = X.clone().requires_grad_(True)
    assert torch.equal(model(point), net(X))
    first, _, one, two, _, last = net
    z = first(X).relu()
    g = last.weight[0].reshape(1, 3, 6, 6).expand_as(X)
    g = back(one, z, back(two, one(z), g))
    by_hand = torch.einsum("oc,nohw->nchw", first.weight[:, :, 0, 0], g)
    assert torch.allclose(slope(model, X), by_hand, atol=1e-10)
    assert not torch.allclose(slope(model, X), slope(net, X))


def test_it_begins_at_a_module_and_past_the_last_it_is_the_plain_model(net):
    first, relu, one, two, _, last = net
    z = one(first(X).relu())
    g = last.weight[0].reshape(1, 3, 6, 6).expand_as(X)
    tail = back(two, z, g)
    point = X.clone().requires_grad_(True)
    wanted = torch.autograd.grad(one(relu(first(point))), point, tail)[0]
    assert torch.allclose(slope(linear_backward(net, "3"), X), wanted, atol=1e-10)
    assert torch.equal(slope(linear_backward(net, "5"), X), slope(net, X))
    y = net(X).argmax(1)
    attack = A.MI(ws.Linf(0.3))
    assert torch.equal(attack(linear_backward(net, "5"), X, y), attack(net, X, y))
    assert not torch.equal(attack(linear_backward(net), X, y), attack(net, X, y))


def test_networks_of_the_zoo_pass_too_and_are_left_as_they_were():
    resnet = CifarResNet(3).eval()
    x = ws.Rows.count(0, 2).uniform((3, 32, 32), "x")
    plain = slope(resnet, x)
    for surrogate in (linear_backward(resnet, "layer2"), ghost(resnet)):
        assert not torch.allclose(slope(surrogate, x), plain)
        assert torch.equal(surrogate(x), resnet(x))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in resnet.modules())
    assert torch.equal(slope(resnet, x), plain)
    y = resnet(x).argmax(1)
    r = A.MI(ws.Linf(0.1), steps=2).run(linear_backward(resnet), x, y)
    assert float(r.distance.max()) <= 0.1 + 1e-6


def test_a_ghost_without_spread_is_the_model(net):
    assert torch.allclose(slope(ghost(net, 0.0), X), slope(net, X), atol=1e-12)
    y = net(X).argmax(1)
    assert torch.equal(A.MI(ws.Linf(0.3))(ghost(net, 0.0), X, y), A.MI(ws.Linf(0.3))(net, X, y))


def test_a_ghost_scales_the_skip_and_leaves_the_branch(net):
    block = nn.Sequential(net[2], nn.Flatten(), net[5])
    point = X.clone().requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = ghost(block, 0.3)(point)
        torch.manual_seed(5)
        scale = torch.empty(3, 3, 1, 1, dtype=X.dtype).uniform_(0.7, 1.3)
    branch = net[2].conv2(net[2].conv1(X).relu())
    assert torch.allclose(found, net[5]((branch + scale * X).relu().flatten(1)), atol=1e-12)


def test_every_pass_is_another_ghost_and_a_run_repeats(net):
    model = ghost(net)
    with torch.random.fork_rng():
        assert not torch.equal(slope(model, X), slope(model, X))
    y = net(X).argmax(1)
    attack = A.MI(ws.Linf(0.3))
    assert torch.equal(attack(model, X, y, seed=1), attack(model, X, y, seed=1))
    assert torch.equal(model(X), net(X)), "passes without gradients are the model's own"


def test_what_does_not_fit_is_refused(net):
    for start in ("nothing", ""):
        with pytest.raises(BadInput, match="start"):
            linear_backward(net, start)
    for spread in (-0.1, 1.0):
        with pytest.raises(BadInput, match="spread"):
            ghost(net, spread)
    with pytest.raises(BadInput, match="blocks"):
        ghost(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(BadInput, match="blocks"):
        ghost(net, blocks="nothing")

    class Norm(Block):
        def forward(self, z: Tensor) -> Tensor:
            return z + self.conv2(F.relu(self.conv1(F.relu(z))))

    odd = nn.Sequential(Norm(), nn.Flatten(), nn.Linear(108, 2)).double()
    with pytest.raises(BadInput, match="changes its input before conv1"):
        slope(ghost(odd), X)
