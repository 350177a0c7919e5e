"""`corrupt`: one kind at one severity on a batch of images."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import torch
from torch import Tensor

from withstand.corruptions import blur, digital, noise, weather  # noqa: F401  (each registers its kinds)
from withstand.corruptions.frost import Textures, textures
from withstand.corruptions.kinds import KINDS, NEEDS_COLOUR, Job, luma
from withstand.corruptions.tables import SEVERITIES, SIDES, Preset, corruption_names, preset_for
from withstand.errors import bad, unknown
from withstand.random import Rows, derive


@torch.no_grad()
def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    seed: int = 0,
    ids: Tensor | None = None,
    preset: Preset | None = None,
    *,
    variant: Literal["published", "swap"] = "published",
    frost_textures: Textures = None,
) -> Tensor:
    """Corrupt images as ImageNet-C and CIFAR-10-C do.

    images: [N, C, H, W] with C = 3 (RGB) or 1 (grey), uint8 or float in [0, 1], not normalised; float images are first
    rounded to 8 bits, which is what the definitions start from. name: one of `corruption_names("all")`. severity: 1..5.
    seed, ids: the draws of an image depend on seed, name, severity and its id (int64 [N], default 0..N-1), not on its
    batch. preset: "imagenet" (defined for 224 pixels) or "cifar" (32); by default the one nearest in ratio, with one
    warning for any other size. variant: "swap" makes glass_blur exchange pixels where the published code copies them.
    frost_textures: a folder of images or a list of uint8 [H, W, 3] arrays for frost, e.g. the six originals, of which
    the first five are used; without them procedural textures stand in, and the result must be reported as `frost*`.

    Returns the same shape, dtype and device; truncated to 8-bit levels as the published sets are (a value within
    1/1024 of the next level takes it, so that float32 rounding costs no level). Float images: level / 255.

    Grey images: kinds defined on colours (frost, spatter, saturate) go through RGB and back by luma; all others work on
    the one channel. Any size works, down to one pixel. Lengths in pixels stay those of the preset (an 8x8 digit is
    wholly smeared by motion_blur's 13-pixel trail), with these exceptions: elastic_transform is defined in image sides
    and scales; fog's map is the power of two that covers the image; pixelate keeps at least one pixel; glass_blur
    exchanges nothing where the image is no larger than twice the shift.

    >>> photo = torch.rand(1, 3, 32, 32)
    >>> corrupt(photo, "fog", severity=3).shape
    torch.Size([1, 3, 32, 32])

    Raises: BadInput for anything else than the above.

    Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", 2019, arXiv 1903.12261.
    """
    _check(images, name, severity, ids, preset, variant, frost_textures)
    n, channels, h, w = images.shape
    preset = preset or (preset_for(h, w) if n else "cifar")
    setting = SEVERITIES[name][preset][severity - 1]
    key = derive(seed, "corruption", name, severity)
    ids = torch.arange(n) if ids is None else ids
    ids = ids.to(images.device)
    ice = textures(frost_textures, preset, h, w) if name == "frost" else ()
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    cpu = images.device.type == "cpu"
    threads = torch.get_num_threads() if cpu else 1
    # On a CPU a block that fits the cache takes half the time of the whole batch at 224 pixels.
    fits = (1 << 18 if cpu else 1 << 25) // max(1, channels * h * w)
    size = max(1, min(fits, -(-n // threads)))

    @torch.no_grad()  # which holds in one thread only
    def work(start: int) -> None:
        rows = slice(start, start + size)
        x = images[rows].float() if images.dtype == torch.uint8 else (images[rows].float() * 255).round_()
        if through_rgb := channels == 1 and name in NEEDS_COLOUR:
            x = x.expand(-1, 3, -1, -1)
        job = Job(Rows(key, ids[rows]), preset, variant == "swap", ice)
        x = KINDS[name](x.contiguous(), cast(Any, setting), job).clamp(0, 255)
        x = (luma(x) if through_rgb else x).add_(2.0**-10).floor_().clamp_max_(255)
        result[rows] = x if images.dtype == torch.uint8 else x.div_(255)

    _share(work, range(0, n, size), threads)
    return result


def _share(work: Callable[[int], None], starts: Sequence[int], threads: int) -> None:
    """Do the blocks in that many threads. torch's way, sharing out each operation, has every operation wait for the
    slowest thread, and rounds some sums differently."""
    if threads == 1:
        for start in starts:
            work(start)
        return
    torch.set_num_threads(1)  # new threads take it over; for a single block too, so that it rounds alike
    try:
        with ThreadPoolExecutor(threads, "corrupt") as pool:
            list(pool.map(work, starts))  # raises what a block raised
    finally:
        torch.set_num_threads(threads)


def _check(
    images: object,
    name: str,
    severity: int,
    ids: object,
    preset: str | None,
    variant: str,
    frost_textures: object,
) -> None:
    if name not in KINDS:
        raise unknown("corruption", name, corruption_names("all"))
    if isinstance(severity, bool) or not isinstance(severity, int) or not 1 <= severity <= 5:
        raise bad("severity", repr(severity), "an integer from 1 to 5")
    if preset is not None and preset not in SIDES:
        raise unknown("preset", preset, SIDES)
    if variant not in ("published", "swap") or (variant == "swap" and name != "glass_blur"):
        raise bad("variant", f"{variant!r} for {name}", 'published; swap for "glass_blur" only')
    if frost_textures is not None and name != "frost":
        raise bad("frost_textures", f"textures for {name}", 'textures for "frost" only')
    if not isinstance(images, Tensor):
        raise bad("images", type(images).__name__, "a torch tensor", "torch.from_numpy(x) makes one of an array.")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise bad("images", f"shape {list(images.shape)}", "[N, C, H, W] with C = 1 or 3", "Channels come second.")
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise bad("images", images.dtype, "uint8 or a float type")
        if images.numel():
            low, high = (float(v) for v in images.aminmax())
            if not (low >= 0 and high <= 1):
                raise bad(
                    "images",
                    f"values from {low:g} to {high:g}",
                    "finite values in [0, 1]",
                    "Corrupt before normalising; divide 0..255 floats by 255.",
                )
    if ids is not None and not (isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.shape == images.shape[:1]):
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise bad("ids", got, f"an int64 tensor [{len(images)}], the identity of each image")
