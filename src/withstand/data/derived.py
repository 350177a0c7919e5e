"""Data sets that are made of another one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from withstand.protocols import Batch, Dataset, Space


@dataclass(frozen=True, repr=False)
class Derived:
    """A data set made of another: what it does not say itself is as there. Its fingerprint is of all its fields."""

    source: Dataset

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def space(self) -> Space:
        return self.source.space

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} examples, {len(self.classes)} classes>"

    def batch(self, positions: Sequence[int]) -> Batch:
        return self.source.batch(positions)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode())
        for field in fields(self)[1:]:
            held = getattr(self, field.name)
            digest.update(held.astype("<i8").tobytes() if isinstance(held, np.ndarray) else repr(held).encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True, repr=False)
class Part(Derived):
    """Some examples of a data set. positions: their places there, in the order that they have here."""

    positions: Sequence[int]

    @property
    def labels(self) -> Any:
        """As the whole set's, where it tells them."""
        whole = self.source.labels  # type: ignore[attr-defined]
        return None if whole is None else whole[np.asarray(self.positions)]

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, positions: Sequence[int]) -> Batch:
        return self.source.batch([int(self.positions[i]) for i in positions])
