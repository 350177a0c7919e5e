"""What the page and the tables show of a scorecard: the numbers side by side, the flags, what did not run."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from withstand.report import words

LEVELS = ("fail", "warn", "pass")
_SHOWN = 4


@dataclass
class Cell:
    """One model's value of one metric. mark: "best", "leads" (by less than the interval) or "". reason: why empty.

    own: what of the condition is this model's own, such as its worst class.
    """

    metric: dict[str, Any] | None = None
    own: dict[str, Any] = field(default_factory=dict)
    mark: str = ""
    reason: str = ""


@dataclass
class Row:
    """One metric under one condition, for all models. worst_of: how many conditions it was chosen from as the worst."""

    check: str
    name: str
    condition: dict[str, Any]
    unit: str
    better: str
    cells: dict[str, Cell] = field(default_factory=dict)
    worst_of: int = 0

    @property
    def methods(self) -> list[str]:
        """How the intervals were made."""
        return sorted({c.metric["interval"] for c in self.cells.values() if c.metric and c.metric["interval"]})

    @property
    def sizes(self) -> list[str]:
        """The numbers of examples, each once, in the order of the models."""
        return list(dict.fromkeys(f"{c.metric['n']:,}" for c in self.cells.values() if c.metric and c.metric["n"]))

    @property
    def keys(self) -> set[tuple[str, str, str]]:
        """What a comparison of the same numbers shares with this row; outcomes are compared as "withstood"."""
        names = {self.name, "withstood"} if self.unit == "share" and self.better == "higher" else {self.name}
        return {(self.check, name, _frozen(self.condition)) for name in names}


@dataclass
class Group:
    """A check with its results by model. rows: every metric; headline: those of the summary."""

    check: str
    title: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    headline: list[Row] = field(default_factory=list)


def models(card: dict[str, Any]) -> list[str]:
    """Names of the models, in the order of the columns."""
    return list(dict.fromkeys([*card["models"], *(r["model"] for r in card["results"])]))


def groups(card: dict[str, Any]) -> list[Group]:
    """The checks in the order in which they first appear; results of equal check and title belong together."""
    found: dict[tuple[str, str], Group] = {}
    for result in card["results"]:
        key = result["check"], result["title"]
        found.setdefault(key, Group(*key)).results[result["model"]] = result
    names, compared = models(card), {}
    for c in card["comparisons"]:
        compared.setdefault((c["check"], c["metric"], _frozen(c["condition"])), []).append(c)
    for group in found.values():
        group.rows = _rows(group, names)
        for row in group.rows:
            _mark(row, [c for key in row.keys for c in compared.get(key, [])])
        group.headline = _headline(group.rows, set(compared))
    return list(found.values())


def _frozen(condition: dict[str, Any]) -> str:
    plain = {k: round(v, 9) if isinstance(v, float) else v for k, v in condition.items() if k != "measure"}
    return json.dumps(plain, sort_keys=True, default=str)


def _rows(group: Group, names: list[str]) -> list[Row]:
    rows: dict[tuple[str, str], Row] = {}
    single = _single(group)
    for result in group.results.values():
        for m in result["metrics"]:
            shared = single[m["name"]] if m["name"] in single else m["condition"]
            key = m["name"], _frozen(shared)
            if key not in rows:
                rows[key] = Row(group.check, m["name"], shared, m["unit"], m["better"])
            own = {k: v for k, v in m["condition"].items() if k not in shared}
            rows[key].cells[result["model"]] = Cell(m, own=own)
    for row in rows.values():
        for name in names:
            result = group.results.get(name)
            reason = "not part of this run" if result is None else result["reason"] or result["status"]
            row.cells.setdefault(name, Cell(reason=reason))
    return list(rows.values())


def _single(group: Group) -> dict[str, dict[str, Any]]:
    """For metrics that every model has at most once, what their conditions share: they belong in one row."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in group.results.values():
        for m in result["metrics"]:
            found.setdefault(m["name"], []).append(m["condition"])
    most = {name: max(sum(m["name"] == name for m in r["metrics"]) for r in group.results.values()) for name in found}
    return {
        name: {k: v for k, v in conditions[0].items() if all(k in c and c[k] == v for c in conditions)}
        for name, conditions in found.items()
        if most[name] == 1
    }


