"""The cost of whatever runs inside a block, counted from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from withstand.errors import bad
from withstand.models.target import is_target


@dataclass
class Passes:
    """Passes through a model: calls, and examples summed over calls.

    A backward pass is one traversal of the model's graph from its output, for input or parameter gradients alike; a
    gradient of the loss with respect to the logits alone is none; several directions at once (`is_grads_batched`) are
    one. Queries of a black box are forward passes.
    """

    forward_calls: int = 0
    forward_examples: int = 0
    backward_calls: int = 0
    backward_examples: int = 0

    def count(self, examples: int) -> None:
        """One more forward pass."""
        self.forward_calls += 1
        self.forward_examples += examples

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@contextmanager
def count_passes(model: Any) -> Iterator[Passes]:
    """Count the passes through a module or target while the block runs.

    >>> import torch, withstand as ws
    >>> model, x = torch.nn.Linear(3, 2), torch.ones(5, 3, requires_grad=True)
    >>> with ws.count_passes(model) as passes:
    ...     gradient = torch.autograd.grad(model(x).sum(), x)
    >>> passes
    Passes(forward_calls=1, forward_examples=5, backward_calls=1, backward_examples=5)

    Counted are calls of the model itself, not of `model.forward`. A graph built inside the block counts its backward
    passes even after the block. Raises: BadInput for something that is neither a module nor a target.
    """
    passes = Passes()
    if not isinstance(model, nn.Module) and not is_target(model):
        raise bad("model", type(model).__name__, "a torch module or what load_model returns")
    # a target's own module may be wrapped anew by every caller; the model inside is the same for all of them
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if isinstance(module, torch.jit.ScriptModule):  # takes no hooks itself
        if module is model:
            raise bad("model", "a scripted module", "a target around it", "Give as_target(model), and call that.")
        module = model.module
    if isinstance(module, nn.Module):
        handle = module.register_forward_hook(
            lambda m, args, kwargs, out: _counted(passes, args, kwargs, out), with_kwargs=True
        )
        try:
            yield passes
        finally:
            handle.remove()
    elif isinstance(listeners := getattr(model, "listeners", None), list):
        listeners.append(passes.count)
        try:
            yield passes
        finally:
            listeners.remove(passes.count)
    else:
        raise bad("model", type(model).__name__, "a target with a module, or one that tells its `listeners` of queries")


def _counted(passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Note a forward pass; return the output with one more node in its graph, which notes the backward passes."""
    first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
    examples = len(first)
    passes.count(examples)
    leaves, structure = tree_flatten(output)
    wanting = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not wanting:
        return None
    # one node over all outputs, so that two losses on two of them make one backward pass
    for i, leaf in zip(wanting, _Tap.apply(passes, examples, *(leaves[i] for i in wanting))):
        leaves[i] = leaf
    return tree_unflatten(leaves, structure)


class _Tap(torch.autograd.Function):
    """The identity; its backward is a count."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, examples: int, *outputs: Tensor) -> Any:
        ctx.passes, ctx.examples = passes, examples
        return tuple(o.view_as(o) for o in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.passes.backward_calls += 1
        ctx.passes.backward_examples += ctx.examples
        return None, None, *gradients
