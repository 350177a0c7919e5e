"""Where the object is: masks that are given, and masks that are found."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad

LEAST, MOST = 0.005, 0.9
"""The share of the picture that an object may take."""

_SMALL = 128  # pixels of the longer side

Segmenter = Callable[[Tensor], Any]
"""image float [3, H, W] in [0, 1] -> mask [H, W]: bool, 0..255 (the object above 127) or shares (above 0.5)."""


def as_mask(mask: Any, height: int, width: int, name: str = "mask") -> Tensor:
    """A mask in any of its forms as bool [height, width].

    mask: array or tensor [H, W] or [1, H, W], bool, uint8 0..255 (the object above 127) or float 0..1 (above 0.5); or
    the path of an image file, of which a colour one counts by its brightness.
    Raises: BadInput for another size, other values, and 0 and 1 as whole numbers, which look like 0..255.
    """
    if isinstance(mask, (str, PathLike)):
        from withstand.data.photos import Fit, Photo, decode

        mask, name = decode(Photo(str(mask)), Fit(channels=1))[:, :, 0], str(mask)
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.shape != (height, width):
        allowed = f"{height} x {width}, the size of the image"
        raise bad(name, f"size {' x '.join(map(str, values.shape))}", allowed, "Give the mask of this very image.")
    if values.dtype == bool:
        binary = values
    elif values.dtype.kind in "iu":
        if values.size and (values.min() < 0 or values.max() > 255 or values.max() == 1):
            got = "0 and 1 as whole numbers" if values.max() == 1 else f"{values.min()} to {values.max()}"
            raise bad(name, f"values {got}", "bool, 0..255 (object above 127) or floats 0..1 (object above 0.5)")
        binary = values > 127
    elif values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise bad(name, "floats outside 0..1", "bool, 0..255 (object above 127) or floats 0..1 (object above 0.5)")
        binary = values > 0.5
    else:
        raise bad(name, f"dtype {values.dtype}", "bool, uint8 or float")
    return torch.from_numpy(np.array(binary, order="C"))  # own memory: what was given may be read-only


def fault(mask: Tensor) -> str:
    """Why nothing can be edited with this mask; "" where it can. mask: bool [H, W]."""
    share = float(mask.double().mean())
    if share == 0:
        return "the mask is empty: there is no object"
    if share == 1:
        return "the mask is full: there is no background"
    if share < LEAST:
        return f"the object has {share:.2%} of the image, below {LEAST:.1%}"
    if share > MOST:
        return f"the object has {share:.1%} of the image, above {MOST:.0%}"
    return ""


def largest(mask: Tensor) -> Tensor:
    """The part of a mask within its largest outer contour, holes filled; bool [H, W]."""
    outlines, _ = cv2.findContours(mask.cpu().numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    made = np.zeros(tuple(mask.shape), np.uint8)
    if outlines:
        cv2.drawContours(made, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return torch.from_numpy(made.astype(bool))


@dataclass(frozen=True)
class GrabCut:
    """Finds the object that stands in the middle by its colours, without any weights.

    Whatever lies within margin (a share of each side) of the border counts as background at first; `rounds` times, colours
    of both sides are modelled and the border between them cut anew. The largest part is the object. Pictures with a longer
    side than `side` pixels are made smaller for it, and those below 128 larger, since few pixels tell colours badly apart.
    Objects at the border, or of the background's colours, are missed.

    Reference: Rother, Kolmogorov, Blake, "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts", 2004.
    """

    rounds: int = 5
    margin: float = 0.05
    side: int = 256

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.side < 16 or not 0 < self.margin < 0.4:
            raise bad("GrabCut", self, "rounds >= 1, side >= 16, margin between 0 and 0.4")

    def __call__(self, image: Tensor) -> Tensor:
        pixels = np.ascontiguousarray((image.detach().cpu().numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8))
        height, width = pixels.shape[:2]
        longest = max(height, width)
        zoom = min(1.0, self.side / longest) if longest > _SMALL else min(self.side, _SMALL) / longest
        if zoom != 1:
            size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
        h, w = pixels.shape[:2]
        top, left = max(1, round(h * self.margin)), max(1, round(w * self.margin))
        labels = np.full((h, w), cv2.GC_BGD, np.uint8)
        if h <= 2 * top or w <= 2 * left:
            return torch.zeros(height, width, dtype=torch.bool)
        cv2.setRNGSeed(0)  # opencv clusters colours with a generator of its own, one for each thread
        try:
            cv2.grabCut(
                pixels,
                labels,
                (left, top, w - 2 * left, h - 2 * top),
                np.zeros((1, 65)),
                np.zeros((1, 65)),
                self.rounds,
                cv2.GC_INIT_WITH_RECT,
            )
        except cv2.error:  # one of the two sides ran out of colours: nothing stands out
            return torch.zeros(height, width, dtype=torch.bool)
        found = largest(torch.from_numpy((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)))
        if zoom != 1:
            back = cv2.INTER_LINEAR if zoom < 1 else cv2.INTER_AREA
            found = torch.from_numpy(
                cv2.resize(found.numpy().astype(np.uint8) * 255, (width, height), interpolation=back) > 127
            )
        return found
