"""Weather: snow, frost, fog, brightness (the common kinds) and spatter (an extra one)."""

import numpy as np
import torch
from torch import Tensor

from withstand.corruptions.filters import crop_for, gaussian, motion, zoom_in
from withstand.corruptions.kinds import Job, kind, luma, normal, uniform


@kind("brightness")
def brightness(x: Tensor, c: float, job: Job) -> Tensor:
    """HSV value + c, clipped to 1.

    The value is the largest channel; with hue and saturation fixed all channels scale with it.
    """
    value = x.amax(1, keepdim=True)
    raised = (value + 255 * c).clamp_max_(255)
    return torch.where(value > 0, x * (raised / value.clamp_min(1)), raised)


@kind("fog")
def fog(x: Tensor, c: tuple[float, float], job: Job) -> Tensor:
    """(p + c[0] plasma) max / (max + c[0]) with max the largest p of the image; c[1] is the decay of the plasma.

    The plasma map's side is the power of two that covers the image (256 for 224 pixels), cropped at the top left.
    """
    h, w = x.shape[2:]
    haze = plasma(job, 1 << (max(h, w) - 1).bit_length(), c[1])[:, None, :h, :w]
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + 255 * c[0] * haze) * (most / (most + 255 * c[0]))


def plasma(job: Job, side: int, decay: float) -> Tensor:
    """[n, side, side] in [0, 1]: diamond-square heights on a torus.

    Each level sets the centres of the squares, then of the diamonds, to the mean of their four corners plus
    wibble * U(-wibble, wibble); wibble starts at 100 and is divided by `decay` per level.
    """
    height = uniform(job.rows, (side, side), "plasma") * 2 - 1  # each point's own draw, until its level comes
    height[:, 0, 0] = 0
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        # Views: the points that are known, the centres of their squares, and the two kinds of diamonds' centres.
        known, centre = height[:, ::step, ::step], height[:, half::step, half::step]
        above, beside = height[:, ::step, half::step], height[:, half::step, ::step]
        for points in (centre, above, beside):
            points.mul_(wibble**2)
        pairs = known + known.roll(-1, 1)
        centre.add_((pairs + pairs.roll(-1, 2)) / 4)
        above.add_((centre + centre.roll(1, 1) + known + known.roll(-1, 2)) / 4)
        beside.add_((centre + centre.roll(1, 2) + known + known.roll(-1, 1)) / 4)
        step, wibble = half, wibble / decay
    height -= height.amin((1, 2), keepdim=True)
    return height / height.amax((1, 2), keepdim=True).clamp_min(1e-12)


@kind("snow")
def snow(x: Tensor, c: tuple[float, float, float, float, int, float, float], job: Job) -> Tensor:
    """Whitened image + flakes + flakes turned by 180 degrees, c = (loc, scale, zoom, threshold, radius, sigma, keep).

    Whitened: keep p + (1 - keep) max(p, 1.5 grey + 0.5). Flakes: noise N(loc, scale^2) zoomed in, values under the
    threshold set to 0, clipped and truncated to 8 bits, motion blurred at an angle U(-135, -45) degrees, rounded.
    """
    loc, scale, zoom, threshold, radius, sigma, keep = c
    h, w = x.shape[2:]
    seen = (1, crop_for(h, zoom)[1], crop_for(w, zoom)[1])  # only this part of the noise is ever seen
    flakes = zoom_in(normal(job.rows, seen, "flakes") * scale + loc, zoom, h, w)
    flakes = (flakes.masked_fill(flakes < threshold, 0).clamp(0, 1) * 255).floor_()
    flakes = motion(flakes, radius, sigma, angle=uniform(job.rows, (), "angle") * 90 - 135).round_()
    whitened = keep * x + (1 - keep) * torch.maximum(x, luma(x) * 1.5 + 127.5)
    return whitened + flakes + flakes.rot90(2, (2, 3))


@kind("frost", colour=True)
def frost(x: Tensor, c: tuple[float, float], job: Job) -> Tensor:
    """c[0] p + c[1] t with t a random crop of one of five frost textures.

    The published textures are photographs that do not come with this library: see `withstand.corruptions.frost`.
    """
    h, w = x.shape[2:]
    choice = job.rows.integers((), 0, len(job.textures), "texture").tolist()
    place = uniform(job.rows, (2,), "crop").tolist()
    crops = []
    for which, (down, right) in zip(choice, place):
        tall, wide = job.textures[which].shape[1:]
        top, left = int(down * (tall - h)), int(right * (wide - w))
        crops.append(job.textures[which][:, top : top + h, left : left + w])
    return c[0] * x + c[1] * torch.stack(crops).to(x.device)


@kind("spatter", colour=True)
def spatter(x: Tensor, c: tuple[float, float, float, float, float, int], job: Job) -> Tensor:
    """Water drops (the three lower severities) or mud, c = (loc, scale, sigma, threshold, strength, mud).

    Liquid: noise N(loc, scale^2), blurred by sigma, values under the threshold set to 0. Water: p + m (175, 238, 238)
    / 255 with m from the liquid and the distance to its edges. Mud: p (1 - m) + m (63, 42, 20) / 255 with m = the
    liquid's area blurred by `strength`, values under 0.8 set to 0.
    """
    loc, scale, sigma, threshold, strength, mud = c
    liquid = gaussian(normal(job.rows, (1, *x.shape[2:]), "liquid") * scale + loc, sigma)
    if mud:
        mask = gaussian((liquid > threshold).float(), strength)
        mask = mask.masked_fill(mask < 0.8, 0)
        return x * (1 - mask) + mask * torch.tensor([63.0, 42, 20], device=x.device).view(1, 3, 1, 1)
    layers = (liquid.masked_fill(liquid < threshold, 0) * 255).clamp_(0, 255).byte().cpu().numpy()
    mask = torch.from_numpy(np.stack([_drops(layer[0]) for layer in layers]))[:, None].to(x.device) * strength
    return x + mask * torch.tensor([175.0, 238, 238], device=x.device).view(1, 3, 1, 1)


def _drops(liquid: np.ndarray) -> np.ndarray:
    """How strongly water shows, at most 1: [H, W] of float32, from the liquid layer in uint8."""
    import cv2

    edges = 255 - cv2.Canny(liquid, 50, 150)
    distance = np.minimum(cv2.distanceTransform(edges, cv2.DIST_L2, 5), 20)
    distance = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)
    shine = liquid * cv2.blur(cv2.filter2D(distance, cv2.CV_8U, relief), (3, 3)).astype(np.float32)
    return shine / max(float(shine.max()), 1.0)
