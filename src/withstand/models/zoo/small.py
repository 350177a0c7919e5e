"""Networks that train in seconds to minutes on a laptop."""

from torch import Tensor, nn
from torch.nn import functional as F


def small_cnn(side: int, channels: int = 1, classes: int = 10) -> nn.Sequential:
    """Three convolutions (16, 32, 32 channels, the last two with stride 2) and two linear layers; no batch norm.

    Input [N, channels, side, side] in [0, 1], side divisible by 4.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def small_bn_cnn(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """Four convolutions (16, 16, 32, 32 channels, the second and the last with stride 2), each with batch norm, mean
    pooling and a linear layer: the smallest network on which what recipes do to batch norm can be seen.

    Input [N, channels, H, W] in [0, 1].
    """

    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 16, 1),
        *block(16, 16, 2),
        *block(16, 32, 1),
        *block(32, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def cnn_a(side: int = 32, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """The small network on which verified and adversarial training are compared.

    Reference: Wong, Schmidt, Metzen, Kolter, "Scaling provable adversarial defenses", NeurIPS 2018, arXiv:1805.12514.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def cnn_28(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """Four convolutions (32, 32, 64, 64 channels), three linear layers, dropout 0.5; no batch norm.

    Input [N, channels, 28, 28] in [0, 1].

    References: Carlini, Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644
    (table 1, MNIST); Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically principled trade-off between robustness and
    accuracy", ICML 2019, arXiv:1901.08573 (trains it on MNIST).
    """
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 200),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, classes),
    )


class LeNet(nn.Module):
    """LeNet-5 for [N, 3, 32, 32], with ReLU and max-pooling.

    Reference: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
