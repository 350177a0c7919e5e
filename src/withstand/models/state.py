"""Borrowing a module: whatever is done to its flags and buffers meanwhile, it is given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from withstand.errors import bad

Mode = Literal["eval", "train"]


@contextmanager
def frozen(module: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """Run a module without parameter gradients, in eval or train mode, and restore everything on the way out.

    Restored, on exceptions too: `requires_grad` of every parameter, the mode of every submodule, and the buffers, both
    the tensors and what is in them (batch statistics that train mode moves, counters that a forward pass advances).

    Raises: BadInput for an unknown mode.
    """
    if mode not in ("eval", "train"):
        raise bad("mode", repr(mode), '"eval" or "train"')
    parts = list(module.modules())
    modes = [part.training for part in parts]
    wanting = [p for p in module.parameters() if p.requires_grad]
    with buffers_kept(module):
        try:
            if set(modes) != {mode == "train"}:
                module.train(mode == "train")
            for parameter in wanting:
                parameter.requires_grad_(False)
            yield module
        finally:
            for parameter in wanting:
                parameter.requires_grad_(True)
            if [part.training for part in parts] != modes:
                module.train(modes[0])  # for modules that do more in train() than set the flag
                for part, training in zip(parts, modes):
                    part.training = training


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of a module on the way out: the tensors, and what is in them."""
    buffers = [
        (part, name, b, b.detach().clone())
        for part in module.modules()
        for name, b in part._buffers.items()
        if b is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, content in buffers:
                part._buffers[name] = buffer
                buffer.copy_(content)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while, with parameter gradients; batch statistics stay as they are."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
