"""Arrays as data sets: in memory, or from `.npz` files that are mapped instead of read where possible."""

import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from withstand.data.checks import check_labels, in_order
from withstand.data.images import ArraySource, Images
from withstand.errors import BadInput, Unavailable, bad

_PICKLED = "Save a plain array; series of unequal length have to be brought to one length first."
_LARGE = 1 << 26  # arrays beyond this many bytes stay on disk


def from_arrays(
    x: ArrayLike,
    y: ArrayLike | None,
    name: str = "arrays",
    classes: Sequence[str] | int | None = None,
    layout: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> Images:
    """A data set from arrays or tensors.

    x: [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels; uint8 (0..255), bool or float in [0, 1].
    y: integer labels [N], bool [N, C] for a multi-label set, or None. classes: their names or number. layout: "nhwc" or
    "nchw" where the shape leaves it open. limit, seed: as for `load_data`. Raises: BadInput for anything else.
    """
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().numpy()
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu().numpy()
    return Images.of(name, array_source(np.asarray(x), y, name, classes, layout), limit, seed)


def array_source(
    x: np.ndarray, y: Any, what: str, classes: Sequence[str] | int | None = None, layout: str | None = None, **more: Any
) -> ArraySource:
    """Arrays brought to [N, C, H, W] and [N], with everything checked but the pixels."""
    x = in_order(x, layout, what)
    labels, names = (None, ()) if y is None else check_labels(y, len(x), classes, what)
    return ArraySource(x, labels, names, what, **more)


def npz_source(
    path: Path,
    split: str = "all",
    x: str = "x",
    y: str = "y",
    classes: Sequence[str] | int | None = None,
    layout: str | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> ArraySource:
    """The arrays `x` and `y` of an `.npz` file as images, see `npz_arrays`.

    Raises: BadInput for a truncated file, pickled objects, missing arrays, and bad labels or shapes.
    """
    images, labels, classes = npz_arrays(path, split, x, y, classes)
    return array_source(images, labels, path.name, classes, layout, file=path, size=size, channels=channels)


def npz_arrays(
    path: Path, split: str = "all", x: str = "x", y: str = "y", classes: Sequence[str] | int | None = None
) -> tuple[np.ndarray, np.ndarray, Sequence[str] | int | None]:
    """The arrays `x` and `y` of an `.npz` file, or `x_train` and `y_train` for the split "train"; `classes` if stored.

    Raises: BadInput for a truncated file, pickled objects and missing arrays.
    """
    arrays = Npz(path)
    if f"{x}_{split}" in arrays.names:
        x, y = f"{x}_{split}", f"{y}_{split}"
    if not {x, y} <= set(arrays.names):
        mend = f"Or {x}_{split} and {y}_{split}, for the split {split!r}."
        got = f"the arrays {', '.join(arrays.names) or '(none)'}"
        raise bad(str(path), got, f"{x} (images or series) and {y} (integer labels)", mend)
    if classes is None and "classes" in arrays.names:
        classes = [str(c) for c in arrays["classes"].ravel()]
    return arrays[x], arrays[y], classes


class Npz:
    """A zip of `.npy` files. Large arrays stay on disk: mapped in place if stored, else from a temporary file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        except (zipfile.BadZipFile, OSError) as error:
            raise self._damaged(error) from None
        self.names = tuple(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                if dtype.hasobject:
                    raise bad(f"{self.path}: {name}", "pickled objects", "an array of numbers", _PICKLED)
                size = int(np.prod(shape)) * dtype.itemsize
                order = "F" if fortran else "C"
                if size <= _LARGE:
                    return np.frombuffer(file.read(), dtype).reshape(shape, order=order)
                if member.compress_type == zipfile.ZIP_STORED and member.file_size - file.tell() == size:
                    return np.memmap(self.path, dtype, "r", self._start(member) + file.tell(), shape, order)
                return self._unpacked(file, shape, order, dtype)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise self._damaged(error) from None

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Where the bytes of a stored member begin: its local header is 30 bytes, a name and an extra field."""
        with self.path.open("rb") as file:
            file.seek(member.header_offset + 26)
            name, extra = file.read(2), file.read(2)
        return member.header_offset + 30 + int.from_bytes(name, "little") + int.from_bytes(extra, "little")

    @staticmethod
    def _unpacked(file: Any, shape: tuple[int, ...], order: str, dtype: np.dtype) -> np.ndarray:
        with tempfile.TemporaryFile() as room:
            while block := file.read(1 << 22):
                try:
                    room.write(block)
                    room.flush()
                except OSError as error:
                    mend = "Free it, set TMPDIR, or store the arrays uncompressed (np.savez)"
                    raise Unavailable(
                        f"no room in {tempfile.gettempdir()} to unpack {file.name}: {error}. {mend}."
                    ) from None
            return np.memmap(room, dtype, "r", 0, shape, order)  # type: ignore[call-overload]

    def _damaged(self, error: Exception) -> BadInput:
        return BadInput(f"{self.path}: not a whole .npz file ({error}). Write or copy it again.")
