"""The zoo by name. Plain literals: listing them imports nothing else."""

import importlib
from typing import Any, NamedTuple

from withstand.errors import unknown

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_Pair = tuple[tuple[float, ...], tuple[float, ...]]


class Entry(NamedTuple):
    """One network. shape: [C, H, W] or [C, T] of an input; home: module and function that builds it; options: its arguments.

    normalise: mean and std of the weights that are published for it, None where they take images in [0, 1].
    """

    name: str
    summary: str
    shape: tuple[int, ...]
    home: str
    options: dict[str, Any] = {}
    normalise: _Pair | None = None
    classes: int = 10

    def build(self, classes: int | None = None) -> Any:
        """The network with fresh weights, which come from torch's global generator."""
        module, _, function = self.home.partition(":")
        made = getattr(importlib.import_module(f"withstand.models.zoo.{module}"), function)
        return made(classes=classes or self.classes, **self.options)


ZOO = (
    Entry("digits_cnn", "small CNN for 8x8 grey images", (1, 8, 8), "small:small_cnn", {"side": 8}),
    Entry("mnist_cnn", "small CNN for 28x28 grey images", (1, 28, 28), "small:small_cnn", {"side": 28}),
    Entry("digits_bn_cnn", "small CNN with batch norm for 8x8 grey images", (1, 8, 8), "small:small_bn_cnn"),
    Entry("mnist_bn_cnn", "small CNN with batch norm for 28x28 grey images", (1, 28, 28), "small:small_bn_cnn"),
    Entry(
        "digits_preact", "pre-activation ResNet of 4 blocks with batch norm for 8x8 grey images", (1, 8, 8),
        "resnet:ResNet", {"blocks": (2, 2), "preact": True, "width": 16, "channels": 1},
    ),
    Entry(
        "digits_nf", "the same without normalisation layers", (1, 8, 8), "resnet:NFResNet",
        {"blocks": (2, 2), "width": 16, "channels": 1},
    ),
    Entry(
        "digits_vit", "small vision transformer with dropout for 8x8 grey images", (1, 8, 8), "vit:vit",
        {"dim": 48, "heads": 3, "depth": 3, "side": 8, "patch": 2, "drop": 0.1, "drop_path": 0.1, "channels": 1},
    ),
    Entry(
        "cnn_a", "two convolutions and two linear layers, 32x32 RGB", (3, 32, 32), "small:cnn_a",
        normalise=((0.4914, 0.4824, 0.4467), (0.2009, 0.1984, 0.2023)),
    ),
    Entry(
        "cnn_a_mnist", "two convolutions and two linear layers, 28x28 grey", (1, 28, 28), "small:cnn_a",
        {"channels": 1, "side": 28},
    ),
    Entry("lenet", "LeNet-5 for 32x32 RGB", (3, 32, 32), "small:LeNet", normalise=((0.5,) * 3, (0.5,) * 3)),
    Entry("cifar_resnet20", "ResNet-20 for CIFAR", (3, 32, 32), "cifar_resnet:CifarResNet", {"n": 3}, _IMAGENET),
    Entry("cifar_resnet32", "ResNet-32 for CIFAR", (3, 32, 32), "cifar_resnet:CifarResNet", {"n": 5}, _IMAGENET),
    Entry("cifar_resnet44", "ResNet-44 for CIFAR", (3, 32, 32), "cifar_resnet:CifarResNet", {"n": 7}, _IMAGENET),
    Entry("cifar_resnet56", "ResNet-56 for CIFAR", (3, 32, 32), "cifar_resnet:CifarResNet", {"n": 9}, _IMAGENET),
    Entry("cifar_resnet110", "ResNet-110 for CIFAR", (3, 32, 32), "cifar_resnet:CifarResNet", {"n": 18}, _IMAGENET),
    Entry(
        "cifar_resnet2b", "ResNet of 2 blocks without batch norm, for verification", (3, 32, 32),
        "cifar_resnet:PlainResNet", {"c": 8, "stages": 1}, _CIFAR,
    ),
    Entry(
        "cifar_resnet4b", "ResNet of 4 blocks without batch norm, for verification", (3, 32, 32),
        "cifar_resnet:PlainResNet", {"c": 16, "stages": 2}, _CIFAR,
    ),
    Entry(
        "wrn16_1", "WideResNet-16-1", (3, 32, 32), "wide_resnet:WideResNet", {"depth": 16, "width": 1},
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ),
    Entry("wrn_28_2", "WideResNet-28-2", (3, 32, 32), "wide_resnet:WideResNet", {"depth": 28, "width": 2}),
    Entry("wrn_28_10", "WideResNet-28-10", (3, 32, 32), "wide_resnet:WideResNet", {"depth": 28, "width": 10}),
    Entry("wrn_34_10", "WideResNet-34-10", (3, 32, 32), "wide_resnet:WideResNet", {"depth": 34, "width": 10}),
    Entry("resnet18", "ResNet-18 with a 3x3 stem, for CIFAR", (3, 32, 32), "resnet:ResNet"),
    Entry(
        "preact_resnet18", "pre-activation ResNet-18 with a 3x3 stem, for CIFAR", (3, 32, 32), "resnet:ResNet",
        {"preact": True},
    ),
    Entry("nf_resnet18", "ResNet-18 without normalisation layers, for CIFAR", (3, 32, 32), "resnet:NFResNet"),
    Entry("vit_ti", "ViT-Ti in patches of 4x4, for CIFAR", (3, 32, 32), "vit:vit", {"dim": 192, "heads": 3}),
    Entry("vit_s", "ViT-S in patches of 4x4, for CIFAR", (3, 32, 32), "vit:vit", {"dim": 384, "heads": 6}),
    Entry("cnn_28", "four convolutions and three linear layers, 28x28 grey", (1, 28, 28), "small:cnn_28"),
    Entry(
        "series_cnn", "one convolution and one hidden layer, univariate time series", (1, 60), "series:SeriesCNN",
        {"channels": 1},
    ),
)  # fmt: skip


def find(name: str) -> Entry:
    """The network with this name. Raises BadInput with the nearest names."""
    for entry in ZOO:
        if entry.name == name.strip().lower().replace("-", "_"):
            return entry
    raise unknown("zoo model", name, (e.name for e in ZOO))
