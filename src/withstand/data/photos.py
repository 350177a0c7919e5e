"""Image files: finding out whether they are whole, decoding them, bringing them to one shape."""

import os
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from withstand.errors import BadInput, bad

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff"})
_EDGE = 4096  # bytes of each end of a file that its digest covers
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # the last bytes of a whole file


@dataclass(frozen=True)
class Photo:
    """An image file: a path, or a member of a zip archive."""

    file: str
    archive: str | None = None

    def read(self) -> bytes:
        """All of it. Raises: BadInput that names the file where it cannot be read."""
        try:
            if self.archive is None:
                return Path(self.file).read_bytes()
            return _archive(self.archive, os.getpid()).read(self.file)
        except (OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise BadInput(f"{self}: cannot be read: {error}") from None

    def ends(self) -> tuple[int, bytes, bytes]:
        """Size in bytes, and up to 4 KiB of each end, of a file outside an archive."""
        with open(self.file, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_EDGE)
            file.seek(max(0, size - _EDGE))
            return size, head, file.read()

    def digest(self) -> bytes:
        """Of the name below the class folder, the size, and both ends."""
        size, head, tail = self.ends()
        return b"\0".join([f"{'/'.join(Path(self.file).parts[-2:])} {size}".encode(), head, tail])

    def __str__(self) -> str:
        return self.file if self.archive is None else f"{self.archive}: {self.file}"


@lru_cache(maxsize=8)
def _archive(path: str, process: int) -> zipfile.ZipFile:
    """Open archives, one handle per process: a handle that is shared after a fork loses its place."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class Fit:
    """How a photograph becomes an example.

    size: side of the square in pixels (None: leave as it is): the shorter side is brought to 256/224 of it and the
    centre cut out (stretch: the whole image is brought to the square instead); an image of this size is left alone.
    Bilinear with antialiasing, rounding as torchvision's Resize and CenterCrop do. channels: 3 (RGB) or 1 (grey).
    """

    size: int | None = None
    channels: int = 3
    stretch: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise bad("size", repr(self.size), "a whole number of pixels >= 1")
        if self.channels not in (1, 3):
            raise bad("channels", repr(self.channels), "1 (grey) or 3 (RGB)")

    def __call__(self, image: Image.Image) -> Image.Image:
        size = self.size
        if size is None or image.size == (size, size):
            return image
        if self.stretch:
            return image.resize((size, size), Image.Resampling.BILINEAR)
        w, h = image.size
        short = size * 256 // 224
        w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
        left, top = round((w - size) / 2), round((h - size) / 2)
        return image.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def decode(photo: Photo, fit: Fit) -> np.ndarray:
    """The pixels, uint8 [H, W, C]. Raises: BadInput that names the file where it is damaged."""
    pixels = np.asarray(fit(opened(photo).convert("RGB" if fit.channels == 3 else "L")))
    return pixels.reshape(*pixels.shape[:2], fit.channels)


def look(photo: Photo) -> tuple[int, int]:
    """Height and width, without decoding where the file's end shows that it is whole.

    Raises: BadInput that names the file where it is no image, truncated, or has more than 8 bits per channel.
    """
    try:
        data: Any = photo.file if photo.archive is None else BytesIO(photo.read())
        tail = photo.ends()[2] if photo.archive is None else data.getvalue()
        with Image.open(data) as image:
            whole = image.format in _ENDS and tail.endswith(_ENDS[image.format])
            deep, (width, height) = image.mode in ("F", "I") or image.mode.startswith("I;"), image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{photo}: not an image that can be opened: {error}. Replace or remove it.") from None
    if deep:
        raise bad(str(photo), "more than 8 bits per channel", "8-bit images", "Convert it, e.g. to 8-bit PNG.")
    if not whole:
        opened(photo)
    return height, width


def opened(photo: Photo) -> Image.Image:
    """The whole image, in the file's own mode. Raises: BadInput that names the file where it is damaged."""
    data = BytesIO(photo.read())
    try:
        image = Image.open(data)
        image.load()
        return image
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError, ...
        raise BadInput(f"{photo}: the image is damaged or truncated: {error}. Replace or remove it.") from None


T = TypeVar("T")


def each(do: Callable[[int], T], positions: np.ndarray, say: str = "") -> list[T]:
    """[do(i) for i in positions], in threads (reading and decoding release the interpreter), with a bar if long."""
    if len(positions) < 2:
        return [do(int(i)) for i in positions]
    with ThreadPoolExecutor(min(8, len(positions))) as pool:
        done = pool.map(do, map(int, positions))
        if not say or len(positions) < 2000 or not sys.stderr.isatty():
            return list(done)
        from rich.console import Console
        from rich.progress import track

        return list(track(done, say, len(positions), console=Console(stderr=True), transient=True))
