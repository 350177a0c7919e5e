"""What images and labels must be, checked before any work."""

import re
from collections.abc import Sequence

import numpy as np

from withstand.errors import BadInput, bad

_CHUNK = 1 << 24  # values looked at at once


def check_pixels(x: np.ndarray, positions: np.ndarray, what: str) -> None:
    """Float images must be finite and within [0, 1]; integers must be uint8.

    x: [N, ...]; positions: which of them are checked. Raises: BadInput that names the first offending image.
    """
    if x.dtype in (np.uint8, np.bool_):
        return
    if x.dtype.kind != "f":
        mend = "Store pixels 0..255 as uint8, or 0..1 as float32."
        raise bad(f"{what}: x", f"dtype {x.dtype}", "uint8 (0..255), bool or float (0..1)", mend)
    step = max(1, _CHUNK // max(1, int(np.prod(x.shape[1:]))))
    for start in range(0, len(positions), step):
        block = positions[start : start + step]
        values = np.asarray(x[block]).reshape(len(block), -1)
        finite = np.isfinite(values).all(1)
        if not finite.all():
            row = values[~finite][0]
            kind = "NaN" if np.isnan(row).any() else "Inf"
            raise bad(
                f"{what}: x", f"{kind} in image {block[~finite][0]}", "finite pixels", "Repair or drop that image."
            )
        inside = (values.min(1) >= 0) & (values.max(1) <= 1)
        if not inside.all():
            row = values[~inside][0]
            mend = "Divide by 255, or store uint8." if row.max() > 1.5 and row.min() >= 0 else "Undo the normalisation."
            got = f"values {row.min():g} to {row.max():g} in image {block[~inside][0]}"
            raise bad(f"{what}: x", got, "float pixels in [0, 1]", mend)


def check_labels(
    y: np.ndarray, n: int, classes: Sequence[str] | int | None, what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels as int64 [N] and the class names (the numbers themselves where there are no names). A bool array [N, C],
    any number of classes to an image, comes back as uint8.

    Raises: BadInput for float labels, another shape than [N], labels below 0 or beyond the classes.
    """
    y = np.asarray(y)
    if y.dtype == np.bool_ and y.ndim == 2:
        return _check_multilabel(y, n, classes, what)
    if y.dtype.kind not in "iu":
        mend = "Store them as integers: y.astype(np.int64)."
        raise bad(f"{what}: y", f"dtype {y.dtype}", "integer class labels", mend)
    if y.shape != (n,):
        mend = "Give y.ravel() or y.argmax(1), or y > 0 (bool) where an image may have several labels."
        mend = mend if y.ndim == 2 and len(y) == n else ""
        raise bad(f"{what}: y", f"shape {list(y.shape)}", f"[{n}], one label for each image", mend)
    if classes is None:
        classes = int(y.max()) + 1 if n else 0
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    if n and (y.min() < 0 or y.max() >= len(names)):
        at = int(np.flatnonzero((y < 0) | (y >= len(names)))[0])
        raise bad(f"{what}: y", f"label {y[at]} of image {at}", f"0 to {len(names) - 1} ({len(names)} classes)")
    return y.astype(np.int64), names


def _check_multilabel(
    y: np.ndarray, n: int, classes: Sequence[str] | int | None, what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    known = y.shape[1] if classes is None else classes
    names = tuple(map(str, range(known) if isinstance(known, int) else known))
    if y.shape != (n, len(names)):
        raise bad(f"{what}: y", f"shape {list(y.shape)}", f"[{n}, {len(names)}], a row of yes and no for each image")
    return y.astype(np.uint8), names


def in_order(x: np.ndarray, layout: str | None, what: str) -> np.ndarray:
    """Images as [N, C, H, W] (a view), from [N, H, W] (grey), NHWC or NCHW with 1 or 3 channels.

    layout: "nhwc" or "nchw" where the shape leaves it open. Raises: BadInput for other ranks and open cases.
    """
    if layout not in (None, "nhwc", "nchw"):
        raise bad("layout", repr(layout), '"nhwc" or "nchw"')
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise bad(f"{what}: x", f"shape {list(x.shape)}", "[N, H, W], [N, H, W, C] or [N, C, H, W]")
    if layout is None:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            mend = 'Say which axis holds the channels: layout="nhwc" or layout="nchw".'
            raise bad(
                f"{what}: x", f"shape {list(x.shape)}", "1 or 3 channels on one axis, the second or the last", mend
            )
        layout = "nchw" if first else "nhwc"
    return x if layout == "nchw" else x.transpose(0, 3, 1, 2)


def inside(name: str, what: str) -> str:
    """A relative path that stays inside its archive or folder. Raises: BadInput for one that escapes."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
        raise BadInput(f"{what}: the entry {name!r} points outside; allowed: relative paths without '..'.")
    return name
