"""The order of the examples, and their batches made ahead of time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from withstand.errors import bad
from withstand.protocols import Batch, Dataset
from withstand.random import derive

AHEAD = 2


def order(data: Dataset, batch: int, epoch: int, seed: int, sampler: Any = None) -> torch.Tensor:
    """The positions of an epoch, batch by batch: int64 [steps * batch]. sampler: None shuffles all examples, and passes
    over what is left over at the end (other examples in each epoch)."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    if sampler is None:
        return torch.randperm(len(data), generator=generator)[: len(data) // batch * batch]
    return sampler(getattr(data, "labels", None), len(data), batch, generator)


def shares(batch: int, world: int, accumulate: int) -> int:
    """How many examples of a batch one process takes at once. Raises: BadInput where that is no whole number."""
    if batch % (world * accumulate):
        raise bad(
            "batch",
            f"{batch} examples for {world} processes x {accumulate} accumulated parts",
            f"a multiple of {world * accumulate}",
        )
    return batch // (world * accumulate)


def micro_batches(
    data: Dataset,
    epoch: int,
    seed: int,
    batch: int,
    accumulate: int,
    first: int,
    rank: int = 0,
    world: int = 1,
    sampler: Any = None,
) -> Iterator[Batch]:
    """The parts that one process learns from in an epoch, beginning with step `first` of the epoch.

    A step takes the next `batch` examples of the order. Part m of process r takes every (world * accumulate)-th of them
    from m * world + r on.
    """
    parts = shares(batch, world, accumulate) and world * accumulate
    positions = order(data, batch, epoch, seed, sampler)
    steps = len(positions) // batch
    wanted: list[Sequence[int]] = [
        positions[s * batch : (s + 1) * batch][m * world + rank :: parts].tolist()
        for s in range(first, steps)
        for m in range(accumulate)
    ]
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(data.batch, p) for p in wanted[:AHEAD]]
        for i in range(len(wanted)):
            ready = coming.pop(0).result()
            if i + AHEAD < len(wanted):
                coming.append(pool.submit(data.batch, wanted[i + AHEAD]))
            yield ready
