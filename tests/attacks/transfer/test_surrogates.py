"""Views of the model: ensembles in logits, and skip-gradient."""

import pytest
import torch
from torch import Tensor, nn

import withstand as ws
from withstand.attacks.transfer.surrogates import ensemble, skip_gradient
from withstand.errors import BadInput
from withstand.models.target import TorchTarget
from withstand.models.zoo.cifar_resnet import CifarResNet
from withstand.protocols import Space

A = ws.attacks
X = ws.Rows.count(0, 6).uniform((3, 8, 8), "x", dtype=torch.float64)


def linear(seed: int, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).double()


def slope(model, x: Tensor, k: int = 0) -> Tensor:
    point = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(point)[:, k].sum(), point)[0]


def test_an_ensemble_averages_logits_and_one_member_is_itself():
    one, two = linear(1), linear(2)
    assert torch.allclose(ensemble([one, two])(X), (one(X) + two(X)) / 2)
    y = one(X).argmax(1)
    assert torch.equal(A.MI()(ensemble([one]), X, y), A.MI()(one, X, y))
    assert not torch.equal(A.MI()(ensemble([one, two]), X, y), A.MI()(one, X, y))
    assert ensemble([one, two]).name == "Sequential+Sequential"


class Block(nn.Module):
    """z + f(z), added in place as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def branch(self, z: Tensor) -> Tensor:
        return self.conv2(torch.tanh(self.conv1(z)))

    def forward(self, z: Tensor) -> Tensor:
        out = self.branch(z)
        out += z
        return out


@pytest.fixture
def two_blocks() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(192, 4)).double()


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_branches_pass_on_their_share_of_the_gradient(gamma, two_blocks):
    first, second, _, last = two_blocks
    model = skip_gradient(two_blocks, gamma)
    assert torch.equal(model(X), two_blocks(X)), "the forward pass is untouched"

    def back(block: Block, z: Tensor, g: Tensor) -> Tensor:
        point = z.detach().requires_grad_(True)
        return g + gamma * torch.autograd.grad(block.branch(point), point, g)[0]

    z = first(X)
    g = last.weight[0].reshape(1, 3, 8, 8).expand_as(X)
    assert torch.allclose(slope(model, X), back(first, X, back(second, z, g)), atol=1e-12)
    assert torch.allclose(slope(two_blocks, X), slope(skip_gradient(two_blocks, 1.0), X), atol=1e-12)


def test_branches_are_found_in_residual_networks_and_by_name(two_blocks):
    net = CifarResNet(3).eval()
    found = skip_gradient(net, 0.5).module.model.ends
    assert [id(m) for m in found] == [id(m) for n, m in net.named_modules() if n.endswith("bn2")]
    assert len(found) == 9
    named = skip_gradient(net, 0.5, r"layer3\.\d+\.bn2").module.model.ends
    assert len(named) == 3
    assert not any(part._forward_hooks for part in net.modules()), "hooks live within a forward pass"
    x = ws.Rows.count(0, 2).uniform((3, 32, 32), "x")
    assert not torch.allclose(slope(skip_gradient(net, 0.2), x), slope(net, x))
    assert not any(part._forward_hooks for part in net.modules())


def test_attacks_run_on_it(two_blocks):
    y = two_blocks(X).argmax(1)
    r = A.MI(ws.Linf(0.3)).run(skip_gradient(two_blocks, 0.5), X, y)
    plain = A.MI(ws.Linf(0.3)).run(two_blocks, X, y)
    assert float(r.distance.max()) <= 0.3 + 1e-9
    assert not torch.equal(r.x_adv, plain.x_adv)
    full = A.MI(ws.Linf(0.3)).run(skip_gradient(two_blocks, 1.0), X, y)
    assert torch.equal(full.x_adv, plain.x_adv)


def test_what_does_not_fit_is_refused(two_blocks):
    with pytest.raises(BadInput, match="one surrogate"):
        ensemble([])
    spaces = [TorchTarget(linear(i, k), f"m{k}", Space((3, 8, 8), classes=k)) for i, k in enumerate((4, 5))]
    with pytest.raises(BadInput, match="classes"):
        ensemble(spaces)
    with pytest.raises(BadInput, match="classes"):
        ensemble([linear(0, 4), linear(1, 5)])(X)
    for gamma in (0.0, 1.5):
        with pytest.raises(BadInput, match="gamma"):
            skip_gradient(two_blocks, gamma)
    with pytest.raises(BadInput, match="branches"):
        skip_gradient(linear(0))
    with pytest.raises(BadInput, match="branches"):
        skip_gradient(two_blocks, 0.5, "nothing")
    black_box = TorchTarget(linear(0))
    black_box.module = None
    with pytest.raises(BadInput, match="gradients"):
        ensemble([black_box])
