"""Wide residual networks for 32x32 images.

Reference: Zagoruyko, Komodakis, "Wide residual networks", BMVC 2016, arXiv:1605.07146.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class WideResNet(nn.Module):
    """WideResNet-depth-width: three stages of (depth - 4) / 6 pre-activation blocks, 16, 32, 64 times width channels.

    Input [N, channels, 32, 32].
    """

    def __init__(self, depth: int, width: int, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        n, c = (depth - 4) // 6, 16 * width
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(16, c, 1, n)
        self.block2 = _Stage(c, 2 * c, 2, n)
        self.block3 = _Stage(2 * c, 4 * c, 2, n)
        self.bn1 = nn.BatchNorm2d(4 * c)
        self.fc = nn.Linear(4 * c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class _Stage(nn.Module):
    def __init__(self, before: int, after: int, stride: int, n: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(_Block(before, after, stride), *[_Block(after, after, 1) for _ in range(n - 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        # only where the width changes is the shortcut a convolution, and of the activated input
        self.convShortcut = None if before == after else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))
