"""The scores of ImageNet-E: what each edit costs, on the same images."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from withstand.data.shift.disk import Stock
from withstand.editing.dropped import average, dropped
from withstand.editing.imagenet_e import CONTROL, EDITS, ORI
from withstand.metrics import wilson


def edited(
    stock: Stock, rights: Mapping[str, np.ndarray], positions: Mapping[str, np.ndarray]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(results, a row for each edit). rights: bool [n], which images of a cell are right; positions: which they are.

    Images are matched by name without ending, as `withstand.editing.dropped.dropped_accuracy` does.
    """
    by_name = {}
    for key, cell in stock.cells.items():
        names = cell.listing().names
        by_name[key] = {PurePath(names[int(i)]).stem: bool(hit) for i, hit in zip(positions[key].tolist(), rights[key])}
    sources = [*by_name[ORI]]
    before = np.array([by_name[ORI][name] for name in sources])
    order = [edit for edit in EDITS if edit in by_name]
    made = np.array([[name in by_name[edit] for edit in order] for name in sources]).reshape(len(sources), len(order))
    after = np.array([[by_name[edit].get(name, False) for edit in order] for name in sources]).reshape(made.shape)
    rows = []
    for i, edit in enumerate(order):
        if not made[:, i].any():
            continue
        cost = dropped(edit, before, after[:, i], made[:, i])
        interval = {"low": cost.low, "high": cost.high, "interval": "Agresti and Min"}
        share = {"edit": edit, "accuracy": cost.after, "before": cost.before, "dropped": cost.dropped}
        rows.append({**share, **interval, "n": cost.n, "missing": cost.missing})
    low, high = wilson(int(before.sum()), len(before))
    found = {"value": float(before.mean()), "low": low, "high": high, "interval": "wilson", "n": len(before)}
    results = [{"metric": "top1", "better": "higher", **found}]
    counted = [i for i, edit in enumerate(order) if edit != CONTROL]
    if counted and made[:, counted].any():
        mean, low, high = average(before, after[:, counted], made[:, counted])
        spread = {"low": low, "high": high, "interval": "cluster bootstrap", "n": len(before)}
        results.append({"metric": "dropped_accuracy", "better": "lower", "value": mean, **spread})
    return results, rows
