"""What normaliser-free networks use in place of batch norm: standardised weights, and gradients clipped by unit.

References: Brock, De, Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
ICLR 2021, arXiv:2101.08692; Brock, De, Smith, Simonyan, "High-performance large-scale image recognition without
normalization", ICML 2021, arXiv:2102.06171.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from withstand.errors import bad

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # 1 / the standard deviation of relu(z), z standard normal


class WSConv2d(nn.Conv2d):
    """Convolution with scaled weight standardisation.

    For each output unit with n = in_channels / groups * kernel area inputs, and mean and biased variance over them,

        W' = scale * gain * (W - mean W) / sqrt(n * (var W + eps)),

    gain learnable per unit, 1 at the start; scale fixed: with RELU_GAIN, relu and the convolution together keep a
    variance of 1. Computed in float32 at least. Other arguments are those of Conv2d.

    Raises: BadInput for units with one input, which have no variance.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        scale: float = RELU_GAIN,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        if self.weight[0].numel() < 2:
            raise bad("kernel_size", f"{kernel_size} with one channel per group", "at least 2 inputs for each unit")
        self.gain = nn.Parameter(torch.ones(out_channels))
        self.scale, self.eps = scale, eps

    def standardised(self) -> Tensor:
        """W', of the shape and dtype of the weight."""
        w = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        variance, mean = torch.var_mean(w, (1, 2, 3), correction=0, keepdim=True)
        factor = self.scale * torch.rsqrt((variance + self.eps) * w[0].numel()) * self.gain[:, None, None, None]
        return ((w - mean) * factor).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.standardised(), self.bias)


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], threshold: float = 0.01, eps: float = 1e-3) -> None:
    """Adaptive gradient clipping, in place, unit by unit (row of a weight; a parameter of one dimension is one unit):

        G_i <- G_i * threshold * max(|W_i|, eps) / |G_i|   where |G_i| > threshold * max(|W_i|, eps).

    Call it between the backward pass and the optimiser's step, after gradients are unscaled and averaged over processes,
    and leave the parameters of the last linear layer out, as the paper does. Without a gradient nothing happens.

    Raises: BadInput for a threshold or eps that is not above 0.
    """
    for name, value in (("threshold", threshold), ("eps", eps)):
        if not value > 0:
            raise bad(name, value, "a number > 0")
    for p in parameters:
        if p.grad is not None:
            most = threshold * _unit_norm(p).clamp(min=eps)
            norm = _unit_norm(p.grad)
            p.grad.mul_(torch.where(norm > most, most / norm, torch.ones_like(norm)))


def _unit_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())) if x.dim() > 1 else None, keepdim=True)
