"""Halves of the classes: what a zero-shot experiment learns from, and the classes it is judged on, never seen before."""

import hashlib
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from withstand.data.images import Source
from withstand.errors import bad

HALVES = {"seen": "train", "unseen": "test"}
"""The splits by classes, and the part that each is taken from where a set has parts."""


def halved(source: Source, split: str, what: str) -> Source:
    """The examples of the first half of the classes ("seen") or of the others ("unseen"), in label order; any other split:
    the source as it is.

    The labels are numbered from 0 on, the names stay. Of an odd number of classes the second half has one more.
    Raises: BadInput for sets without labels or with several to an image, and for a single class.
    """
    if split not in HALVES:
        return source
    y, names = source.labels, source.classes
    if y is None or y.ndim != 1 or len(names) < 2:
        got = "no labels" if y is None else "several labels to an image" if y.ndim != 1 else "a single class"
        raise bad(
            "split", f"{split!r} of {what}, which has {got}", "it for a set of two classes or more, one to an image"
        )
    cut = len(names) // 2
    at = np.flatnonzero(y < cut if split == "seen" else y >= cut)
    first = 0 if split == "seen" else cut
    return Half(source, at, y[at] - first, names[:cut] if split == "seen" else names[cut:])


@dataclass(frozen=True)
class Half:
    """Some examples of a source, with labels and classes of their own. at: int64 [N], which they are."""

    whole: Source
    at: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.at)

    def check(self, positions: np.ndarray) -> tuple[int, ...]:
        return self.whole.check(self.at[positions])

    def read(self, positions: np.ndarray) -> Tensor:
        return self.whole.read(self.at[positions])

    def digest(self, positions: np.ndarray) -> str:
        at = self.at[positions]
        return hashlib.sha256(self.whole.digest(at).encode() + at.astype("<i8").tobytes()).hexdigest()
