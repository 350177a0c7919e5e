"""What targeted attacks on hashing models share: the label sets that queries are drawn to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import AttackResult
from withstand.attacks.hashing.aim import HashingAttack
from withstand.attacks.hashing.centres import as_labels, same_classes
from withstand.attacks.hashing.database import Database, DatabaseField, resolve
from withstand.errors import bad
from withstand.random import Rows, derive
from withstand.registry import replace


@dataclass(frozen=True, kw_only=True)
class Targeted(HashingAttack):
    """Draws queries to label sets of the database's items.

    target: a class for all queries, class indices [N], or 0/1 [N, C]; None draws for each query the label set of a
    database item that shares no label with it (`targets_of` tells which). database: as for `cga`.
    """

    target: Any = None
    database: DatabaseField = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target, bool) or not (self.target is None or isinstance(self.target, (int, Tensor))):
            raise bad("target", repr(self.target), "a class, int64 [N], 0/1 [N, C], or None")

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> AttackResult:
        """See `HashingAttack.run`. Raises: BadInput for a target that no database item has as well."""
        held = replace(self, database=resolve(self.database, model, self.component_name))  # type: ignore[attr-defined]
        if y is not None and isinstance(x, Tensor) and len(y) == len(x):
            ids = context.get("ids")
            y = held.targets_of(y, context.get("seed", 0), torch.arange(len(x)) if ids is None else ids).to(x.device)
        return super(Targeted, held).run(model, x, y, **context)

    def targets_of(self, y: Tensor, seed: int = 0, ids: Tensor | None = None) -> Tensor:
        """The label sets 0/1 [N, C] that queries with labels y are drawn to; `database` must hold codes and labels.

        Raises: BadInput for a target that no item has.
        """
        own, known = same_classes(as_labels(y).cpu(), self.known.labels.cpu())
        if self.target is None:
            rows = Rows(derive(seed, "hashing targets"), torch.arange(len(own)) if ids is None else ids.cpu())
            return other_labels(own, known, rows)
        given = self.target if isinstance(self.target, Tensor) else torch.full((len(own),), self.target)
        wanted, known = same_classes(as_labels(given, "target").cpu(), known)
        if len(wanted) != len(own):
            raise bad("target", f"{len(wanted)} targets", f"one for each of {len(own)} queries")
        if not bool((wanted @ known.T > 0).any(1).all()):
            raise bad("target", "a label that no database item has", "labels of the database")
        return wanted

    @property
    def known(self) -> Database:
        """The database, where it is one. Raises: BadInput for what stands for one, which a model must hash first."""
        if not isinstance(self.database, Database):
            raise bad("database", repr(self.database), "(codes, labels)")
        return self.database


def other_labels(own: Tensor, known: Tensor, rows: Rows) -> Tensor:
    """For label sets 0/1 [N, C] one of the items' that shares nothing with each, drawn among the different ones."""
    kinds = known.unique(dim=0)
    kinds = kinds[kinds.sum(1) > 0]
    free = own @ kinds.T == 0
    if not bool(free.any(1).all()):
        raise bad("database", "items that share a label with every query", "items of other labels", "Give target=.")
    order = rows.uniform((len(kinds),), "target").masked_fill(~free, -1.0)
    return kinds[order.argmax(1)]
