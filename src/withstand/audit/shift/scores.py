"""The numbers of `shift`, from the outcomes in its run folder."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

import withstand
from withstand.audit.shift.edits import edited
from withstand.audit.shift.published import published
from withstand.audit.store import Store
from withstand.corruptions.scores import mce, relative_mce
from withstand.corruptions.tables import COMMON, EXTRA
from withstand.data.shift.disk import SEVERITIES, Stock
from withstand.data.shift.view import View
from withstand.errors import bad
from withstand.metrics import cluster_bootstrap, wilson

DEFINITION = (
    "Top-1 accuracy; on ImageNet-A and -R among the logits of their 200 classes, on ObjectNet over all 1,000, mapped to its "
    "folders. mCE: 100 times the mean over 15 corruptions of the summed error over AlexNet's; relative mCE: with both clean "
    "errors taken off first. Intervals: 95 %, Wilson's for one set, bootstrap over images (each with all its versions) for "
    "means over corruptions. Dropped accuracy: of the sources less that of their edits, on the same images, averaged over "
    "the edits but the control."
)

_FORM = "[MODEL/]BENCHMARK[:METRIC]=VALUE, e.g. imagenet-a=0.1"


def scored(
    models: Mapping[str, Any],
    stocks: Mapping[str, Stock],
    limited: Callable[[str], bool],
    store: Store,
    views: Mapping[str, View],
) -> dict[str, Any]:
    """Everything that `shift.json` says."""
    results: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    edits: list[dict[str, Any]] = []
    seconds = 0.0
    for model in models:
        clean = None
        # the validation part first: relative mCE needs its error
        for name, stock in sorted(stocks.items(), key=lambda item: item[0] != "imagenet"):
            rights, positions = {}, {}
            for key in stock.cells:
                table, cost = store.read(model, f"{name}/{key}" if key else name)
                order = np.argsort(table.id, kind="stable")
                rights[key], positions[key] = table.outcome[order], table.id[order]
                seconds += cost.get("seconds", 0.0)
            whole = not stock.missing and not limited(name)
            n = max(map(len, rights.values()))
            label = {"model": model, "benchmark": name, "subset": "full" if whole else f"subset-{n}"}
            if stock.benchmark.layout == "edits":
                own, rows = edited(stock, rights, positions)
                results += [{**label, **entry} for entry in own]
                edits += [{**label, **row} for row in rows]
                continue
            if not stock.benchmark.corrupted:
                found = _share(rights[""])
                clean = found["value"] if name == "imagenet" and not stock.missing else clean
                results.append({**label, "metric": "top1", "better": "higher", **found})
                continue
            shown = {key: _named(cell.corruption or "", stock) for key, cell in stock.cells.items()}
            for key, right in rights.items():
                cell = stock.cells[key]
                share = _share(right)
                cells.append({**label, "corruption": shown[key], "severity": cell.severity, **share})
            alike = stock.aligned and len({len(r) for r in rights.values()}) == 1
            results += [{**label, **entry} for entry in _corrupted(stock, rights, clean, alike)]
    return {
        "withstand": withstand.__version__,
        "definition": DEFINITION,
        "benchmarks": {name: _facts(stock, limited(name)) for name, stock in stocks.items()},
        "models": {name: {"fingerprint": m.fingerprint(), "view": views[name].to_json()} for name, m in models.items()},
        "results": results,
        "cells": cells,
        "edits": edits,
        "published": published(list(stocks)),
        "seconds": seconds,
    }


def _share(right: np.ndarray) -> dict[str, Any]:
    hits, n = int(right.sum()), len(right)
    low, high = wilson(hits, n)
    return {"value": hits / n, "low": low, "high": high, "interval": "wilson", "n": n}


def _named(corruption: str, stock: Stock) -> str:
    """frost* where the set says that its frost was made without the photographs."""
    procedural = corruption == "frost" and stock.made is not None and stock.made.get("frost") == "procedural"
    return "frost*" if procedural else corruption


def _corrupted(
    stock: Stock, rights: Mapping[str, np.ndarray], clean: float | None, alike: bool
) -> list[dict[str, Any]]:
    """Means over cells, only over all of them: nothing of a set that lacks cells or images."""
    found = []
    keys = [f"{kind}/{s}" for kind in COMMON for s in SEVERITIES]
    n = max(map(len, rights.values()))
    if all(key in rights for key in keys) and len({len(rights[key]) for key in keys}) == 1:
        values = np.stack([rights[key] for key in keys], 1).astype(float) if alike else None
        means = np.array([rights[key].mean() for key in keys])
        found.append(_mean("mean_accuracy", means, values, lambda m: m.mean(1), "higher", n))
        if stock.benchmark.layout == "arrays":
            found.append(_mean("mean_error", means, values, lambda m: 1 - m.mean(1), "lower", n))
        elif not stock.missing:
            found.append(
                _mean("mce", means, values, lambda m: np.array([mce(_table(row)) for row in m]), "lower", n, "%")
            )
            if clean is not None:
                value = relative_mce(_table(means), 1 - clean)
                found.append({"metric": "relative_mce", "better": "lower", "value": value, "n": n, "unit": "%"})
    extra = [f"{kind}/{s}" for kind in EXTRA for s in SEVERITIES]
    if all(key in rights for key in extra):
        means = np.array([rights[key].mean() for key in extra])
        found.append({"metric": "extra_accuracy", "better": "higher", "value": float(means.mean()), "n": n})
    return found


def _mean(
    metric: str,
    means: np.ndarray,
    values: np.ndarray | None,
    statistic: Callable[[np.ndarray], np.ndarray],
    better: str,
    n: int,
    unit: str = "share",
) -> dict[str, Any]:
    """A statistic of the cells' accuracies [75]; an interval only where the cells hold versions of the same images."""
    entry = {"metric": metric, "better": better, "value": float(statistic(means[None])[0]), "n": n, "unit": unit}
    if values is None:
        return entry
    low, high = cluster_bootstrap(values, statistic)
    return {**entry, "low": low, "high": high, "interval": "cluster bootstrap"}


