"""The pretrained CIFAR-10 networks and test images that the benchmarks attack, from the data folder (see load_data)."""

from functools import cache

import torch
from torch import Tensor, nn

import withstand as ws
from withstand.data.load import data_root

NETWORKS = {  # weight file: network of the zoo
    "cifar10_cnn_a_adv2": "cnn_a",
    "cifar10_cnn_a_adv4": "cnn_a",
    "cifar10_cnn_a_mix4": "cnn_a",
    "cifar10_resnet2b_adv": "cifar_resnet2b",
    "cifar10_resnet4b_adv": "cifar_resnet4b",
    "cifar10_resnet20": "cifar_resnet20",
    "cifar10_resnet32": "cifar_resnet32",
    "cifar10_resnet56": "cifar_resnet56",
}
LINF = tuple(e / 255 for e in (0.25, 0.5, 1, 2, 4, 8))
L2 = (0.1, 0.25, 0.5)


@cache
def images(n: int = 200) -> tuple[Tensor, Tensor]:
    """The first n images of the CIFAR-10 test part, [n, 3, 32, 32] in [0, 1], and their labels [n]."""
    batch = ws.load_data("cifar10", split="test").batch(range(n))
    assert batch.y is not None
    return batch.x, batch.y


def network(name: str) -> nn.Module:
    """A network by the name of its weight file: images in [0, 1] in, logits out; in eval mode, parameters frozen."""
    target = ws.load_model(f"zoo:{NETWORKS[name]}", weights=data_root() / "weights" / f"{name}.pth")
    assert target.module is not None
    return target.module.eval().requires_grad_(False)


def one_pass(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The bare pass that costs are measured in: forward, and the gradient of the cross-entropy with respect to x."""
    point = x.detach().requires_grad_(True)
    torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
