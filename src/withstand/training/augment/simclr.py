"""The augmentations of contrastive learning: crops of any size, colours, grey, blur, brightness as a whole.

All take images [N, C, H, W] and clips [N, C, T, H, W] (what is drawn for a clip holds for all of its frames), and colours
only where there are three channels.

Reference: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
2020, arXiv 2002.05709.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import component
from withstand.training.augment.photometric import brightness, colour, contrast, grey
from withstand.training.recipe import Step

_TRIES = 10


@component("augmentation", "random_resized_crop")
class RandomResizedCrop:
    """A crop of random area and shape, stretched to the size of the image (bilinear), mirrored by a coin.

    scale: bounds of the crop's share of the area; ratio: of its width over its height, drawn on a logarithmic scale. Of ten
    draws the first that fits is taken, else the whole image. flip: whether mirror images occur (not for digits or
    letters). Crops are not rounded to whole pixels.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise bad("scale", self.scale, "two shares of the area with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise bad("ratio", self.ratio, "two ratios with 0 < low <= high")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        _pictures("random_resized_crop", batch.x)
        h, w = batch.x.shape[-2:]
        boxes = self.boxes(step.rows, h, w)
        flip = step.rows.bits((), "resized crop flip") < 0 if self.flip else None
        return replace(batch, x=crop(batch.x, boxes, flip))

    def boxes(self, rows: Rows, h: int, w: int) -> Tensor:
        """Top, left, height and width of the crops in pixels, float [N, 4]."""
        u = rows.uniform((4, _TRIES), "resized crop")
        area = h * w * (self.scale[0] + u[:, 0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + u[:, 1] * (high - low))
        heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
        fits = (heights <= h) & (widths <= w)
        first = fits.to(torch.int8).argmax(1, keepdim=True)
        some = fits.any(1)
        height = torch.where(some, heights.gather(1, first)[:, 0], float(h))
        width = torch.where(some, widths.gather(1, first)[:, 0], float(w))
        return torch.stack([u[:, 2, 0] * (h - height), u[:, 3, 0] * (w - width), height, width], 1)


def crop(x: Tensor, boxes: Tensor, flip: Tensor | None = None) -> Tensor:
    """x [N, ..., H, W] cut to boxes [N, 4] (top, left, height, width in pixels) and stretched to its own size.

    flip: bool [N], which ones are mirrored.
    """
    h, w = x.shape[-2:]
    top, left, height, width = boxes.to(x.dtype).unbind(1)
    across = width / w if flip is None else torch.where(flip, -width / w, width / w)
    zero = torch.zeros_like(top)
    theta = torch.stack(
        [
            torch.stack([across, zero, (2 * left + width) / w - 1], 1),
            torch.stack([zero, height / h, (2 * top + height) / h - 1], 1),
        ],
        1,
    )
    flat = x.flatten(1, -3)
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(x)


@component("augmentation", "colour_jitter")
class ColourJitter:
    """Brightness, contrast, saturation and hue moved at random, in this order, for a share p of the images.

    Each of the first three is a factor in [1 - v, 1 + v] (not below 0), hue a turn of the colour circle in [-v, v]. The
    defaults are those for CIFAR. Grey images keep saturation and hue. The order is fixed, where others shuffle it. The
    lower end of the range of inputs is black, and the upper one white.

    Raises: BadInput, in the pass, for inputs without a range.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise bad(name, getattr(self, name), "a reach >= 0")
        if not 0 <= self.hue <= 0.5:
            raise bad("hue", self.hue, "a turn in [0, 0.5]")
        _share(self.p)

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        _pictures("colour_jitter", batch.x)
        if step.box is None:
            allowed = "a data set whose space has a box, e.g. (0.0, 1.0)"
            raise bad("colour_jitter", "images without a declared range", allowed)
        low, high = step.box
        x, u = batch.x, step.rows.uniform((5,), "colour jitter").to(batch.x.dtype)
        reach = torch.tensor([self.brightness, self.contrast, self.saturation], dtype=x.dtype, device=x.device)
        factors = (1 - reach + 2 * reach * u[:, :3]).clamp_min(0)
        frames, times = _frames(x)
        made = (frames - low) / (high - low)
        for change, factor in zip((brightness, contrast, colour), factors.unbind(1)):
            made = change(made, factor.repeat_interleave(times))
        if x.shape[1] == 3 and self.hue:
            made = hue(made, (self.hue * (2 * u[:, 3] - 1)).repeat_interleave(times))
        made = made * (high - low) + low
        return replace(batch, x=torch.where(_each(u[:, 4] < self.p, x), _clips(made, x), x))


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """The hue of x [N, 3, H, W] turned by a share of the circle, turn [N]; saturation and value (HSV) stay."""
    r, g, b = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    spread = value - low
    safe = torch.where(spread > 0, spread, 1.0)
    sixth = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    sixth = sixth + 6 * _each(turn, r)
    return torch.stack([_channel(sixth, offset, value, spread) for offset in (5, 3, 1)], 1)


def _channel(sixth: Tensor, offset: int, value: Tensor, spread: Tensor) -> Tensor:
    """One of red, green, blue from the hue in sixths of the circle: value - spread * clip(min(k, 4 - k), 0, 1)."""
    k = (sixth + offset).remainder(6)
    return value - spread * torch.minimum(k, 4 - k).clamp(0, 1)


@component("augmentation", "grayscale")
class Grayscale:
    """Colours lost, all channels alike, for a share p of the images."""

    p: float = 0.2

    def __post_init__(self) -> None:
        _share(self.p)

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        x = batch.x
        _pictures("grayscale", x)
        if x.shape[1] != 3:
            return batch
        some = step.rows.uniform((), "grayscale") < self.p
        return replace(batch, x=torch.where(_each(some, x), _clips(grey(_frames(x)[0]).expand(-1, 3, -1, -1), x), x))


@component("augmentation", "gaussian_blur")
class GaussianBlur:
    """Gaussian blur with a random standard deviation, for a share p of the images.

    sigma: its bounds in pixels. kernel: side of the filter as a share of the image's height, made odd, three at least; what
    hangs over the edge mirrors the image.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: float = 0.1
    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise bad("sigma", self.sigma, "two deviations in pixels with 0 < low <= high")
        if not 0 < self.kernel <= 1:
            raise bad("kernel", self.kernel, "a share of the height in (0, 1]")
        _share(self.p)

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        x = batch.x
        _pictures("gaussian_blur", x)
        u = step.rows.uniform((2,), "gaussian blur").to(x.dtype)
        reach = max(1, min(round(self.kernel * x.shape[-2]) // 2, min(x.shape[-2:]) - 1))
        made = blur(x, self.sigma[0] + u[:, 0] * (self.sigma[1] - self.sigma[0]), reach)
        return replace(batch, x=torch.where(_each(u[:, 1] < self.p, x), made, x))


def blur(x: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """x [N, ..., H, W] blurred by a Gaussian of deviation sigma [N] that is cut off after `reach` pixels."""
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    taps = (-(at**2) / (2 * sigma[:, None] ** 2)).softmax(1)
    flat = x.flatten(1, -3)
    n, c, h, w = flat.shape
    each = taps.repeat_interleave(c, 0)
    padded = F.pad(flat, (reach,) * 4, mode="reflect").reshape(1, n * c, h + 2 * reach, w + 2 * reach)
    rows = F.conv2d(padded, each[:, None, :, None], groups=n * c)
    return F.conv2d(rows, each[:, None, None, :], groups=n * c).view_as(x)


@component("augmentation", "intensity")
class Intensity:
    """Values times one factor of each example, clipped to the range of inputs. low, high: bounds of the factor."""

    low: float = 0.6
    high: float = 1.2

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise bad("low, high", (self.low, self.high), "two factors with 0 <= low <= high")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        factor = step.rows.uniform((), "intensity", low=self.low, high=self.high).to(batch.x.dtype)
        made = batch.x * _each(factor, batch.x)
        return replace(batch, x=made if step.box is None else made.clamp(*step.box))


def _pictures(name: str, x: Tensor) -> None:
    """Refuse what has no height and width."""
    if x.dim() not in (4, 5) or not x.is_floating_point():
        allowed = "float images [N, C, H, W] or clips [N, C, T, H, W]"
        raise bad(name, f"inputs {x.dtype} {list(x.shape)}", allowed, "Give augmentations that suit the data.")


def _frames(x: Tensor) -> tuple[Tensor, int]:
    """The frames of clips [N, C, T, H, W] as images [N * T, C, H, W], and T; images as they are, and 1."""
    return (x, 1) if x.dim() == 4 else (x.movedim(2, 1).flatten(0, 1), x.shape[2])


def _clips(frames: Tensor, like: Tensor) -> Tensor:
    """What `_frames` made, undone."""
    return frames if like.dim() == 4 else frames.unflatten(0, (len(like), -1)).movedim(1, 2)


def _each(values: Tensor, x: Tensor) -> Tensor:
    """One value of each example, shaped to go with x."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _share(p: float) -> None:
    if not 0 <= p <= 1:
        raise bad("p", p, "a share in [0, 1]")
