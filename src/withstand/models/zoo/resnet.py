"""Wide-stemmed residual networks for 32x32 images, as adversarial training is compared on.

References: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385, and
"Identity mappings in deep residual networks", ECCV 2016, arXiv:1603.05027; Brock, De, Smith, "Characterizing signal
propagation to close the performance gap in unnormalized ResNets", ICLR 2021, arXiv:2101.08692.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from withstand.models.layers.weight_standardised import WSConv2d


class ResNet(nn.Module):
    """ResNet of basic blocks with a 3x3 stem and no pooling before the first stage; preact: normalise before convolving.

    Input [N, channels, H, W], 32x32 as a rule; stages of width, 2, 4 and 8 times width channels; (2, 2, 2, 2) blocks of
    width 64 make ResNet-18.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        preact: bool = False,
        width: int = 64,
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        last = width << (len(blocks) - 1)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.layers = _stages(blocks, width, lambda a, b, stride, _: (_PreactBlock if preact else _Block)(a, b, stride))
        # the stem is normalised at once in the plain form, the last sum in the pre-activated one
        self.bn1 = nn.BatchNorm2d(last if preact else width)
        self.linear = nn.Linear(last, classes)
        self.preact = preact

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.relu(self.bn1(self.layers(x))) if self.preact else self.layers(F.relu(self.bn1(x)))
        return self.linear(x.mean((2, 3)))


class NFResNet(nn.Module):
    """ResNet of basic blocks without any normalisation: h' = shortcut + alpha s f(beta relu(h)).

    f is of scaled weight-standardised convolutions (they carry the gain of relu), s a learnable scalar that starts at 0
    (SkipInit), beta = 1 / sqrt(v) the expected standard deviation of h undone: v = 1 at the start and after the first
    block of each stage, where the shortcut is a convolution of the scaled activation, then v grows by alpha^2 a block.
    The stem follows no relu and carries no gain (timm's has it), so that v = 1 holds for inputs of variance 1.

    Input as for ResNet.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        alpha: float = 0.2,
        width: int = 64,
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = WSConv2d(channels, width, 3, padding=1, scale=1.0)
        variance = 1.0

        def block(before: int, after: int, stride: int, first: bool) -> nn.Module:
            nonlocal variance
            made = _NFBlock(before, after, stride, first, alpha, variance**-0.5)
            variance = (1.0 if first else variance) + alpha**2
            return made

        self.layers = _stages(blocks, width, block)
        self.linear = nn.Linear(width << (len(blocks) - 1), classes)
        for module in self.modules():
            if isinstance(module, WSConv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.linear.weight, 0, 0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.layers(self.conv1(x))).mean((2, 3)))


def _stages(blocks: Sequence[int], width: int, block: Callable[[int, int, int, bool], nn.Module]) -> nn.Sequential:
    made, before = [], width
    for i, n in enumerate(blocks):
        for k in range(n):
            made.append(block(before, width << i, 2 if i and not k else 1, k == 0))
            before = width << i
    return nn.Sequential(*made)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class _PreactBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        changes = stride > 1 or before != after
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class _NFBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int, first: bool, alpha: float, beta: float) -> None:
        super().__init__()
        self.conv1 = WSConv2d(before, after, 3, stride=stride, padding=1)
        self.conv2 = WSConv2d(after, after, 3, padding=1)
        # as the convolution beside it, odd sides are rounded up
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        self.shortcut = nn.Sequential(pool, WSConv2d(before, after, 1)) if first else None
        self.strength = nn.Parameter(torch.zeros(()))
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x) * self.beta
        skip = x if self.shortcut is None else self.shortcut(active)
        return skip + self.alpha * self.strength * self.conv2(F.relu(self.conv1(active)))
