"""Residual networks for 32x32 images.

Reference: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385 (4.2).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers with parameter-free shortcuts (option A of the paper).

    Input [N, 3, 32, 32]; three stages of n basic blocks with 16, 32 and 64 channels; global mean; one linear layer.
    """

    def __init__(self, n: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[_Block(16, 16) for _ in range(n)])
        self.layer2 = nn.Sequential(_Block(16, 32), *[_Block(32, 32) for _ in range(n - 1)])
        self.layer3 = nn.Sequential(_Block(32, 64), *[_Block(64, 64) for _ in range(n - 1)])
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = after // before
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.grows = after > before

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows:
            side = out.shape[1] // 4  # half of the new channels, all zero, on each side of the old ones
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
        return F.relu(out + x)


class PlainResNet(nn.Module):
    """A small ResNet without batch norm, all layers with bias, as verification tools use it.

    Input [N, 3, 32, 32]; a convolution to c channels with stride 2, then 1 or 2 stages of two blocks with 2c channels,
    each stage halving the side; flattened; two linear layers.

    Reference: Wang, Zhang, Xu, Lin, Jana, Hsieh, Kolter, "Beta-CROWN", NeurIPS 2021, arXiv:2103.06624 (its CIFAR
    ResNet-2B and ResNet-4B).
    """

    def __init__(self, c: int, stages: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, c, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(_PlainBlock(c, 2 * c, 2), _PlainBlock(2 * c, 2 * c, 1))
        self.layer2 = (
            nn.Sequential(_PlainBlock(2 * c, 2 * c, 2), _PlainBlock(2 * c, 2 * c, 1))
            if stages == 2
            else nn.Sequential()
        )
        self.linear1 = nn.Linear(2 * c * (16 // 2**stages) ** 2, 100)
        self.linear2 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.conv1(x))))
        return self.linear2(F.relu(self.linear1(torch.flatten(x, 1))))


class _PlainBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        changes = stride > 1 or before != after
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride)) if changes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))
