"""A part of a data set, as a data set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from withstand.protocols import Batch, Dataset, Space


@dataclass
class Every:
    """Every `step`-th example of a data set, from the first on."""

    whole: Dataset
    step: int

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def space(self) -> Space:
        return self.whole.space

    @property
    def classes(self) -> tuple[str, ...]:
        return self.whole.classes

    @property
    def labels(self) -> Any:
        """As the whole set's, where it tells them."""
        return self.whole.labels[:: self.step]  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return -(-len(self.whole) // self.step)

    def batch(self, positions: Sequence[int]) -> Batch:
        return self.whole.batch([int(p) * self.step for p in positions])

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.whole.fingerprint()} {self.step}".encode()).hexdigest()[:32]
