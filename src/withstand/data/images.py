"""Labelled images that are read in batches: from arrays of bytes, or from files that are decoded when asked for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from withstand.data import checks
from withstand.data.photos import Fit, Photo, decode, each, look
from withstand.errors import BadInput, bad
from withstand.protocols import Batch, Space
from withstand.random import Rows

_WHOLE = 1 << 28  # files up to this many bytes are hashed as a whole


class Source(Protocol):
    """Where pixels come from. labels: int64 [N], uint8 [N, C] or None; classes: their names."""

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def check(self, positions: np.ndarray) -> tuple[int, ...]:
        """Look at these examples, refuse bad ones, return the one shape (C, H, W) or (C, T) that they have."""
        ...

    def read(self, positions: np.ndarray) -> Tensor:
        """Float images [n, C, H, W] in [0, 1], or series [n, C, T]."""
        ...

    def digest(self, positions: np.ndarray) -> str: ...


@dataclass(frozen=True)
class Images:
    """The data set that every loader returns; see the protocol `Dataset`.

    positions: which examples of the source, in which order; they are the ids of the batches. where: the file or folder
    that was read. Sets without labels have no classes and batches without y.
    """

    name: str
    source: Source
    positions: np.ndarray
    space: Space
    where: str = ""

    kind: ClassVar[str] = "images"
    box: ClassVar[tuple[float, float] | None] = (0.0, 1.0)

    @classmethod
    def of(cls, name: str, source: Source, limit: int | None = None, seed: int | None = None, where: str = "") -> Self:
        """Choose, check, and wrap. limit: how many; seed: in a seeded, stratified order instead of from the start."""
        if not len(source):
            raise bad(
                name,
                "an empty set",
                "at least one image" if cls.kind == "images" else "at least one series",
                f"Looked at {where}." if where else "",
            )
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise bad("limit", repr(limit), "a whole number >= 1")
        chosen = np.arange(len(source)) if seed is None else stratified(source.labels, len(source), seed)
        chosen = chosen[:limit]
        return cls(name, source, chosen, Space(source.check(chosen), cls.box, len(source.classes) or None), where)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.source.classes

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N] (uint8 [N, C] of zeros and ones where `multilabel`), without reading any image; None for a set without
        labels."""
        return None if self.source.labels is None else self.source.labels[self.positions]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels or none: y of a batch is then float [n, C] of zeros and ones."""
        return self.source.labels is not None and self.source.labels.ndim == 2

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} {self.kind} {list(self.space.shape or ())}, {len(self.classes)} classes>"

    def batch(self, positions: Sequence[int] | ArrayLike) -> Batch:
        """The images at these positions of this set, x float32 [n, C, H, W] in [0, 1].

        Raises: BadInput for positions outside, and for an image file that cannot be decoded.
        """
        at = self.positions[self._valid(positions)]
        y = None if self.source.labels is None else torch.from_numpy(self.source.labels[at])
        y = y.float() if y is not None and self.multilabel else y
        return Batch(self.source.read(at), y, torch.from_numpy(at.astype(np.int64)))

    def subset(self, positions: Sequence[int] | ArrayLike) -> Self:
        """The same set, cut down to these positions; the ids stay."""
        return replace(self, positions=self.positions[self._valid(positions)])

    def fingerprint(self) -> str:
        """Changes with the pixels, labels, classes, shape and selection.

        Files up to 256 MiB are hashed whole, larger ones by their size and 64 blocks of 1 MiB; of photographs in a
        folder: name, size, first and last 4 KiB. The name and place of the set do not matter.
        """
        digest = hashlib.sha256(self.source.digest(self.positions).encode())
        digest.update(repr((self.space.shape, self.classes)).encode())
        digest.update(self.positions.astype("<i8").tobytes())
        if (labels := self.labels) is not None:
            digest.update(labels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def _valid(self, positions: Sequence[int] | ArrayLike) -> np.ndarray:
        at = np.asarray(positions)
        if at.size == 0:
            return np.empty(0, np.int64)
        if at.ndim != 1 or at.dtype.kind not in "iu" or at.min() < 0 or at.max() >= len(self):
            raise bad("positions", positions, f"whole numbers from 0 to {len(self) - 1}")
        return at


def stratified(labels: np.ndarray | None, n: int, seed: int) -> np.ndarray:
    """A seeded order of 0..n-1; every beginning of it keeps each class's share of the whole, to about one image.

    Within a class the order is random; the r-th of n_c images of class c stands at (r + u_c) / n_c, u_c uniform. Of labels
    [N, C], each combination that occurs counts as a class.
    """
    if labels is not None and labels.ndim == 2:
        labels = np.unique(labels, axis=0, return_inverse=True)[1].ravel()
    order = torch.argsort(Rows.count(seed, n).bits((), "data order"), stable=True).numpy()
    if labels is None:
        return order
    place = np.empty(n)
    for c in np.unique(labels):
        members = order[labels[order] == c]
        start = Rows(seed, torch.tensor([int(c)])).uniform((), "data start", dtype=torch.float64).item()
        place[members] = (np.arange(len(members)) + start) / len(members)
    return order[np.argsort(place[order], kind="stable")]


@dataclass(frozen=True)
class ArraySource:
    """x: [N, C, H, W] uint8 (0..top), bool or float in [0, 1]; never turned into floats as a whole.

    size, channels: what batches are brought to, None = as they are. file: the file that x and the labels came from.
    """

    x: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    what: str
    file: Path | None = None
    top: int = 255
    size: int | None = None
    channels: int | None = None

    def __len__(self) -> int:
        return len(self.x)

    def check(self, positions: np.ndarray) -> tuple[int, int, int]:
        checks.check_pixels(self.x, positions, self.what)
        c, h, w = self.x.shape[1:]
        if min(c, h, w) < 1:
            raise bad(f"{self.what}: x", f"shape {list(self.x.shape)}", "images of at least one pixel")
        if self.channels not in (None, c) and {self.channels, c} != {1, 3}:
            raise bad("channels", self.channels, "1 or 3, for images of 1 or 3 channels")
        return (self.channels or c, self.size or h, self.size or w)

    def read(self, positions: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(self.x[positions])).to(torch.float32)
        if self.x.dtype == np.uint8:
            x = x / self.top
        if self.channels == 3 and x.shape[1] == 1:
            x = x.repeat(1, 3, 1, 1)
        elif self.channels == 1 and x.shape[1] == 3:
            x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)  # ITU-R 601
        return x if self.size is None else _square(x, self.size)

    def digest(self, positions: np.ndarray) -> str:
        if self.file is not None:
            return digest_of(self.file)
        return hashlib.sha256(np.ascontiguousarray(self.x[positions]).data).hexdigest()


def _square(x: Tensor, size: int) -> Tensor:
    """Shorter side to `size`, then the centre. x: [N, C, H, W]"""
    h, w = x.shape[2:]
    if (h, w) == (size, size):
        return x
    scale = size / min(h, w)
    shape = (max(size, round(h * scale)), max(size, round(w * scale)))
    x = torch.nn.functional.interpolate(x, shape, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return x[:, :, top : top + size, left : left + size]


@dataclass(frozen=True)
class PhotoSource:
    """Image files, decoded when a batch asks for them. channels: 3 (RGB) or 1 (grey)."""

    photos: tuple[Photo, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    what: str
    fit: Fit
    archive: Path | None = None

    def __len__(self) -> int:
        return len(self.photos)

    def check(self, positions: np.ndarray) -> tuple[int, int, int]:
        def problem_or_shape(i: int) -> tuple[int, int] | BadInput:
            try:
                return look(self.photos[i])
            except BadInput as error:
                return error

        seen = each(problem_or_shape, positions, f"checking {self.what}")
        problems = [s for s in seen if isinstance(s, BadInput)]
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise BadInput("; ".join(map(str, problems[:5])) + more)
        if self.fit.size is not None:
            return (self.fit.channels, self.fit.size, self.fit.size)
        shapes = {s for s in seen if not isinstance(s, BadInput)}
        if len(shapes) > 1:
            some = ", ".join(f"{h}x{w}" for h, w in sorted(shapes)[:4])
            mend = "Give size=224 (or what the model takes): shorter side to 256/224 of it, then the centre."
            raise bad(self.what, f"{len(shapes)} image shapes ({some}, ...)", "one shape for all images", mend)
        return (self.fit.channels, *shapes.pop())

    def read(self, positions: np.ndarray) -> Tensor:
        images = each(lambda i: decode(self.photos[i], self.fit), positions)
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(torch.float32).contiguous() / 255

    def digest(self, positions: np.ndarray) -> str:
        digest = hashlib.sha256(repr(self.fit).encode())
        if self.archive is not None:
            digest.update(digest_of(self.archive).encode())
        else:
            for part in each(lambda i: self.photos[i].digest(), positions):
                digest.update(part)
        return digest.hexdigest()


def digest_of(path: Path) -> str:
    """A hash of a file's bytes; of files beyond 256 MiB: of their size and 64 blocks."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for block in range(64):
            file.seek((size - (1 << 20)) * block // 63)
            digest.update(file.read(1 << 20))
    return digest.hexdigest()
