"""Translation-invariant gradients."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from withstand.attacks.transfer.parts import SMALL, images
from withstand.errors import bad
from withstand.registry import component


@component("shaping", "translation", systems=("transfer_baselines",))
class Translation:
    """Translation invariance (TI): each channel of the gradient convolved with a kernel that sums to 1.

    With i = -k..k over a line of size = 2k + 1 pixels: gaussian is exp(-(3 i / k)^2 / 2), uniform is constant, linear is
    1 - |i| / (k + 1); kernels are outer products of lines, and the gradient continues with zeros. It goes before momentum.

    size: odd; None takes 15, and 5 for images below 64 pixels.

    Reference: Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", 2019,
    arXiv 1904.02884 (its text has sigma = k / sqrt(3); the published code, followed here, k / 3).
    """

    kernel: Literal["gaussian", "uniform", "linear"] = "gaussian"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (self.size < 1 or self.size % 2 == 0):
            raise bad("size", self.size, "an odd number of pixels >= 1, or None")

    def __call__(self, gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        sides = images("translation", gradient)
        line = self._line(self.size or (15 if min(sides) >= SMALL else 5)).to(gradient)
        channels, pad = gradient.shape[1], len(line) // 2
        rows = F.conv2d(gradient, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(pad, 0), groups=channels)
        return F.conv2d(
            rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, pad), groups=channels
        ), memory

    def _line(self, size: int) -> Tensor:
        k = size // 2
        i = torch.arange(-k, k + 1, dtype=torch.float64)
        if self.kernel == "gaussian":
            line = torch.exp(-((3 * i / max(k, 1)) ** 2) / 2)
        else:
            line = torch.ones_like(i) if self.kernel == "uniform" else 1 - i.abs() / (k + 1)
        return line / line.sum()