def _table(accuracies: np.ndarray) -> dict[str, list[float]]:
    """Accuracies [75], kind by kind -> errors by kind."""
    errors = (1 - accuracies.reshape(len(COMMON), len(SEVERITIES))).clip(0, 1)
    return {kind: row.tolist() for kind, row in zip(COMMON, errors)}


def _facts(stock: Stock, limited: bool) -> dict[str, Any]:
    """What was found on the disk, and what to know about it."""
    benchmark = stock.benchmark
    notes: list[str] = []
    if stock.missing:
        more = f" (and {len(stock.missing) - 1} more; see shift.json)" if len(stock.missing) > 1 else ""
        notes.append(f"compares with no published figure, since it is not the whole set: {stock.missing[0]}{more}")
    if limited:
        notes.append("a part, drawn with every class's share")
    if benchmark.corrupted and not stock.aligned:
        notes.append("the cells hold different images, so means over them have no interval")
    if stock.made is not None:
        notes.append("made by withstand, not the published files" + _frost(stock.made))
    return {
        "folder": stock.place.name,
        "images": stock.images,
        "cells": len(stock.cells),
        "classes": len(benchmark.subset or range(benchmark.logits)) if benchmark.layout != "objectnet" else 113,
        "shown": benchmark.part,
        "missing": list(stock.missing[:100]),
        "notes": notes,
    }


def _frost(made: Mapping[str, Any]) -> str:
    return "; frost* has procedural ice" if made.get("frost") == "procedural" else ""


def check_requirement(requirement: str, models: Collection[str], benchmarks: Collection[str]) -> None:
    """Refuse a requirement that no run of these models on these benchmarks can answer. Raises: BadInput."""
    from withstand.report.shift import METRICS

    model, benchmark, metric, value = _parts(requirement)
    if not math.isfinite(value) or benchmark not in benchmarks or metric not in ("", *METRICS):
        raise bad("--fail-under", repr(requirement), _FORM, f"This run has {', '.join(benchmarks)}.")
    if model and model not in models:
        raise bad("--fail-under", repr(requirement), _FORM, f"The models are {', '.join(models)}.")


def misses(found: Mapping[str, Any], requirement: str) -> list[str]:
    """The results that are worse than `[MODEL/]BENCHMARK[:METRIC]=VALUE` asks for, in words.

    Raises: BadInput for another form, and where no result is meant.
    """
    model, benchmark, metric, value = _parts(requirement)
    wanted = (metric,) if metric else ("top1", "mean_accuracy")
    chosen = [
        r
        for r in found["results"]
        if r["benchmark"] == benchmark and model in ("", r["model"]) and r["metric"] in wanted
    ]
    if not chosen or not math.isfinite(value):
        known = ", ".join(sorted({f"{r['benchmark']}:{r['metric']}" for r in found["results"]})) or "no result"
        raise bad("--fail-under", repr(requirement), _FORM, f"This run has {known}.")
    worse = [r for r in chosen if (r["value"] < value if r["better"] == "higher" else r["value"] > value)]
    sign = {"higher": ">=", "lower": "<="}
    return [
        f"{r['benchmark']}:{r['metric']} of {r['model']} is {r['value']:.4g}, wanted {sign[r['better']]} {value:g}"
        for r in worse
    ]


def _parts(requirement: str) -> tuple[str, str, str, float]:
    """(model, benchmark, metric, value); NaN for a value that is no number."""
    name, _, text = requirement.rpartition("=")
    model, _, rest = name.rpartition("/")
    benchmark, _, metric = rest.partition(":")
    try:
        return model, benchmark, metric, float(text)
    except ValueError:
        return model, benchmark, metric, math.nan
