"""Watching a model's forward pass from outside: does it compute gradients, does it run its layers again and again?"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def watch(module: nn.Module, call: Callable[[Tensor], Any], x: Tensor) -> tuple[int, int]:
    """(operations that ran inside a backward pass, most calls of one layer with parameters) during one forward pass.

    Whatever way the model differentiates (`backward`, `autograd.grad`, `torch.func`), its backward pass runs as a task of
    the autograd engine, and every operation can be asked whether it belongs to one.
    """
    calls: Counter[nn.Module] = Counter()
    layers = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [m.register_forward_pre_hook(lambda m, _: calls.update([m])) for m in layers]
    try:
        with torch.no_grad(), _Watch() as seen:
            call(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen.backward, max(calls.values(), default=0)


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.backward += torch._C._current_graph_task_id() != -1
        return func(*args, **(kwargs or {}))
