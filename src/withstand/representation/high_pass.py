"""What is left of images without their low frequencies."""

import torch
from torch import Tensor

from withstand.errors import bad


def high_pass(x: Tensor, radius: float) -> Tensor:
    """Images [..., H, W] without the frequencies (u, v), in cycles per image, of sqrt(u^2 + v^2) < radius; not clipped.

    The mean goes with them, so that what returns lies around 0. The published 8 is meant for images of 32 pixels; above
    hypot(H, W) / 2 nothing is left. Published code centres its mask at half the side, which for odd sides is no frequency.

    Raises: BadInput for a radius that is not above zero.

    Reference: Fan, Liu, Chen, Zhang, Gan, 2021, arXiv 2111.01124.
    """
    if not radius > 0:
        raise bad("radius", radius, "cycles per image > 0")
    height, width = x.shape[-2:]
    u = torch.fft.fftfreq(height, 1 / height, device=x.device).round()
    v = torch.fft.rfftfreq(width, 1 / width, device=x.device).round()
    with torch.autocast(x.device.type, enabled=False):
        spectrum = torch.fft.rfft2(x if x.dtype == torch.float64 else x.float())
        return torch.fft.irfft2(spectrum * (torch.hypot(u[:, None], v) >= radius), s=(height, width)).to(x.dtype)
