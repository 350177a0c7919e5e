"""What all checks share, and how they read their rows back."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from withstand.metrics import wilson
from withstand.protocols import Batch, Context, Dataset, Findings, Metric, Need, Row, Target


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of an audit; see `withstand.protocols.Check` for the contract.

    examples: use only so many examples of the data, of each class its share; None = all.
    """

    examples: int | None = None

    task: ClassVar[str] = "classification"
    access: ClassVar[Any] = frozenset()
    """What the target must allow: a frozenset of words, or a property that returns one."""
    needs: ClassVar[tuple[Need, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    """Kinds of checks (their component names) whose rows `reduce` reads."""
    own_rows: ClassVar[bool] = True
    """False for a check that only reads the rows of others: it has no shards."""
    compared: ClassVar[bool] = True
    """False for a check whose outcomes are probes, not results: models are not compared by them."""
    title: ClassVar[str] = ""

    def passes(self, target: Target) -> float:
        """Roughly how many forward-and-gradient passes one example costs at most; for the estimate before the start."""
        return 1.0

    def examples_of(self, data: Dataset, given: Mapping[str, Any]) -> Dataset:
        """The examples that the shards are cut from: the audited data, unless the check tests others as well."""
        return data

    def prepare(self, target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context) -> dict[str, Any] | None:
        """Fit what the rows need, once for each model: a dict of tensors, kept in the run folder; or None."""
        return None

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """The outcomes of one shard. Nothing but the arguments may matter, so that any process can do any shard."""
        return ()

    def reduce(self, rows: "Table", others: Mapping[str, "Table"], ctx: Context) -> Findings:
        """What the rows of all shards say. `others` holds the rows of the checks named in `after` that ran."""
        raise TypeError(f"{type(self).__name__} defines no reduce")


class Table:
    """The rows of one check of one model, as columns.

    A thin hand on a pyarrow table: `where(eps=0.03)` selects by condition, `outcome`, `value`, ... are numpy arrays.
    """

    def __init__(self, table: pa.Table) -> None:
        column = table["condition"]
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        column = column.unify_dictionaries().combine_chunks()
        self.table = table.set_column(table.schema.get_field_index("condition"), "condition", column)
        self._texts: list[str] = column.dictionary.to_pylist()

    def __len__(self) -> int:
        return self.table.num_rows

    def conditions(self) -> list[dict[str, Any]]:
        """The distinct conditions, in order of appearance."""
        return [json.loads(text) for text in self.table["condition"].unique().to_pylist()]

    def where(self, **condition: Any) -> "Table":
        """The rows whose condition has these values."""
        wanted = [
            index
            for index, text in enumerate(self._texts)
            if all(known.get(k) == v for known in [json.loads(text)] for k, v in condition.items())
        ]
        codes = self.table["condition"].combine_chunks().indices.to_numpy()
        return Table(self.table.filter(pa.array(np.isin(codes, wanted))))

    def column(self, name: str) -> np.ndarray:
        """A column as numpy; missing numbers are nan (outcomes and integers: only where none is missing)."""
        return self.table[name].to_numpy()

    @property
    def id(self) -> np.ndarray:
        return self.column("id")

    @property
    def outcome(self) -> np.ndarray:
        return self.column("outcome").astype(bool)

    @property
    def value(self) -> np.ndarray:
        return self.column("value").astype(float)

    @property
    def distance(self) -> np.ndarray:
        return self.column("distance").astype(float)

    @property
    def label(self) -> np.ndarray:
        return self.column("label").astype(int)

    @property
    def prediction(self) -> np.ndarray:
        return self.column("prediction").astype(int)

    @property
    def cost(self) -> np.ndarray:
        return self.column("cost").astype(int)

    def share(self, name: str, better: str = "higher", **condition: Any) -> Metric:
        """The share of rows under this condition whose outcome is true, with Wilson's interval."""
        chosen = self.where(**condition).outcome
        hits, n = int(chosen.sum()), len(chosen)
        low, high = wilson(hits, n)
        return Metric(name, hits / n, low, high, "wilson", n, "share", better, dict(condition))  # type: ignore[arg-type]
