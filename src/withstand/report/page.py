"""The report page: one HTML file that works offline, made from a scorecard."""

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from withstand.report import figures, heatmaps, summary, words
from withstand.report.gallery import gallery
from withstand.report.lists import lists
from withstand.report.maps import maps

_HERE = Path(__file__).parent
_IDS_SHOWN = 60
_ALIKE = 3  # so many comparisons of one check are all shown; of more, those without a clear change are folded


def write(card: dict[str, Any], folder: str | Path, path: Path) -> Path:
    """Write the page of a scorecard (`Scorecard.to_json()`) to `path`, whole or not at all, and return it.

    folder: the run folder, where the gallery's images lie; the page links to its raw data relative to `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    text = render(card, folder, path.parent)
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def render(card: dict[str, Any], folder: str | Path, beside: Path | None = None) -> str:
    """The page as text. beside: the directory that it will lie in, for the links to raw data; None = the run folder."""
    home = Path(folder) if str(folder) else None
    style, script = (_part(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("page.html.jinja").render(
        style=Markup(style), script=Markup(script), digest=Markup(digest), **_view(card, home, beside)
    )  # fmt: skip


@cache
def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals.update(words=words, strip=figures.strip, key=figures.key, NONE=words.NONE)
    return made


def _view(card: dict[str, Any], home: Path | None, beside: Path | None) -> dict[str, Any]:
    names = summary.models(card)
    places = {name: place for place, name in enumerate(names)}
    raised = summary.flags(card)
    numbers = count(1)
    groups = summary.groups(card)
    checks = [_check(group, places, home, lambda: f"f{next(numbers)}") for group in groups]
    return {
        "card": card,
        "places": places,
        "date": words.date(card["created"]),
        "data": _data(card["data"]),
        "verdicts": {name: summary.verdict(card, name) for name in names},
        "trust": {name: summary.trust(found) for name, found in raised.items()},
        "flags": raised,
        "groups": groups,
        "checks": [check for check in checks if check["results"]],
        "comparisons": _comparisons(card),
        "missing": summary.missing(card),
        "cost": _cost(groups, names),
        "links": _links(home, beside),
        "span": _span,
    }


def _data(data: dict[str, Any]) -> str:
    parts = [str(data.get("name", ""))]
    if words.is_number(data.get("examples")):
        parts.append(words.count(data["examples"], "example"))
    if data.get("shape"):
        parts.append(" × ".join(str(n) for n in data["shape"]))
    classes = data.get("classes")
    classes = len(classes) if isinstance(classes, list) else classes
    if words.is_number(classes):
        parts.append(words.count(classes, "class", "classes"))
    return ", ".join(part for part in parts if part)


def _span(row: summary.Row) -> tuple[float, float]:
    """The common axis of a row's intervals: 0 to 1 for shares (from below where one is negative), else from zero to beyond
    the largest."""
    found = [c.metric[k] for c in row.cells.values() if c.metric for k in ("value", "low", "high")]
    ends = [v for v in found if words.is_number(v)]
    return min([0.0, *ends]), 1.0 if row.unit == "share" else max([0.0, *ends])


# Checks --------------------------------------------------------------------------------------------------------------


def _check(group: summary.Group, places: dict[str, int], home: Path | None, name: Callable[[], str]) -> dict[str, Any]:
    done = {m: r for m, r in group.results.items() if r["status"] == "done" or r["metrics"] or r["figures"]}
    found: dict[tuple[str, str], list[tuple[int, str, dict[str, Any]]]] = {}
    for model, result in done.items():
        for figure in result["figures"]:
            found.setdefault((figure["kind"], figure["title"]), []).append((places[model], model, figure))
    sizes = sorted({m["n"] for r in done.values() for m in r["metrics"] if m["n"]})
    return {
        "title": group.title,
        "name": group.check,
        "results": done,
        "specs": sorted({r["spec"] for r in done.values()}),
        "sizes": f"n = {sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "") if sizes else "",
        "figures": [_figure(kind, title, shown, home, name) for (kind, title), shown in found.items()],
        "rows": group.rows,
    }


def _figure(
    kind: str, title: str, shown: Sequence[tuple[int, str, dict[str, Any]]], home: Path | None, name: Callable[[], str]
) -> dict[str, Any]:
    """One figure as the template reads it; `parts` has one entry for all models or one for each."""
    data = [(place, model, figure["data"]) for place, model, figure in shown]
    said: dict[str, list[str]] = {}
    for _, model, figure in shown:
        said.setdefault(figure["caption"], []).append(model)
    captions = [f"{', '.join(of)}: {text}" if len(said) > 1 else text for text, of in said.items() if text]
    made: dict[str, Any] = {"kind": kind, "title": title, "captions": captions}
    if kind == "curve":
        made["parts"] = [("", figures.curve(name(), title, data))]
    elif kind == "bars":
        alike: dict[tuple[str, ...], list[Any]] = {}
        for one in data:
            alike.setdefault(tuple(map(str, one[2]["labels"])), []).append(one)
        made["parts"] = [("", figures.bars(name(), title, same)) for same in alike.values()]
    elif kind == "heatmap":
        scale = heatmaps.scale_of([d for _, _, d in data])
        made["parts"] = [(m, heatmaps.heatmap(name(), f"{title}: {m}", d, scale)) for _, m, d in data]
        unit, better = data[0][2].get("unit", "share"), data[0][2].get("better", "higher")
        ends = [words.quantity(v, unit) for v in scale]
        made["ramp"] = ends[::-1] if better == "higher" else ends
        made["better"] = better
    elif kind == "table":
        made["parts"] = _tables(data)
    elif kind == "gallery":
        made["parts"] = [(m, *gallery(d, home), d.get("magnified", 1)) for _, m, d in data]
    elif kind == "maps":
        made["parts"] = maps([(m, d) for _, m, d in data], home)
    elif kind == "neighbours":
        made["parts"] = [(m, *lists(d, home), d["unit"]) for _, m, d in data]
    else:
        made |= {"kind": "unknown", "parts": [], "captions": [*captions, f"Figures of kind {kind!r} are not drawn."]}
    return made


def _tables(data: Sequence[tuple[int, str, dict[str, Any]]]) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Tables of equal columns under one another, each row led by its model where there are several."""
    alike: dict[tuple[str, ...], list[list[Any]]] = {}
    several = len(data) > 1
    for _, model, one in data:
        rows = alike.setdefault(tuple(map(str, one["columns"])), [])
        rows += [[model, *row] if several else list(row) for row in one["rows"]]
    return [("", [*(["Model"] if several else []), *columns], rows) for columns, rows in alike.items()]


