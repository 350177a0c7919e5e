"""Where an object stands in a picture: how large, at which place, turned how far. Cut out once, resampled once."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import cv2
import numpy as np

from withstand.errors import bad

Variant = Literal["exact", "published"]
TOLERANCE = 0.05  # of the rate, relative
_PUBLISHED_TOLERANCE = 0.015  # of the rate, absolute
_CLOSE = 0.01  # relative: nothing is resampled for less


class CannotMeet(Exception):
    """An edit that this picture does not allow; the text says why. Never leaves the editor."""


@dataclass(frozen=True)
class Placement:
    """An object and where it is to stand.

    mask: bool [H, W], the object in its source. scale: how much larger it becomes. degrees: turned counter-clockwise.
    row, column: where the middle of its source box comes to lie, in pixels from the upper left corner of the picture.
    """

    mask: np.ndarray
    scale: float
    degrees: float
    row: float
    column: float

    @classmethod
    def as_it_is(cls, mask: np.ndarray) -> "Placement":
        top, left, bottom, right = box(mask)
        return cls(mask, 1.0, 0.0, (top + bottom) / 2, (left + right) / 2)

    @property
    def resampled(self) -> bool:
        """Whether pixels are mixed; shifts and quarter turns copy them."""
        return self.scale != 1 or self.degrees % 90 != 0

    @property
    def moved(self) -> bool:
        """Whether anything differs from the source."""
        here = Placement.as_it_is(self.mask)
        return self.resampled or self.degrees % 360 != 0 or (self.row, self.column) != (here.row, here.column)

    @cached_property
    def silhouette(self) -> "Patch":
        """The object's shape where it is to stand, without its colours."""
        y0, x0, y1, x1 = box(self.mask)
        inside = self.mask[y0:y1, x0:x1]
        if not self.resampled:
            shape = np.rot90(inside, round(self.degrees / 90))
            h, w = shape.shape
            return Patch(shape, math.floor(self.row - h / 2 + 0.5), math.floor(self.column - w / 2 + 0.5), None)
        layers, y, x = self._warped(None)
        shape = _heaviest(layers[..., 0], round(int(inside.sum()) * self.scale**2))
        top, left, bottom, right = box(shape)
        return Patch(shape[top:bottom, left:right], y + top, x + left, None)

    def cut_out(self, image: np.ndarray) -> "Patch":
        """The object as it is to stand. image: float32 [H, W, 3], its source."""
        patch = self.silhouette
        if not self.resampled:
            y0, x0, y1, x1 = box(self.mask)
            return replace(patch, pixels=np.rot90(image[y0:y1, x0:x1], round(self.degrees / 90)))
        layers, y, x = self._warped(image)
        h, w = patch.shape.shape
        layers = layers[patch.top - y : patch.top - y + h, patch.left - x : patch.left - x + w]
        return replace(patch, pixels=np.clip(layers[..., 1:] / np.maximum(layers[..., :1], 1e-6), 0, 1))

    def _warped(self, image: np.ndarray | None) -> tuple[np.ndarray, int, int]:
        """The share of each pixel that is the object's, [h, w, 1], and with an image [h, w, 4] its colours times that, so
        that no background colours the object's edge; and where the upper left of these pixels lies in the picture."""
        y0, x0, y1, x1 = box(self.mask)
        edge = 2 + math.ceil(2 / self.scale)
        weight = np.pad(self.mask[y0:y1, x0:x1], edge).astype(np.float32)
        layers = weight[..., None]
        if image is not None:
            layers = np.dstack([weight, np.pad(image[y0:y1, x0:x1], ((edge, edge), (edge, edge), (0, 0)))])
            layers[..., 1:] *= weight[..., None]
        if self.scale < 1:  # pixels between the new ones count too
            layers = cv2.GaussianBlur(layers, (0, 0), max(0.1, (1 / self.scale - 1) / 2))
        matrix, y, x, size = self._canvas(*weight.shape)
        layers = cv2.warpAffine(layers, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return layers.reshape(size[1], size[0], -1), y, x

    def _canvas(self, h: int, w: int) -> tuple[np.ndarray, int, int, tuple[int, int]]:
        """For a source of that size around the object's box: the map from a canvas back to it, the canvas's corner in the
        picture, and the canvas's size (width, height)."""
        turn = math.radians(self.degrees)
        c, s = math.cos(turn), math.sin(turn)
        half_h = (abs(c) * h + abs(s) * w) * self.scale / 2
        half_w = (abs(s) * h + abs(c) * w) * self.scale / 2
        y, x = math.floor(self.row - half_h) - 1, math.floor(self.column - half_w) - 1
        size = math.ceil(self.column + half_w) + 1 - x, math.ceil(self.row + half_h) + 1 - y
        back = np.array([[c, -s], [s, c]]) / self.scale  # of (x, y), y downwards
        middle = np.array([self.column - x - 0.5, self.row - y - 0.5])  # pixel i has its middle at i in opencv
        start = np.array([w / 2 - 0.5, h / 2 - 0.5]) - back @ middle
        return np.column_stack([back, start]), y, x, size

    def moved_by(self, down: int, right: int) -> "Placement":
        made = replace(self, row=self.row + down, column=self.column + right)
        known = self.silhouette  # whole pixels leave the shape as it is, which costs time to find
        made.__dict__["silhouette"] = replace(known, top=known.top + down, left=known.left + right)
        return made


@dataclass(frozen=True)
class Patch:
    """A piece to be put into a picture: shape bool [h, w], its upper left corner, and float32 pixels [h, w, 3]."""

    shape: np.ndarray
    top: int
    left: int
    pixels: np.ndarray | None

    def within(self, height: int, width: int) -> bool:
        h, w = self.shape.shape
        return self.top >= 0 and self.left >= 0 and self.top + h <= height and self.left + w <= width

    def visible(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the part of it that the picture holds lies in the picture, and in the patch."""
        h, w = self.shape.shape
        top, left = max(0, self.top), max(0, self.left)
        bottom, right = max(top, min(height, self.top + h)), max(left, min(width, self.left + w))
        there = slice(top, bottom), slice(left, right)
        return there, (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left))

    def mask(self, height: int, width: int) -> np.ndarray:
        made = np.zeros((height, width), bool)
        there, here = self.visible(height, width)
        made[there] = self.shape[here]
        return made

    def paste(self, scene: np.ndarray) -> np.ndarray:
        """The scene, float32 [H, W, 3], with the object in it."""
        made, pixels = scene.copy(), self.pixels
        assert pixels is not None
        there, here = self.visible(*scene.shape[:2])
        made[there] = np.where(self.shape[here][..., None], pixels[here], scene[there])
        return made


def _heaviest(weight: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest values of [h, w] as bool [h, w]; of equal ones the first. An outline at a fixed weight would
    take corners and thin parts away from small objects, so that they shrank by being turned."""
    if count < 1:
        raise CannotMeet("the object would become smaller than a pixel")
    flat = weight.ravel()
    least = np.partition(flat, -count)[-count]
    chosen = flat > least
    chosen[np.flatnonzero(flat == least)[: count - int(chosen.sum())]] = True
    return chosen.reshape(weight.shape)


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right (the latter two just outside) of what is True in bool [H, W]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


# Edits: each takes a placement and returns another ---------------------------------------------------------------------


def resize(at: Placement, rate: float | Literal["full"], variant: Variant) -> Placement:
    """The object at another share of the picture, about the middle of its box.

    rate: share of the picture's pixels, or "full": as large as the largest crop of the picture's shape that holds all of
    it would show it. An object that touches borders of its picture, where something may have cut it, keeps touching them.
    Raises: CannotMeet where the object would be cut or its rate would be off by more than 5 % of it.
    """
    if rate == "full":
        return _full(at)
    now = _visible_rate(at)
    if variant == "published":
        return _published_resize(at, rate, now)
    if abs(now / rate - 1) <= _CLOSE:
        return at
    problem = f"at a rate of {rate:g} it would not fit into the picture"
    made = replace(at, scale=at.scale * math.sqrt(rate / now))
    _not_huge(made, 1.1, problem)
    pixels = rate * at.mask.size
    if abs(round(pixels) / pixels - 1) > TOLERANCE:
        raise CannotMeet(f"a rate of {rate:g} would be {pixels:.1f} pixels of this picture")
    return _kept(_anchored(at, made), problem)


def turn(at: Placement, degrees: float, variant: Variant) -> Placement:
    """The object turned counter-clockwise about the middle of its box, and then kept within the picture; published: about
    the middle of the picture, which may cut it.

    Raises: CannotMeet where the turned object is larger than the picture, or out of it.
    """
    if degrees % 360 == 0:
        return at
    made = replace(at, degrees=at.degrees + degrees)
    if variant == "exact":
        return _kept(made, f"turned by {degrees:g} degrees it would not fit into the picture")
    height, width = at.mask.shape
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    down, right = at.row - height / 2, at.column - width / 2
    made = replace(made, row=height / 2 + c * down - s * right, column=width / 2 + s * down + c * right)
    if _visible_rate(made) == 0:
        raise CannotMeet(f"turned by {degrees:g} degrees about the middle of the picture the object leaves it")
    return made


def move(at: Placement, top: int, left: int) -> Placement:
    """The object with the upper left corner of its box in that row and column.

    Raises: CannotMeet where the object would be cut.
    """
    patch = at.silhouette
    made = at.moved_by(top - patch.top, left - patch.left)
    if not made.silhouette.within(*at.mask.shape):
        h, w = patch.shape.shape
        height, width = at.mask.shape
        raise CannotMeet(
            f"at row {top}, column {left} the object of {h} x {w} pixels would be cut by the border of {height} x {width}"
        )
    return made


def room(at: Placement) -> tuple[int, int]:
    """How many rows and columns there are for the upper left corner of the object's box.

    Raises: CannotMeet where there is only the one that it has.
    """
    (h, w), (height, width) = at.silhouette.shape.shape, at.mask.shape
    rows, columns = height - h + 1, width - w + 1
    if min(rows, columns) < 1 or rows * columns == 1:
        raise CannotMeet("the object reaches across the whole picture: there is no other place for it")
    return rows, columns


def _full(at: Placement) -> Placement:
    """Zoomed until the box spans the picture in one direction, about the one point that the crop leaves where it is."""
    patch, (height, width) = at.silhouette, at.mask.shape
    h, w = patch.shape.shape
    tall = height * w <= width * h
    zoom = height / h if tall else width / w
    if zoom == 1:
        return at
    middle_row, middle_column = patch.top + h / 2, patch.left + w / 2
    row, column = (height / 2, middle_column) if tall else (middle_row, width / 2)
    # The middle of the patch may lie beside that of the turned source box, by which placements count.
    row, column = row + zoom * (at.row - middle_row), column + zoom * (at.column - middle_column)
    made = replace(at, scale=at.scale * zoom, row=row, column=column)
    for _ in range(3):  # rounding may have made it a pixel too large
        h, w = made.silhouette.shape.shape
        if h <= height and w <= width:
            break
        made = replace(made, scale=made.scale * min(height / h, width / w) * 0.999)
    return _kept(made, "its full size does not fit into the picture")


def _published_resize(at: Placement, rate: float, now: float) -> Placement:
    """As released: zoom by the square root of the ratio until the visible rate is within 0.015, at most 50 times.

    Its other way to stop, floor(100 rate) = 100 r, is within 0.015 as well. It differs in three points from here: it counts
    only what lies in the box of the mask's largest part; what it crops for "full", and for rates that are larger still, is
    hardly wider than the object's box and stretched to the picture's shape, while the object keeps its proportions here;
    and of an object that a zoom has cut, the rest decides what the next zoom is about.
    """
    largest = _full(at)
    if rate >= _visible_rate(largest):
        return largest
    made = at
    for _ in range(50):
        if abs(now - rate) <= _PUBLISHED_TOLERANCE:
            return made
        made = replace(made, scale=made.scale * math.sqrt(rate / now))
        _not_huge(made, 8, f"zoomed towards a rate of {rate:g} it grows far beyond the picture")
        seen = _visible_rate(made)
        if (seen < now) == (now < rate):
            raise CannotMeet(f"zooming towards a rate of {rate:g} leads away from it: {now:.4f}, then {seen:.4f}")
        now = seen
    raise CannotMeet(f"a rate of {rate:g} is not met in 50 zooms")


def _visible_rate(at: Placement) -> float:
    return float(at.silhouette.mask(*at.mask.shape).mean())


def _not_huge(at: Placement, factor: float, problem: str) -> None:
    """Before any memory is taken for it: an object that even unturned is so much larger than the picture."""
    top, left, bottom, right = box(at.mask)
    least = (
        min(bottom - top, right - left) * at.scale
    )  # the one side that is known to need that room however it is turned
    height, width = at.mask.shape
    if (
        least > factor * max(height, width)
        or (bottom - top) * (right - left) * at.scale**2 > 2 * factor**2 * at.mask.size
    ):
        raise CannotMeet(f"{problem} of {height} x {width}")


def _anchored(before: Placement, after: Placement) -> Placement:
    """Where the object touched one of two opposite borders, it still does."""
    old, new = before.silhouette, after.silhouette
    shift = []
    for axis, (start, begin) in enumerate(((old.top, new.top), (old.left, new.left))):
        side, length, now = before.mask.shape[axis], old.shape.shape[axis], new.shape.shape[axis]
        low, high = start <= 0, start + length >= side
        shift.append(0 if low == high else -begin if low else side - now - begin)
    return after.moved_by(*shift)


def _kept(at: Placement, problem: str) -> Placement:
    """Moved by as little as puts all of it into the picture. Raises: CannotMeet with the problem where it is too large."""
    patch, (height, width) = at.silhouette, at.mask.shape
    h, w = patch.shape.shape
    if h > height or w > width:
        raise CannotMeet(f"{problem} of {height} x {width}: its box has {h} x {w} pixels")
    return at.moved_by(min(max(patch.top, 0), height - h) - patch.top, min(max(patch.left, 0), width - w) - patch.left)


def check_rate(rate: float | str) -> None:
    """Raises: BadInput for what is no rate."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if rate != "full" and not (number and 0 < float(rate) <= 0.9):
        raise bad("rate", repr(rate), 'a share of the image in (0, 0.9], or "full"')