def clear(comparison: dict[str, Any]) -> bool:
    """Whether a comparison tells its two models apart, by both readings: an interval without zero, and p below 0.05."""
    low, high, p = (comparison[key] for key in ("low", "high", "p_value"))
    return low is not None and high is not None and not low <= 0 <= high and (p is None or p < 0.05)


def _mark(row: Row, comparisons: list[dict[str, Any]]) -> None:
    """Mark the best value; "leads" where an interval does not tell it from another model's."""
    metrics = {n: c.metric for n, c in row.cells.items() if c.metric and words.is_number(c.metric["value"])}
    if len(metrics) < 2 or row.better not in ("higher", "lower"):
        return
    sign = 1 if row.better == "higher" else -1
    first, second = sorted(metrics, key=lambda n: -sign * metrics[n]["value"])[:2]
    if metrics[first]["value"] != metrics[second]["value"]:
        sure = all(_told_apart(metrics, first, other, comparisons) for other in metrics if other != first)
        row.cells[first].mark = "best" if sure else "leads"


def _told_apart(metrics: dict[str, Any], a: str, b: str, comparisons: list[dict[str, Any]]) -> bool:
    paired = next((c for c in comparisons if {c["before"], c["after"]} == {a, b}), None)
    if paired:
        return clear(paired)
    ends = [metrics[n][end] for n in (a, b) for end in ("low", "high")]
    return all(words.is_number(e) for e in ends) and (ends[0] > ends[3] or ends[1] < ends[2])


def _headline(rows: list[Row], compared: set[tuple[str, str, str]]) -> list[Row]:
    """Up to four conditions of a metric: all, else the overall one with the compared ones or, if none, the worst."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    shown: list[Row] = []
    for same in by_name.values():
        if len(same) <= _SHOWN:
            shown += same
            continue
        overall = [r for r in same if not r.condition]
        special = [r for r in same if r.condition]
        chosen = _spread([r for r in special if r.keys & compared])
        if not chosen:
            chosen = [max(special, key=_badness)]
            chosen[0].worst_of = len(special)
        shown += [*overall, *chosen]
    return shown


def _spread(rows: list[Row]) -> list[Row]:
    if len(rows) <= _SHOWN:
        return rows
    return [rows[round(i * (len(rows) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]


def _badness(row: Row) -> float:
    values = [c.metric["value"] for c in row.cells.values() if c.metric and words.is_number(c.metric["value"])]
    mean = sum(values) / len(values) if values else float("-inf")
    return mean if row.better == "lower" else -mean if values else mean


def flags(card: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Trust flags of each model, fails first; each with the title of the check that raised it as `by`."""
    raised: dict[str, list[dict[str, Any]]] = {name: [] for name in models(card)}
    for result in card["results"]:
        raised[result["model"]] += [{**flag, "by": result["title"]} for flag in result["flags"]]
    return {name: sorted(found, key=lambda f: LEVELS.index(f["level"])) for name, found in raised.items()}


def trust(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many flags of each level, fails first."""
    counts = Counter(flag["level"] for flag in found)
    return {level: counts[level] for level in LEVELS}


def missing(card: dict[str, Any]) -> list[tuple[dict[str, Any], list[str]]]:
    """Checks that did not run to their end, each with the models for which that is so for the same reason."""
    found: dict[tuple[str, ...], tuple[dict[str, Any], list[str]]] = {}
    for r in card["results"]:
        if r["status"] != "done":
            key = r["check"], r["title"], r["status"], r["reason"]
            found.setdefault(key, (r, []))[1].append(r["model"])
    return list(found.values())


def verdict(card: dict[str, Any], model: str) -> str:
    """The sentence on one model."""
    return card["verdict"].get(model) or "There is no verdict: no check of this model is done."


def unit_of(card: dict[str, Any], check: str, name: str) -> tuple[str, str]:
    """Unit and better direction of a metric, looked up for a comparison."""
    for result in card["results"]:
        for m in result["metrics"]:
            if (result["check"], m["name"]) == (check, name):
                return m["unit"], m["better"]
    return "share", "higher"


def compared(card: dict[str, Any], comparison: dict[str, Any]) -> str:
    """What is compared, in words: the check's title for outcomes, else the metric's."""
    if comparison["metric"] != "withstood":
        return words.title(comparison["metric"])
    return next((r["title"] for r in card["results"] if r["check"] == comparison["check"]), comparison["check"])
