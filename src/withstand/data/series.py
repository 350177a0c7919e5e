"""Labelled time series: from arrays, and from archives of many sets in one file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from withstand.data.arrays import Npz
from withstand.data.checks import check_labels
from withstand.data.images import Images, digest_of
from withstand.errors import BadInput, bad

Scaling = Literal["normalised", "raw"]
"""Each channel of each series brought to mean 0 and deviation 1, or left as it is."""

_FLAT = 1e-8  # a channel that deviates by less from its mean is constant


@dataclass(frozen=True, repr=False)
class Series(Images):
    """A data set of series [C, T] without a range of values; all else is as for `Images`."""

    kind: ClassVar[str] = "series"
    box: ClassVar[tuple[float, float] | None] = None


def from_series(
    x: Any,
    y: Any = None,
    name: str = "series",
    classes: Sequence[str] | int | None = None,
    limit: int | None = None,
    seed: int | None = None,
    *,
    normalise: bool = True,
) -> Series:
    """A data set from time series.

    x: numbers [N, T] or [N, C, T], or a list of series [T] or [C, T] of one length. y: integer labels [N], or None.
    normalise: bring each channel of each series to mean 0 and standard deviation 1, as the UCR archive does. classes,
    limit, seed: as for `from_arrays`.

    Raises: BadInput for series of unequal length, constant channels (where they would be normalised), NaN or infinite
    values, and bad labels.
    """
    return Series.of(name, series_source(x, y, name, classes, normalise=normalise), limit, seed)


def series_source(
    x: Any, y: Any, what: str, classes: Any = None, normalise: bool = True, file: Path | None = None
) -> "SeriesSource":
    """Series brought to [N, C, T], with labels checked."""
    values = _stacked(x, what)
    labels, names = (None, ()) if y is None else check_labels(np.asarray(y), len(values), classes, what)
    return SeriesSource(values, labels, names, what, normalise, file)


def archive_source(path: Path, name: str, split: str) -> "SeriesSource":
    """One set of an archive whose arrays are called `<name>_X_<split>` and `<name>_y_<split>`."""
    arrays = Npz(path)
    missing = {f"{name}_{part}_{split}" for part in "Xy"} - set(arrays.names)
    if missing:
        raise bad(str(path), f"no array {' or '.join(sorted(missing))}", "an archive that holds this set")
    named = f"{name}_classes" in arrays.names
    classes = [str(c) for c in arrays[f"{name}_classes"]] if named else _count(arrays, name)
    return series_source(arrays[f"{name}_X_{split}"], arrays[f"{name}_y_{split}"], name, classes, file=path)


@dataclass(frozen=True)
class SeriesSource:
    """x: [N, C, T] numbers. normalise: each channel of each series to mean 0 and deviation 1 when it is read."""

    x: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    what: str
    normalise: bool = True
    file: Path | None = None

    def __len__(self) -> int:
        return len(self.x)

    def check(self, positions: np.ndarray) -> tuple[int, ...]:
        values = self.x[positions]
        finite = np.isfinite(values).all(2)
        if not finite.all():
            row, channel = np.argwhere(~finite)[0]
            mend = "Fill missing values (interpolate, say) or drop that series; neither is done here."
            raise bad(f"{self.what}: x", f"NaN or Inf in channel {channel} of series {positions[row]}", "numbers", mend)
        flat = values.std(2, dtype=np.float64) <= _FLAT
        if self.normalise and flat.any():
            row, channel = np.argwhere(flat)[0]
            mend = (
                "Drop that series or channel, or take them as they are: normalise=False, series='raw' (--series raw)."
            )
            got = f"a constant channel {channel} in series {positions[row]}"
            raise bad(f"{self.what}: x", got, "series that vary, to bring them to deviation 1", mend)
        return self.x.shape[1:]

    def read(self, positions: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(self.x[positions])).double()
        if self.normalise:
            x = (x - x.mean(2, keepdim=True)) / x.std(2, correction=0, keepdim=True)
        return x.float()

    def digest(self, positions: np.ndarray) -> str:
        if self.file is not None:  # an archive holds many sets
            return hashlib.sha256(f"{digest_of(self.file)} {self.what} {self.normalise}".encode()).hexdigest()
        return hashlib.sha256(self.x[positions].tobytes() + bytes([self.normalise])).hexdigest()


def _stacked(x: Any, what: str) -> np.ndarray:
    if isinstance(x, Tensor):
        x = x.detach().cpu().numpy()
    if isinstance(x, (list, tuple)) or (isinstance(x, np.ndarray) and x.dtype.hasobject):
        parts = [np.asarray(part) for part in x]
        lengths = {part.shape[-1] if part.ndim else 0 for part in parts}
        if len(lengths) > 1:
            mend = "Cut, pad or resample them to one length first; which of these is right depends on the data."
            got = f"series of {min(lengths)} to {max(lengths)} steps"
            raise bad(f"{what}: x", got, "series of one length", mend)
        try:
            x = np.stack(parts) if parts else np.empty((0, 1, 1))
        except ValueError:
            raise bad(f"{what}: x", "series of different numbers of channels", "one number of channels") from None
    values = np.asarray(x)
    if values.dtype.kind not in "fiu":
        raise bad(f"{what}: x", f"dtype {values.dtype}", "numbers")
    if values.ndim == 2:
        values = values[:, None]
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise bad(f"{what}: x", f"shape {list(values.shape)}", "[N, T] or [N, C, T]")
    return values


def _count(arrays: Npz, name: str) -> int:
    """The classes of a set without names: those of both parts."""
    try:
        return 1 + max(int(arrays[f"{name}_y_{split}"].max()) for split in ("train", "test"))
    except (KeyError, ValueError) as error:
        raise BadInput(f"{arrays.path}: the labels of {name} cannot be read ({error}). Copy it again.") from None
