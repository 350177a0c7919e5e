"""A set of which few examples keep their label, for semi-supervised learning."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows, derive

UNKNOWN = -1


@dataclass(frozen=True)
class FewLabels:
    """Labelled examples followed by unlabelled ones; what `few_labels` returns.

    given: where the labels come from; chosen: the positions there of the examples that keep theirs. pool: the examples
    without (usually all of `given`). labels: int64 [N] of both parts, -1 for the unlabelled. Batches carry the labels of
    the unlabelled as `extra["truth"]` where the pool has them, for the log: nothing may learn from that. ids are positions
    in this set, so that an example that stands in both parts has two.
    """

    given: Dataset
    chosen: np.ndarray
    pool: Dataset
    labels: np.ndarray

    @property
    def name(self) -> str:
        """The name of the set that was cut up."""
        return self.given.name

    @property
    def space(self) -> Space:
        """As of the labelled set."""
        return self.given.space

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.given.classes

    def __len__(self) -> int:
        return len(self.chosen) + len(self.pool)

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {len(self.chosen)} labelled and {len(self.pool)} unlabelled, {len(self.classes)} classes>"
        )

    def batch(self, positions: Sequence[int]) -> Batch:
        """The examples at these positions."""
        at = np.asarray(positions, np.int64)
        known = at < len(self.chosen)
        parts, rows = [], []
        for data, mask, inside in (
            (self.given, known, self.chosen[at[known]]),
            (self.pool, ~known, at[~known] - len(self.chosen)),
        ):
            if mask.any():
                parts.append(data.batch(inside.tolist()))
                rows.append(np.flatnonzero(mask))
        back = torch.from_numpy(np.argsort(np.concatenate(rows)))
        made = Batch(torch.cat([p.x for p in parts])[back], torch.from_numpy(self.labels[at]), torch.from_numpy(at))
        if self.pool.classes == self.classes and all(p.y is not None for p in parts):
            made.extra["truth"] = torch.cat([p.y for p in parts])[back]  # type: ignore[misc]
        return made

    def fingerprint(self) -> str:
        """Changes with both parts and with the choice."""
        parts = [self.given.fingerprint(), self.pool.fingerprint(), self.chosen.astype("<i8").tobytes().hex()]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def few_labels(data: Dataset, per_class: int | None, seed: int = 0, unlabelled: Dataset | None = None) -> FewLabels:
    """The set with `per_class` labels of each class left, chosen by the seed; the same seed always leaves the same.

    data: labelled examples. per_class: None leaves all labels. unlabelled: the examples without labels, of the same shape
    and range (labels that they have are not learned from); None: all of `data`, those that keep their label too.

    Raises: BadInput for a class with fewer examples, for data without labels, and for parts that do not fit each other.
    """
    if per_class is not None and (isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1):
        raise bad("labels", repr(per_class), "a whole number >= 1 of examples per class, or None for all")
    pool = data if unlabelled is None else unlabelled
    if not len(pool):
        raise bad("unlabelled", f"{pool.name}, an empty set", "at least one example")
    if (pool.space.shape, pool.space.box) != (data.space.shape, data.space.box):
        got = f"{pool.name}: shape {pool.space.shape}, range {pool.space.box}"
        raise bad("unlabelled", got, f"shape {data.space.shape}, range {data.space.box}, as {data.name} has")
    y = labels_of(data)
    if per_class is None:
        return _of(data, np.arange(len(data)), pool, y)
    order = torch.argsort(Rows.count(derive(seed, "few labels"), len(y)).bits((), "choice"), stable=True).numpy()
    chosen = []
    for c, name in enumerate(data.classes):
        members = order[y[order] == c]
        if len(members) < per_class:
            raise bad("labels", per_class, f"at most {len(members)}, the examples of class {name!r} of {data.name}")
        chosen.append(members[:per_class])
    return _of(data, np.sort(np.concatenate(chosen)), pool, y)


def _of(data: Dataset, chosen: np.ndarray, pool: Dataset, y: np.ndarray) -> FewLabels:
    return FewLabels(data, chosen, pool, np.concatenate([y[chosen], np.full(len(pool), UNKNOWN)]))


def labels_of(data: Dataset, block: int = 1024) -> np.ndarray:
    """All labels, int64 [N]; sets that do not tell them are read through once.

    Raises: BadInput for a set without labels.
    """
    known: Any = getattr(data, "labels", None)
    if not isinstance(known, (np.ndarray, Tensor)):
        ys = [data.batch(range(i, min(i + block, len(data)))).y for i in range(0, len(data), block)]
        if not ys or any(y is None for y in ys):
            raise bad("data", f"{data.name}, without labels", "labelled examples")
        known = torch.cat(ys)  # type: ignore[arg-type]
    known = np.asarray(known)
    if known.ndim != 1:
        raise bad("data", f"{data.name}, labels of shape {list(known.shape)}", "one class per example")
    return known.astype(np.int64)
