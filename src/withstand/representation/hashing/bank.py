"""The bank: what a hashing model last returned for every training example."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from withstand.attacks.hashing.centres import Weights, centres, sign
from withstand.attacks.hashing.database import outputs
from withstand.protocols import Batch, Dataset


class Bank(nn.Module):
    """Outputs u [N, K], codes b = sign(u) and labels y 0/1 [N, C] of all training examples, by the identity of each.

    u and b are separate tensors (in the official code they share their memory, so that the codes turn real after the first
    visit), and are part of what checkpoints save. `fill` makes one pass in eval mode; the official code leaves dropout on.
    Every process keeps all of it, and writes what the others saw as well.
    """

    u: Tensor
    b: Tensor
    y: Tensor
    ids: Tensor
    order: Tensor
    filled: Tensor

    def __init__(self, data: Dataset, bits: int) -> None:
        super().__init__()
        self.data, n = data, len(data)
        for name, width in (("u", bits), ("b", bits), ("y", len(data.classes))):
            self.register_buffer(name, torch.zeros(n, width))
        for name in ("ids", "order"):
            self.register_buffer(name, torch.zeros(n, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    def __deepcopy__(self, memo: Any) -> "Bank":
        return self  # copies of a system are what is validated or shipped, and that has no bank

    def fill(self, model: nn.Module) -> None:
        """All outputs, once, before the first step; every process makes them for itself."""
        if bool(self.filled):
            return
        u, y, ids = outputs(model, self.data, self.u.device)
        self.y.copy_(y)
        self._put(torch.arange(len(u), device=u.device), u)
        self.order.copy_(ids.argsort())
        self.ids.copy_(ids[self.order])
        self.filled.fill_(True)

    def write(self, batch: Batch, u: Tensor) -> None:
        """Put the outputs of a batch in their places, in every process those of all."""
        self._put(gathered(self.places(batch)), gathered(u.detach()))

    def places(self, batch: Batch) -> Tensor:
        """Where the examples of a batch stand, int64 [n]."""
        assert batch.ids is not None
        return self.order[torch.searchsorted(self.ids, batch.ids)]

    def _put(self, places: Tensor, u: Tensor) -> None:
        self.u[places] = u.to(self.u)
        self.b[places] = sign(u).to(self.b)

    def centres(self, y: Tensor, weights: Weights) -> Tensor:
        """The centre codes [n, K] of label sets 0/1 [n, C] among all training examples."""
        return centres(y, self.b, self.y, weights)


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, one after another; each has as many."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
