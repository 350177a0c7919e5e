"""Parameters, gradients and optimiser states spread over processes (fully sharded data parallel, FSDP2).

What torch needs for it is imported where it is used, since that takes seconds.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def shard(wrapped: Any, mesh: Any) -> Any:
    """Spread the parts of a system, and within each its larger blocks, over the processes of the mesh; in place.

    A pass gathers one block's parameters at a time. Every part (the model, a discriminator) is a tree of its own, since
    attacks call the model apart from the loss. Raises: BadInput for parameters without a dimension.
    """
    from torch.distributed.fsdp import fully_shard

    if scalars := [name for name, p in wrapped.system.named_parameters() if p.dim() == 0]:
        raise bad(
            "strategy", "fsdp", '"ddp" for this model', f"{scalars[0]} is a single number, which cannot be spread."
        )

    for part in wrapped.system.children():
        total = _size(part)
        for block in _blocks(part, total) if total else []:
            fully_shard(block, mesh=mesh["data_parallel"])
        if total:
            fully_shard(part, mesh=mesh["data_parallel"])
    return wrapped


def whole(system: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """The state dict of a system, or of an optimiser of its parameters by their names, every tensor in one piece; all
    processes must ask."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True)
    if optimizer is None:
        return dict(states.get_model_state_dict(system, options=options))
    return dict(states.get_optimizer_state_dict(system, optimizer, options=options))


def put(system: nn.Module, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None) -> None:
    """The inverse of `whole`."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True)
    if optimizer is None:
        states.set_model_state_dict(system, dict(state), options=options)
    else:
        states.set_optimizer_state_dict(system, optimizer, dict(state), options=options)


def joined(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state, each in one piece; all processes must ask where any is spread."""
    return {name: t.full_tensor() if is_spread(t) else t for name, t in state.items()}


def own(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_spread(tensor) else tensor


def spread_like(tensor: Tensor, example: Any) -> Tensor:
    """A tensor in one piece, spread as the example is."""
    if not is_spread(example):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, example.device_mesh, example.placements)


def is_spread(tensor: Any) -> Any:
    """Whether a tensor lies on several processes."""
    return hasattr(tensor, "full_tensor")


def _blocks(module: nn.Module, total: int) -> list[nn.Module]:
    """Submodules that hold at least 1/32 of the parameters each, the inner before the outer; those that others may use
    without calling them (normalisation) belong to what is around them."""
    found = []
    for child in module.children():
        if 32 * _size(child) >= total and any(p.dim() > 1 for p in child.parameters()):
            found += _blocks(child, total)
            if not isinstance(child, _CONTAINERS):
                found.append(child)
    return found


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
