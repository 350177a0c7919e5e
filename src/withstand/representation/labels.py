"""Who is relevant to whom: items of the same label, or that share one of several."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad

_PAIRS = 1 << 24


@dataclass(frozen=True)
class Labels:
    """Labels of items, int64 [N], or float32 [N, C] of zeros and ones."""

    values: Tensor

    @staticmethod
    def pair(queries: Tensor, n: int, database: Tensor | None, m: int) -> "tuple[Labels, Labels]":
        """The labels of n queries and m items. Raises: BadInput where they do not go together."""
        if database is None:
            raise bad("database_labels", "none", f"the labels of the {m} items")
        found = _read("labels", queries, n), _read("database_labels", database, m)
        if not n:
            raise bad("labels", "no queries", "at least one")
        if found[0].many != found[1].many or found[0].values.shape[1:] != found[1].values.shape[1:]:
            shapes = f"{list(queries.shape)} and {list(database.shape)}"
            raise bad(
                "database_labels", shapes, "labels of queries and items in the same form: [N], or [N, C] with one C"
            )
        return found

    @property
    def many(self) -> bool:
        """Whether an item may have several."""
        return self.values.dim() == 2

    def relevant_counts(self, items: "Labels", without: Tensor | None) -> Tensor:
        """How many items are relevant to each query, int64 [N]; one that does not count is not counted."""
        if self.many:
            step = max(1, _PAIRS // len(items.values))
            parts = [(part @ items.values.T > 0).sum(1) for part in self.values.split(step)]
            count = torch.cat(parts)
        else:
            known, sizes = items.values.unique(return_counts=True)
            place = torch.searchsorted(known, self.values).clamp_max(len(known) - 1)
            count = torch.where(known[place] == self.values, sizes[place], 0)
        if without is None:
            return count
        own = self.relevant(torch.arange(len(self.values)), items, without.clamp_min(0)[:, None])[:, 0]
        return count - (own & (without >= 0)).long()

    def relevant(self, rows: Tensor, items: "Labels", position: Tensor) -> Tensor:
        """Whether the items at these positions [n, k] are relevant to these queries [n], bool [n, k]."""
        if not self.many:
            return self.values[rows][:, None] == items.values[position]
        step = max(1, _PAIRS // (max(1, position.shape[1]) * self.values.shape[1]))
        parts = [
            torch.einsum("nc,nkc->nk", self.values[r], items.values[p]) > 0
            for r, p in zip(rows.split(step), position.split(step))
        ]
        return torch.cat(parts)

    def all_relevant(self, rows: Tensor, items: "Labels") -> np.ndarray:
        """Whether each of all items is relevant to these queries, bool [n, M]."""
        if self.many:
            return (self.values[rows] @ items.values.T > 0).numpy()
        return self.values[rows].numpy()[:, None] == items.values.numpy()


def lonely(relevant: Tensor, lone: str, labels: Labels) -> None:
    """Refuse queries to which nothing is relevant, if they are to be refused."""
    if lone not in ("refuse", "skip", "zero"):
        raise bad("lone", repr(lone), '"refuse", "skip" or "zero"')
    none = (relevant == 0).nonzero().flatten()
    if lone == "refuse" and len(none):
        label = labels.values[none[0]]
        said = label.nonzero().flatten().tolist() if labels.many else int(label)
        got = f"{len(none)} queries to which nothing is relevant, the first is {int(none[0])} with label {said}"
        mend = 'Classes need two items, or items in the database; or lone="skip" leaves such queries out.'
        raise bad("labels", got, "at least one other item of each query's label", mend)


def _read(argument: str, labels: Tensor, n: int) -> Labels:
    if not isinstance(labels, Tensor) or labels.dim() not in (1, 2) or len(labels) != n:
        got = f"shape {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise bad(argument, got, f"a tensor of labels, int [{n}], or zeros and ones [{n}, C]")
    values = labels.detach().cpu()
    if values.dim() == 2:
        if not bool(((values == 0) | (values == 1)).all()):
            raise bad(argument, "values beside 0 and 1", f"zeros and ones [{n}, C], or int [{n}]")
        return Labels(values.float())
    if values.is_floating_point():
        raise bad(argument, str(values.dtype), f"int labels [{n}]")
    return Labels(values.long())
