"""The pretrained CIFAR-10 networks and test images that the benchmarks attack, read from the folder $WITHSTAND_DATA."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

_COLOURS = {
    "resnet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cnn": ((0.4914, 0.4824, 0.4467), (0.2009, 0.1984, 0.2023)),
    "verified": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
}
NETWORKS = {
    "cifar10_cnn_a_adv2": lambda: _cnn_a(),
    "cifar10_cnn_a_adv4": lambda: _cnn_a(),
    "cifar10_cnn_a_mix4": lambda: _cnn_a(),
    "cifar10_resnet2b_adv": lambda: _small_resnet(8, 1),
    "cifar10_resnet4b_adv": lambda: _small_resnet(16, 2),
    "cifar10_resnet20": lambda: _ResNet(3),
    "cifar10_resnet32": lambda: _ResNet(5),
    "cifar10_resnet56": lambda: _ResNet(9),
}
LINF = tuple(e / 255 for e in (0.25, 0.5, 1, 2, 4, 8))
L2 = (0.1, 0.25, 0.5)


def data_root() -> Path:
    """The data folder. Raises SystemExit where $WITHSTAND_DATA names none."""
    root = Path(os.environ.get("WITHSTAND_DATA", ""))
    if not os.environ.get("WITHSTAND_DATA") or not root.is_dir():
        raise SystemExit("set WITHSTAND_DATA to the folder that holds vision/ and weights/")
    return root


def images(n: int = 200) -> tuple[Tensor, Tensor]:
    """The first n images of the CIFAR-10 test part, [n, 3, 32, 32] in [0, 1], and their labels [n]."""
    with zipfile.ZipFile(data_root() / "vision" / "cifar10_test.zip") as z:
        tile = json.load(z.open("meta.json"))["tile"]
        found: list[np.ndarray] = []
        for name in sorted(n_ for n_ in z.namelist() if n_.endswith(".webp")):
            found.append(np.asarray(Image.open(z.open(name)).convert("RGB")).reshape(-1, *tile))
            if sum(map(len, found)) >= n:
                break
        labels = np.load(io.BytesIO(z.read("labels.npy")))[:n]
    x = torch.from_numpy(np.concatenate(found)[:n]).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(), torch.from_numpy(labels).long()


def network(name: str) -> nn.Module:
    """A network by the name of its weight file: images in [0, 1] in, logits out, in eval mode."""
    net = NETWORKS[name]()
    colours = "cnn" if "cnn" in name else "verified" if "adv" in name else "resnet"
    state = torch.load(data_root() / "weights" / f"{name}.pth", map_location="cpu", weights_only=True)
    net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return nn.Sequential(_Normalise(*_COLOURS[colours]), net).eval()


class _Normalise(nn.Module):
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _cnn_a() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


class _Block(nn.Module):
    """A basic block of the CIFAR ResNets: batch norm, and a shortcut that pads channels."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pad = (width - width_in) // 2 if stride != 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(out + shortcut)


class _ResNet(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[_Block(16, 16, 1) for _ in range(n)])
        self.layer2 = nn.Sequential(_Block(16, 32, 2), *[_Block(32, 32, 1) for _ in range(n - 1)])
        self.layer3 = nn.Sequential(_Block(32, 64, 2), *[_Block(64, 64, 1) for _ in range(n - 1)])
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class _PlainBlock(nn.Module):
    """A basic block without batch norm."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width_in, width, 3, stride, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class _SmallResNet(nn.Module):
    def __init__(self, c: int, stages: int, flat: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, c, 3, 2, 1)
        self.layer1 = nn.Sequential(_PlainBlock(c, 2 * c, 2), _PlainBlock(2 * c, 2 * c, 1))
        if stages == 2:
            self.layer2 = nn.Sequential(_PlainBlock(2 * c, 2 * c, 2), _PlainBlock(2 * c, 2 * c, 1))
        self.linear1, self.linear2 = nn.Linear(flat, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.conv1(x)))
        x = self.layer2(x) if hasattr(self, "layer2") else x
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


def _small_resnet(c: int, stages: int) -> _SmallResNet:
    side = 8 if stages == 1 else 4
    return _SmallResNet(c, stages, 2 * c * side * side)
