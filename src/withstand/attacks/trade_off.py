"""The weight of the goal against the distance, searched for each example."""

import torch
from torch import Tensor


class TradeOff:
    """The smallest weight c [N] that still succeeds: tenfold growth until the first success, bisection afterwards."""

    def __init__(self, first: float, like: Tensor) -> None:
        """first: where the search begins; like: [N, ...] of the dtype and device to use."""
        self.c = torch.full((len(like),), first, dtype=like.dtype, device=like.device)
        self._low, self._high = torch.zeros_like(self.c), torch.full_like(self.c, torch.inf)

    def update(self, hit: Tensor) -> None:
        """hit: bool [N], whether the present weight succeeded."""
        self._high = torch.where(hit, torch.minimum(self._high, self.c), self._high)
        self._low = torch.where(hit, self._low, torch.maximum(self._low, self.c))
        self.c = torch.where(self._high.isfinite(), (self._low + self._high) / 2, self.c * 10)
