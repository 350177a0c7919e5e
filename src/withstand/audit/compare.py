"""Two models on the same examples: paired differences, and which examples changed sides."""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc

from withstand.audit.check import Table
from withstand.audit.scorecard import Comparison, Scorecard
from withstand.metrics import paired_difference

LISTED = 50
"""At most so many ids are listed on each side; the rows hold them all."""


def compare_models(card: Scorecard, tables: Mapping[str, Mapping[str, Table]]) -> list[Comparison]:
    """Every model against the first one, for each check and condition that both have outcomes for."""
    found: list[Comparison] = []
    names = list(card.models)
    for after in names[1:]:
        for check, table in tables[after].items():
            found += compare_tables(check, names[0], after, tables[names[0]][check], table)
    return found


def compare_tables(check: str, before: str, after: str, a: Table, b: Table) -> list[Comparison]:
    """The paired difference of two tables of one check, condition by condition."""
    found = []
    for text in pc.unique(a.table["condition"]).to_pylist():
        one, two = (t.table.filter(pc.equal(t.table["condition"], text)) for t in (a, b))
        if not one.num_rows or not two.num_rows or one["outcome"].null_count or two["outcome"].null_count:
            continue
        left = dict(zip(zip(one["unit"].to_pylist(), one["id"].to_pylist()), one["outcome"].to_pylist()))
        right = dict(zip(zip(two["unit"].to_pylist(), two["id"].to_pylist()), two["outcome"].to_pylist()))
        shared = sorted(left.keys() & right.keys())
        if not shared:
            continue
        x, y = np.array([left[k] for k in shared]), np.array([right[k] for k in shared])
        difference, low, high, p = paired_difference(x, y)
        gained = [k[1] for k, u, v in zip(shared, x, y) if v and not u]
        lost = [k[1] for k, u, v in zip(shared, x, y) if u and not v]
        found.append(
            Comparison(
                "withstood",
                check,
                before,
                after,
                difference,
                low,
                high,
                p,
                len(shared),
                gained[:LISTED],
                lost[:LISTED],
                json.loads(text),
            )
        )
    return found
