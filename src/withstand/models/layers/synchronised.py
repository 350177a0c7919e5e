"""Batch norm over several groups of rows, with statistics of the rows of all processes, on any device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.errors import BadInput, bad


class Group(NamedTuple):
    """Rows x [n, C, ...], n >= 0, that share the statistics of one layer."""

    name: str
    layer: _BatchNorm
    x: Tensor


def normalise_groups(groups: Sequence[Group]) -> list[Tensor]:
    """Train-mode batch norm of each group with its own layer, as one process with the rows of all would compute it.

    Two sums over processes for all groups together, in which every process takes part, with or without rows: n and
    sum x, then sum (x - mean)^2; the gradient flows through both. Groups without rows anywhere stay as they are.

    Raises: BadInput for a group with a single value per channel over all processes.
    """
    wide = [g.x if g.x.dtype == torch.float64 else g.x.float() for g in groups]
    axes = [0, *range(2, wide[0].dim())]
    sizes = wide[0].new_tensor([x.numel() // x.shape[1] for x in wide])[:, None]
    totals = _total(torch.cat([sizes, torch.stack([x.sum(axes) for x in wide])], 1))
    n = totals[:, :1].detach()
    for group, size in zip(groups, n[:, 0].tolist()):
        if size == 1:
            raise too_few(group.name, 1)
    means = totals[:, 1:] / n.clamp(min=1)
    shape = [1, -1, *[1] * (wide[0].dim() - 2)]
    centred = [x - m.reshape(shape) for x, m in zip(wide, means)]
    variances = _total(torch.stack([c.square().sum(axes) for c in centred])) / n.clamp(min=1)
    out = []
    for group, c, mean, variance, size in zip(groups, centred, means, variances, n[:, 0]):
        layer = group.layer
        y = c * torch.rsqrt(variance + layer.eps).reshape(shape)
        if layer.affine:
            y = y * layer.weight.to(y.dtype).reshape(shape) + layer.bias.to(y.dtype).reshape(shape)
        if layer.track_running_stats and size > 0:
            _track(layer, mean.detach(), variance.detach() * size / (size - 1))
        out.append(y.to(group.x.dtype))
    return out


def too_few(name: str, values: int) -> BadInput:
    """The error for a branch whose batch statistics are undefined."""
    return bad(
        "batch", f"{values} value per channel in branch {name!r}", "at least 2 in train mode",
        "Give that branch more examples, or none.",
    )  # fmt: skip


@torch.no_grad()
def _track(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    share = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked or 1)
    for running, now in ((layer.running_mean, mean), (layer.running_var, variance)):
        if running is not None:
            running.lerp_(now.to(running.dtype), share)


def _total(x: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return x
    return _Total.apply(x)  # pyright: ignore[reportReturnType]


class _Total(torch.autograd.Function):
    """Sum over processes; since every process uses the sum, so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        distributed.all_reduce(grad)
        return grad
