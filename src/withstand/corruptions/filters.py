"""Linear filters on blocks of images [n, C, H, W], for any image size down to one pixel.

Each output pixel is summed in a fixed order that does not depend on the size of the block.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor


def fold(index: Tensor, size: int, border: str) -> Tensor:
    """Positions outside 0..size-1 brought back inside, as the border rule says.

    border: "edge" (aa|abc|cc), "mirror" (cb|abc|ba, the edge pixel once), "reflect" (ba|abc|cb, the edge pixel twice).
    """
    if border == "edge" or size == 1:
        return index.clamp(0, size - 1)
    period = 2 * size - 2 if border == "mirror" else 2 * size
    index = index.remainder(period)
    return torch.where(index < size, index, (period if border == "mirror" else period - 1) - index)


def pad(x: Tensor, left: int, right: int, axis: int, border: str) -> Tensor:
    """x with `left` and `right` more pixels along an axis."""
    size = x.shape[axis]
    return x.index_select(axis, fold(torch.arange(-left, size + right, device=x.device), size, border))


def gaussian_taps(sigma: float, truncate: float) -> list[float]:
    """exp(-i^2 / (2 sigma^2)) for |i| <= truncate * sigma (rounded), normalised; [1] where sigma is too small."""
    radius = int(truncate * sigma + 0.5)
    return _normalised([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)] if radius else [1.0])


def _normalised(taps: list[float]) -> list[float]:
    total = sum(taps)
    return [tap / total for tap in taps]


def gaussian(x: Tensor, sigma: float, truncate: float = 4.0, border: str = "edge") -> Tensor:
    """Gaussian blur, cut at truncate * sigma (what skimage.filters.gaussian does)."""
    taps = gaussian_taps(sigma, truncate)
    radius = len(taps) // 2
    if radius > 32:  # one matrix takes less time than so many shifted sums
        return _along(x, *(smoothing_matrix(size, sigma, truncate, border).to(x.device) for size in x.shape[2:]))
    for axis in (2, 3) if radius else ():
        size = x.shape[axis]
        wide = pad(x, radius, radius, axis, border)
        x = wide.narrow(axis, radius, size) * taps[radius]
        for i in range(radius):
            x.add_(wide.narrow(axis, i, size), alpha=taps[i])
            x.add_(wide.narrow(axis, 2 * radius - i, size), alpha=taps[i])
    return x


@lru_cache(64)
def smoothing_matrix(size: int, sigma: float, truncate: float, border: str) -> Tensor:
    """[size, size]: the Gaussian blur along an axis as one matrix, however wide the kernel."""
    taps = torch.tensor(gaussian_taps(sigma, truncate), dtype=torch.float64)
    radius = len(taps) // 2
    column = fold(torch.arange(size)[:, None] + torch.arange(-radius, radius + 1), size, border)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, column, taps.expand(size, -1)).float()


def _along(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ x @ columns^T for each plane of x: one product of the same shape per plane, so that a plane's result does
    not hang on the size of the block."""
    planes = x.flatten(0, 1)
    planes = torch.bmm(planes, columns.T.expand(len(planes), -1, -1))
    return torch.bmm(rows.expand(len(planes), -1, -1), planes).view_as(x)


def convolve(x: Tensor, kernel: np.ndarray) -> Tensor:
    """Correlation with a kernel of odd side, the same for all channels; borders mirrored."""
    h, w = x.shape[2:]
    ry, rx = kernel.shape[0] // 2, kernel.shape[1] // 2
    wide = pad(pad(x, ry, ry, 2, "mirror"), rx, rx, 3, "mirror")
    used = np.argwhere(kernel)
    if len(used) <= 64:  # a few shifted sums beat the transform
        out = torch.zeros_like(x)
        for dy, dx in used.tolist():
            out.add_(wide[:, :, dy : dy + h, dx : dx + w], alpha=float(kernel[dy, dx]))
        return out
    size = [next_fast_len(n, real=True) for n in wide.shape[2:]]
    flipped = torch.from_numpy(kernel[::-1, ::-1].astype(np.float32)).to(x.device)
    product = torch.fft.rfft2(wide, s=size) * torch.fft.rfft2(flipped, s=size)
    return torch.fft.irfft2(product, s=size)[:, :, 2 * ry : 2 * ry + h, 2 * rx : 2 * rx + w]


def motion(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """One-sided Gaussian trail at an angle of its own for each image.

    sum_i k_i shift(x, dy_i, dx_i) with k_i ~ exp(-i^2 / (2 sigma^2)), i = 0..2 radius, normalised,
    dy_i = -ceil(i sin(angle) - 1/2), dx_i = -ceil(i cos(angle) - 1/2); edges replicated; the sum ends where a shift
    leaves the image. angle: [n] in degrees.
    """
    h, w = x.shape[2:]
    taps = _normalised([math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 * radius + 1)])
    reach_y, reach_x = min(2 * radius, h - 1), min(2 * radius, w - 1)
    wide = pad(pad(x, reach_y, reach_y, 2, "edge"), reach_x, reach_x, 3, "edge")
    out = torch.zeros_like(x)
    for image, trail, degrees in zip(wide, out, angle.tolist()):
        sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        for i, tap in enumerate(taps):
            top = reach_y + math.ceil(i * sin - 0.5)
            left = reach_x + math.ceil(i * cos - 0.5)
            if not (0 <= top <= 2 * reach_y and 0 <= left <= 2 * reach_x):
                break
            trail.add_(image[:, top : top + h, left : left + w], alpha=tap)
    return out


def zoom_in(x: Tensor, factor: float, h: int, w: int) -> Tensor:
    """x, the crop that `crop_for` names, enlarged linearly (corner on corner) by a factor and trimmed to h x w."""
    tall, wide = round(x.shape[2] * factor), round(x.shape[3] * factor)
    x = F.interpolate(x, size=(tall, wide), mode="bilinear", align_corners=True)
    top, left = (tall - h) // 2, (wide - w) // 2
    return x[:, :, top : top + h, left : left + w]


def crop_for(size: int, factor: float) -> tuple[int, int]:
    """First position and length of the central part of an axis that fills the axis again after a zoom."""
    length = math.ceil(size / factor)
    return (size - length) // 2, length


def shrink(x: Tensor, axis: int, size: int) -> Tensor:
    """Pillow's BOX resampling of an axis to fewer pixels: the mean of the pixels whose centre the new pixel covers.

    x holds whole levels, so that its running sums are exact.
    """
    first, last = (bound.to(x.device) for bound in _covered(x.shape[axis], size))
    sums = F.pad(x.cumsum(axis), (1, 0) if axis == 3 else (0, 0, 1, 0))
    count = (last - first).view(-1, *[1] * (3 - axis))
    return (sums.index_select(axis, last) - sums.index_select(axis, first)) / count


@lru_cache(64)
def _covered(before: int, after: int) -> tuple[Tensor, Tensor]:
    """The first old pixel that each new pixel covers, and the one after the last. Both of Pillow's tests, in its order
    of operations, since centres often lie on the boundary."""
    scale = before / after
    pixel, centre = torch.arange(before), (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    offset = (pixel - centre + 0.5) * (1 / scale)
    within = (pixel >= (centre - scale / 2 + 0.5).floor()) & (pixel < (centre + scale / 2 + 0.5).floor())
    covered = (within & (offset > -0.5) & (offset <= 0.5)).long()
    first = covered.argmax(1)
    return first, first + covered.sum(1)
