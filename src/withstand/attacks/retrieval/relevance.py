"""How much of a ranked list is left in another: the relevance-based loss of QAIR, and the count of shared items."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from withstand.errors import bad
from withstand.models.retrieval import Item
from withstand.objectives import State
from withstand.protocols import Seen
from withstand.registry import component

Gain = Literal["auto", "exponential", "linear", "count"]

_EXPONENTIAL = 16  # the longest list with exponential gains: beyond, rank 1 has all the weight, and 2^rank overflows


def gains(n: int, gain: Gain = "auto", dtype: torch.dtype = torch.float64) -> Tensor:
    """The weight of each rank of a list, [n], with sum 1.

    rel_i = n - i + 1 for rank i; w_i = g_i / sum g, with g_i = 2^rel_i - 1 ("exponential"), g_i = rel_i ("linear"), or 1
    ("count"). "auto" is exponential up to 16 ranks and linear beyond.
    """
    if n < 1:
        raise bad("list", "empty", "at least one item")
    rel = torch.arange(n, 0, -1, dtype=torch.float64)
    if gain == "exponential" or (gain == "auto" and n <= _EXPONENTIAL):
        g = 2**rel - 1
    else:
        g = torch.ones_like(rel) if gain == "count" else rel
    return (g / g.sum()).to(dtype)


def overlap(clean: Tensor, now: Tensor, gain: Gain = "auto") -> Tensor:
    """The relevance of the clean lists [N, n] in the lists now [N, n], codes of items: [N], from 0 (disjoint) up.

    sum_i w_i w_pos(i), pos(i) the rank of the clean list's i-th item now, and nothing where it is absent; at most sum w^2,
    at the same list alone. "count": the share of the clean items that are still there.
    """
    w = gains(clean.shape[1], gain).to(clean.device)
    there = clean[:, :, None] == now[:, None, :]
    left = w if gain != "count" else torch.ones_like(w)
    return (w[None, :, None] * there * left).sum((1, 2))


def relevance_loss(clean: Sequence[Item], now: Sequence[Item], gain: Gain = "auto") -> float:
    """`overlap` of two ranked lists of ids, which may differ in length: beyond the clean list's, ranks now weigh nothing,
    except for "count", which counts an item wherever it is.

    >>> round(relevance_loss([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]), 6)
    0.061865

    Raises: BadInput for an empty list or an id that comes twice.
    """
    for what, items in (("clean", clean), ("now", now)):
        if not len(items):
            raise bad(what, "an empty list", "at least one id")
        if len(set(items)) < len(items):
            raise bad(what, f"{list(items)}", "each id once")
    w = gains(len(clean), gain).tolist()
    rank = {item: i for i, item in enumerate(now)}
    held = [(w[i], rank[item]) for i, item in enumerate(clean) if item in rank]
    return sum(mine * (1.0 if gain == "count" else w[at]) for mine, at in held if gain == "count" or at < len(w))


class Disjoint:
    """The goal: no item of the clean list is in the list now."""

    def __call__(self, seen: Seen, y: Any, state: State) -> Tensor:
        return ~(state["list"][:, :, None] == seen.logits[:, None, :]).flatten(1).any(1)


@component("objective", "relevance", systems=("qair",))
class Relevance:
    """Minus the relevance of the clean list in the list that an engine returns now.

    -sum_i w_i w_pos(i); see `overlap`. gain: of the ranks; "count" is the share of items that are left, a loss that no
    change of order lowers. The attacked thing returns lists, as codes [N, k] (`Lists`).

    Reference: Li et al., "QAIR: Practical Query-efficient Black-Box Attacks for Image Retrieval", 2021, arXiv 2103.02927,
    as implemented by the authors of ARRA.
    """

    gain: Gain = "auto"

    reads = ("logits",)
    coupled = False
    criterion = Disjoint()

    def begin(self, seen: Seen, y: Tensor, rows: Any) -> Mapping[str, Tensor]:
        """Remember the clean lists."""
        return {"list": seen.logits.detach()}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return -overlap(state["list"], seen.logits, self.gain)


class Lists:
    """An engine as a function of images to lists of codes [N, k], one number for each id that ever came.

    The numbers are exact in float64; `ids` reads them back.
    """

    def __init__(self, engine: Any) -> None:
        self.engine, self.known = engine, []
        self._code: dict[Item, int] = {}

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tensor([[self._of(i) for i in items] for items in self.engine(x)], dtype=torch.float64).to(
            x.device
        )

    def ids(self, codes: Tensor) -> list[list[Item]]:
        """The lists [N, k] of ids that codes stand for."""
        return [[self.known[int(c)] for c in row] for row in codes.tolist()]

    def _of(self, item: Item) -> int:
        if item not in self._code:
            self._code[item] = len(self.known)
            self.known.append(item)
        return self._code[item]
