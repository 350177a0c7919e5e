"""The order of the examples, and their batches made ahead of time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from withstand.errors import bad
from withstand.protocols import Batch, Dataset
from withstand.random import derive

AHEAD = 2


def order(examples: int, epoch: int, seed: int) -> torch.Tensor:
    """The order of the examples in an epoch."""
    return torch.randperm(examples, generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))


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
    data: Dataset, epoch: int, seed: int, batch: int, accumulate: int, first: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """The parts that one process learns from in an epoch, beginning with step `first` of the epoch.

    A step takes the next `batch` examples of the order; what is left over at the end of an epoch is passed over (other
    examples in each epoch). Part m of process r takes every (world * accumulate)-th example from m * world + r on.
    """
    parts = shares(batch, world, accumulate) and world * accumulate
    positions = order(len(data), epoch, seed)
    steps = len(data) // batch
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
