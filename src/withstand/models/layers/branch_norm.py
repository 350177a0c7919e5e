"""Normalisation layers with one branch for each kind of example.

References: Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial examples improve image recognition", CVPR 2020,
arXiv:1911.09665; Lo, Patel, "Defending against multiple and unforeseen adversarial videos", IEEE TIP 2021,
arXiv:2009.05244 (the soft mixture).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.errors import bad, unknown
from withstand.models.layers.synchronised import Group, normalise_groups, too_few

Kind = Literal["batch", "group", "layer"]
_KINDS: dict[str, type[nn.Module]] = {"batch": _BatchNorm, "group": nn.GroupNorm, "layer": nn.LayerNorm}
_M = TypeVar("_M", bound=nn.Module)


def add_branches(model: _M, names: Sequence[str], kinds: Sequence[Kind] = ("batch",), sync: bool = False) -> _M:
    """Give every normalisation layer of these kinds one branch per name, in place; the first is the default.

    Each branch begins as a copy of the layer, running statistics included, so the model computes what it did. Batch norm
    is doubled whole; group and layer norm normalise each example by itself, so only their scale and shift differ.
    sync: batch statistics over all processes (always so for torch's SyncBatchNorm). Convert before the model is wrapped
    for distributed training and before its optimizer is made.

    Returns: the model; a BranchNorm where the model is itself such a layer.
    Raises: BadInput for unusable names or kinds, a model that has branches, and one without such layers.
    """
    names = list(names)
    if not names or len({*names}) < len(names) or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise bad("names", names, "different names made of letters, digits and _")
    for kind in kinds:
        if kind not in _KINDS:
            raise unknown("kinds", str(kind), _KINDS)
    if any(isinstance(m, BranchNorm) for m in model.modules()):
        raise bad("model", "a model that has branches", "one without", "Undo them first with keep_branch.")
    types = tuple(_KINDS[kind] for kind in kinds)
    if not any(_branches_of_use(m, types) for m in model.modules()):
        raise bad("model", type(model).__name__, f"a model with layers of kind {' or '.join(kinds)}")
    return _replace(model, lambda m: BranchNorm(m, names, sync) if _branches_of_use(m, types) else None)


def keep_branch(model: _M, name: str) -> _M:
    """Put the plain layers of one branch back, in place: the outputs are those of the model routed to that branch.

    Raises: BadInput for a model without branches or an unknown name.
    """
    for layer in _layers(model):
        layer.place(name)
    return _replace(model, lambda m: m.branches[name] if isinstance(m, BranchNorm) else None)


def branch_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters that only this branch has. Raises BadInput as keep_branch does."""
    return [p for layer in _layers(model) for p in layer.branch(name).parameters()]


@contextmanager
def route(model: nn.Module, to: str | Tensor) -> Iterator[None]:
    """Send the examples of the passes inside through the branches given.

    to: a branch name; int64 [N], the branch of each example by its place in the list of names; or floating [N, B],
    weights of the branches' outputs (batch norm: in eval mode). Outside any route the first branch is used.
    Training on ids equals one pass per branch: outputs, gradients, running statistics.

    The route is kept on the layers, so it reaches them through any wrapper (DDP, compiled) and from the threads of the
    backward pass: run the backward pass of an activation-checkpointed model inside too, since it runs the forward pass
    again. Routes nest and end with exceptions. Two threads need two copies of the model to route it differently.

    Raises: BadInput for a model without branches, an unknown name, ids or weights of a wrong shape, kind or range; in
    the pass, for a batch of another length and for a training branch with fewer than two values per channel.
    """
    layers = _layers(model)
    plans = {layer.names: layer.plan(to) for layer in layers}
    before = [layer.routed for layer in layers]
    try:
        for layer in layers:
            layer.routed = plans[layer.names]
        yield
    finally:
        for layer, old in zip(layers, before):
            layer.routed = old


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Passes inside leave the running statistics of batch norm alone; in train mode they use those of the batch.

    For attacks on a model in train mode; unlike `withstand.models.frozen`, it copies no buffer and touches nothing else.
    """
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for layer in tracking:
            layer.track_running_stats = False
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


class BranchNorm(nn.Module):
    """One normalisation layer for each branch; `route` says which example goes through which.

    layer: BatchNorm1d/2d/3d, SyncBatchNorm, GroupNorm or LayerNorm, the batch in its first dimension; every branch
    begins as a copy of it, in `branches` under its name. sync: batch statistics over all processes of the default
    process group, on any device.
    """

    def __init__(self, layer: nn.Module, names: Sequence[str], sync: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: copy.deepcopy(layer) for name in names})
        self.names = tuple(names)
        self.sync = isinstance(layer, nn.SyncBatchNorm) or (sync and isinstance(layer, _BatchNorm))
        self.routed: _Plan | None = None
        if self.sync and type(layer).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise bad("sync", type(layer).__name__, "the batch norms of torch", "Only their formula is synchronised.")

    def __len__(self) -> int:
        return len(self.names)

    def place(self, name: str) -> int:
        """The number of a branch. Raises BadInput with the nearest names."""
        if name not in self.names:
            raise unknown("branch", name, self.names)
        return self.names.index(name)

    def branch(self, name: str) -> nn.Module:
        """The plain layer of a branch. Raises BadInput with the nearest names."""
        self.place(name)
        return self.branches[name]

    def plan(self, to: str | Tensor) -> "_Plan":
        """What `route` was given, checked and sorted by branch once for all layers with these names."""
        if isinstance(to, str):
            return _Plan(only=self.place(to))
        b = len(self)
        if not isinstance(to, Tensor):
            raise bad("to", type(to).__name__, "a branch name, a tensor of ids [N], or of probabilities [N, B]")
        if to.dtype == torch.int64 and to.dim() == 1:
            if len(to) and not 0 <= int(to.min()) <= int(to.max()) < b:
                raise bad("to", f"ids from {int(to.min())} to {int(to.max())}", f"0 to {b - 1}, places in {self.names}")
            order = torch.argsort(to, stable=True)
            counts = torch.bincount(to, minlength=b).tolist()
            if bool((order[1:] > order[:-1]).all()):
                return _Plan(counts=counts)
            return _Plan(counts=counts, order=order, back=torch.argsort(order))
        if to.is_floating_point() and to.dim() == 2 and to.shape[1] == b:
            if not bool(((to >= 0).all(1) & ((to.sum(1) - 1).abs() < 1e-3)).all()):
                raise bad("to", "rows that are no probabilities", "rows >= 0 with sum 1", "Use softmax, not logits.")
            return _Plan(weights=to)
        raise bad("to", f"{to.dtype} {list(to.shape)}", f"int64 [N], or floating [N, {b}] (branches {self.names})")

    def forward(self, x: Tensor) -> Tensor:
        plan = self.routed or _Plan(only=0)
        layers = list(self.branches.values())
        if plan.counts is None and plan.weights is None:
            if not self._exchanges(layers[plan.only]):
                self._enough(plan.only, x)
                return layers[plan.only](x)
            counts = [len(x) * (b == plan.only) for b in range(len(self))]
        else:
            given = sum(plan.counts) if plan.counts is not None else len(cast(Tensor, plan.weights))
            if given != len(x):
                raise bad("route", f"{given} rows", f"{len(x)}, the rows of the batch in this pass")
            if plan.weights is not None:
                return self._mixture(x, plan.weights)
            counts = cast("list[int]", plan.counts)
        pieces = (x if plan.order is None else x[plan.order.to(x.device)]).split(counts)
        if any(self._exchanges(layer) for layer in layers):
            done = normalise_groups([Group(n, cast(_BatchNorm, m), p) for n, m, p in zip(self.names, layers, pieces)])
        else:
            done = [self._one(b, layer, piece) for b, (layer, piece) in enumerate(zip(layers, pieces))]
        out = torch.cat(done)
        return out if plan.back is None else out[plan.back.to(x.device)]

    def _exchanges(self, layer: nn.Module) -> bool:
        return self.sync and layer.training

    def _one(self, b: int, layer: nn.Module, piece: Tensor) -> Tensor:
        if len(piece):
            self._enough(b, piece)
            return layer(piece)
        weight, bias = layer.weight, layer.bias
        if distributed.is_available() and distributed.is_initialized() and isinstance(weight, Tensor):
            # DistributedDataParallel waits for a gradient of every parameter, on ranks without such examples too
            return piece + 0 * (weight.sum() + (bias.sum() if isinstance(bias, Tensor) else 0)).to(piece.dtype)
        return piece

    def _enough(self, b: int, x: Tensor) -> None:
        layer = self.branches[self.names[b]]
        if isinstance(layer, _BatchNorm) and layer.training and x.numel() < 2 * x.shape[1]:
            raise too_few(self.names[b], x.numel() // x.shape[1])

    def _mixture(self, x: Tensor, weights: Tensor) -> Tensor:
        layers = list(self.branches.values())
        if any(isinstance(m, _BatchNorm) and m.training for m in layers):
            raise bad(
                "route", "probabilities in train mode", "a name or ids",
                "Every branch would learn the statistics of all examples; call model.eval() for a soft mixture.",
            )  # fmt: skip
        columns = weights.to(x).reshape(*weights.shape, *[1] * (x.dim() - 1)).unbind(1)
        return torch.stack([p * m(x) for p, m in zip(columns, layers)]).sum(0)

    def extra_repr(self) -> str:
        return f"sync={self.sync}"


class _Plan(NamedTuple):
    """Where the rows of a batch go. counts: rows per branch once sorted by `order`; back: the order undone."""

    only: int = 0
    counts: list[int] | None = None
    order: Tensor | None = None
    back: Tensor | None = None
    weights: Tensor | None = None


def _layers(model: nn.Module) -> list[BranchNorm]:
    found = [m for m in model.modules() if isinstance(m, BranchNorm)]
    if not found:
        raise bad(
            "model", f"{type(model).__name__} without branches", "a model with", "Call add_branches(model, names)."
        )
    return found


def _branches_of_use(layer: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    return isinstance(layer, types) and (isinstance(layer, _BatchNorm) or any(True for _ in layer.parameters()))


def _replace(model: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> Any:
    """Swap submodules in place; a module that stands in several places is swapped for one and the same."""
    made: dict[int, nn.Module] = {}

    def swap(part: nn.Module) -> nn.Module:
        if id(part) not in made:
            new = make(part)
            made[id(part)] = part if new is None else new
            if new is None:
                for name, child in list(part._modules.items()):
                    if child is not None:
                        part._modules[name] = swap(child)
        return made[id(part)]

    return swap(model)
