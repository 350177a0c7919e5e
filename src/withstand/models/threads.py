"""How many CPU threads suit a model: sharing out the work of a tiny one costs more than doing it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from withstand.models.state import frozen

SMALL = 5e6
"""Floating-point operations of one example's forward pass below which one thread is enough. On two cores AutoAttack on
a digits network (0.3 million) is faster on one thread, and by far where other processes want the cores too; CIFAR-10
ResNets start at 80 million."""


@contextmanager
def suited_threads(module: nn.Module | None, example: Tensor) -> Iterator[None]:
    """Run the block on one CPU thread if the module is tiny, else on as many as torch was given.

    example: one input with its batch axis, [1, ...]. The choice depends on the architecture alone, so that equal runs
    round equally.
    """
    threads = torch.get_num_threads()
    if module is not None and not example.is_cuda and threads > 1 and operations(module, example) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def operations(module: nn.Module, example: Tensor) -> int:
    """Multiplications and additions of one forward pass, as torch counts them for convolutions and matrix products."""
    with frozen(module), torch.random.fork_rng([]), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    return counter.get_total_flops()
