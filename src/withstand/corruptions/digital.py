"""Digital: contrast, elastic transform, pixelate, JPEG (the common kinds) and saturate (an extra one)."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.corruptions.filters import gaussian, shrink
from withstand.corruptions.kinds import Job, kind, uniform


@kind("contrast")
def contrast(x: Tensor, c: float, job: Job) -> Tensor:
    """(p - mean) c + mean, the mean taken over each channel of each image."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean).mul_(c).add_(mean)


@kind("saturate", colour=True)
def saturate(x: Tensor, c: tuple[float, float], job: Job) -> Tensor:
    """HSV saturation * c[0] + c[1], clipped to [0, 1].

    With hue and value fixed a channel is value (1 - saturation k) with k = (value - channel) / (value - smallest);
    grey pixels have hue 0 (red), k = (0, 1, 1).
    """
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - least
    saturation = (spread / value.clamp_min(1) * c[0] + c[1]).clamp_(0, 1)
    red = torch.tensor([0.0, 1, 1], device=x.device).view(1, 3, 1, 1)
    k = torch.where(spread > 0, (value - x) / spread.clamp_min(1), red)
    return value * (1 - saturation * k)


@kind("pixelate")
def pixelate(x: Tensor, c: float, job: Job) -> Tensor:
    """Down to int(c S) pixels a side and up again with Pillow's BOX filter, rounded to 8 bits after each axis."""
    h, w = x.shape[2:]
    small = max(int(h * c), 1), max(int(w * c), 1)
    for axis in (3, 2):
        x = torch.floor(shrink(x, axis, small[axis - 2]) + (0.5 + 2.0**-10))
    for axis, (old, new) in zip((2, 3), zip((h, w), small)):  # to more pixels the filter takes the nearest
        x = x.index_select(axis, (2 * torch.arange(old, device=x.device) + 1) * new // (2 * old))
    return x


@kind("jpeg_compression")
def jpeg_compression(x: Tensor, c: int, job: Job) -> Tensor:
    """Through a JPEG file of quality c (Pillow: 4:2:0 colour, standard tables). Not differentiable, runs on the CPU."""
    from PIL import Image

    done = np.empty(x.shape, dtype=np.uint8)
    for image, out in zip(x.byte().cpu().numpy(), done):
        file = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))).save(
            file, "JPEG", quality=c
        )
        out[:] = np.atleast_3d(np.asarray(Image.open(file))).transpose(2, 0, 1)
    return torch.from_numpy(done).to(x.device).float()


@kind("elastic_transform")
def elastic_transform(x: Tensor, c: tuple[float, float, float], job: Job) -> Tensor:
    """A random affine map, then random smooth displacements, both with linear interpolation.

    c = (alpha, sigma, affine) in image sides (of 244 pixels for 224, as published). The affine map moves three points
    by U(-affine, affine) per coordinate, borders mirrored; the displacements are U(-1, 1) fields, Gaussian-smoothed by
    sigma (cut at 3 sigma), times alpha, borders reflected.
    """
    h, w = x.shape[2:]
    unit = min(h, w) * (244 / 224 if job.preset == "imagenet" else 1)
    alpha, sigma, affine = (value * unit for value in c)
    moved = (uniform(job.rows, (3, 2), "affine") * 2 - 1) * affine
    x = _sample(x, _affine(moved, h, w), "mirror")
    if not alpha:
        return x
    shift = uniform(job.rows, (2, h, w), "displacement") * 2 - 1
    shift = gaussian(shift, sigma, 3.0, "reflect")
    return _sample(x, _grid(h, w, x.device) + alpha * shift, "reflect")


def _affine(moved: Tensor, h: int, w: int) -> Tensor:
    """Where each pixel comes from, [n, (y, x), h, w], under the affine map that moves three corner points.

    moved: [n, 3, (x, y)]. The points lie around the centre, a third of the shorter side away along each axis.
    """
    far = max(min(h, w) // 3, 1)
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, -1]], device=moved.device) * far
    target = F.pad(corners + moved, (0, 1), value=1.0)
    across, down, still = (torch.linalg.inv_ex(target)[0] @ corners)[..., None, None].unbind(1)  # [n, (x, y), 1, 1]
    y, x = _grid(h, w, moved.device)
    centre = torch.tensor([w // 2, h // 2], device=moved.device).view(2, 1, 1)
    return (across * (x - w // 2) + down * (y - h // 2) + still + centre).flip(1)


def _grid(h: int, w: int, device: torch.device) -> Tensor:
    """[(y, x), h, w] of pixel positions."""
    axes = torch.arange(h, device=device), torch.arange(w, device=device)
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).float()


def _sample(x: Tensor, place: Tensor, border: str) -> Tensor:
    """x at fractional pixel positions [n, (y, x), h, w], linearly; border: "mirror" or "reflect", as in `fold`."""
    inner = border == "mirror"  # whether the mirror stands on the edge pixel or half a pixel outside
    size = torch.tensor([x.shape[3], x.shape[2]], device=x.device)
    place = place.flip(1).permute(0, 2, 3, 1)
    scaled = 2 * place / (size - 1).clamp_min(1) - 1 if inner else (2 * place + 1) / size - 1
    return F.grid_sample(x, scaled, mode="bilinear", padding_mode="reflection", align_corners=inner)