# Comparisons, cost, links --------------------------------------------------------------------------------------------


def _comparisons(card: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What changed, by (before, after)."""
    made = []
    for c in card["comparisons"]:
        unit, better = summary.unit_of(card, c["check"], c["metric"])
        sure = summary.clear(c)
        up = (c["difference"] > 0) == (better != "lower")
        made.append(
            {
                **c,
                "what": summary.compared(card, c),
                "unit": unit,
                "word": "no clear change" if not sure else "better" if up else "worse",
                "sign": "≈" if not sure else "▲" if up else "▼",
            }
        )
    for c in made:
        reach = max(max(abs(o["low"]), abs(o["high"])) for o in made if o["unit"] == c["unit"]) or 1.0
        c["span"] = (-reach, reach)
        for kind in ("gained", "lost"):
            ids = c[kind]
            more = f" and {len(ids) - _IDS_SHOWN:,} more, in scorecard.json" if len(ids) > _IDS_SHOWN else ""
            c[f"{kind}_ids"] = ", ".join(map(str, ids[:_IDS_SHOWN])) + more
    for c in made:
        alike = [o for o in made if all(o[k] == c[k] for k in ("before", "after", "check"))]
        c["folded"] = c["sign"] == "≈" and len(alike) > _ALIKE
    pairs = dict.fromkeys((c["before"], c["after"]) for c in made)
    return {pair: [c for c in made if (c["before"], c["after"]) == pair] for pair in pairs}


def _cost(groups: Sequence[summary.Group], names: Sequence[str]) -> dict[str, Any]:
    kinds = ("examples", "forwards", "backwards")
    blocks = []
    for g in groups:
        spent = [
            (m, r["seconds"], [r["cost"].get(k, 0) for k in kinds])
            for m, r in g.results.items()
            if r["seconds"] or r["cost"]
        ]
        if spent:
            blocks.append((g.title, spent))
    rows = [row for _, spent in blocks for row in spent]
    totals = [
        (m, sum(s for n, s, _ in rows if n == m), [sum(c[i] for n, _, c in rows if n == m) for i in range(len(kinds))])
        for m in names
        if any(n == m for n, _, _ in rows)
    ]
    return {"blocks": blocks, "totals": totals, "longest": max((s for _, s, _ in rows), default=0) or 1}


def _links(home: Path | None, beside: Path | None) -> list[tuple[str, str]]:
    """(text, relative address) of the raw data that is there."""
    if home is None:
        return []
    try:
        prefix = Path(os.path.relpath(home, beside or home))
    except ValueError:  # another drive: there is no relative way
        return []
    there = [name for name in ("scorecard.json", "rows") if (home / name).exists()]
    found = [(name, home / name) for name in there]
    if (home / "rows").is_dir():
        found += [(f"rows/{p.relative_to(home / 'rows').as_posix()}", p) for p in _tables_of(home / "rows")]
    return [
        (text + ("/" if file.is_dir() else ""), quote((prefix / file.relative_to(home)).as_posix(), safe="/:"))
        for text, file in found
    ]


def _tables_of(folder: Path) -> list[Path]:
    """Parquet files under rows/, if they are few enough to be listed one by one."""
    files = sorted(folder.rglob("*.parquet"))
    return files if len(files) <= 12 else []
