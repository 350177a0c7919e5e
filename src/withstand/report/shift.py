"""The table of `withstand shift` for people: as plain text, as Markdown, and as a page that works offline."""

from collections.abc import Mapping
from html import escape
from typing import Any

from withstand.report import words
from withstand.report.heatmaps import heatmap
from withstand.report.transfer import document, html_row

METRICS = {
    "top1": "",
    "mean_accuracy": " accuracy",
    "mce": " mCE ↓",
    "relative_mce": " relative mCE ↓",
    "mean_error": " error ↓",
    "extra_accuracy": " extra 4",
    "dropped_accuracy": " dropped ↓",
}
"""What follows the benchmark's name in the head of a column."""


def summary(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row for each model and each published one; a column for each benchmark and metric, in per cent."""
    columns = [
        (name, metric)
        for name in found["benchmarks"]
        for metric in METRICS
        if any(r["benchmark"] == name and r["metric"] == metric for r in found["results"])
    ]
    subsets = {(r["benchmark"], r["metric"]): r["subset"] for r in found["results"]}
    heads = {c: c[0] + METRICS[c[1]] + ("" if subsets[c] == "full" else f" ({subsets[c]})") for c in columns}
    rows = []
    for model in found["models"]:
        mine = {(r["benchmark"], r["metric"]): r for r in found["results"] if r["model"] == model}
        rows.append({"model": model} | {heads[c]: _with_interval(mine[c]) if c in mine else "" for c in columns})
    for entry in found["published"]:
        values = entry["values"]
        shown = {c: values.get(c[0]) if c[1] in ("top1", "mce") else None for c in columns}
        if any(value is not None for value in shown.values()):
            texts = {heads[c]: "" if v is None else f"{v if c[1] == 'mce' else 100 * v:.2f}" for c, v in shown.items()}
            rows.append({"model": f"published: {entry['model']}"} | texts)
    return rows


def notes(found: Mapping[str, Any]) -> list[str]:
    """What to know about each benchmark and model of the table."""
    lines = ["Accuracies are in per cent, with 95 % intervals."]
    lines += [f"{name}: {note}." for name, facts in found["benchmarks"].items() for note in facts["notes"]]
    for name in found["benchmarks"]:
        corrupted = any(cell["benchmark"] == name for cell in found["cells"])
        if corrupted and not any(r["benchmark"] == name and r["metric"] == "mean_accuracy" for r in found["results"]):
            lines.append(f"{name}: no mean and no mCE, since some of the 75 cells are missing; see the cells.")
    for name, facts in found["models"].items():
        view = facts["view"]
        how = "both sides" if view["squash"] else "shorter side"
        lines.append(
            f"{name}: photographs shown at {view['size']} pixels from the centre, {how} {view['resize']}, "
            f"{view['interpolation']} ({view['source']})."
        )
    if found["published"]:
        lines.append(f"Published figures: {found['published'][0]['source']}; measured there, not here.")
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """The definition, the table, the notes, and the accuracy of every cell."""
    parts = ["# Shift benchmarks", found["definition"]]
    rows = summary(found)
    if len(rows[0]) > 1:
        parts.append(_table([*rows[0]], [list(row.values()) for row in rows]))
    parts.append("\n".join(f"- {line}" for line in notes(found)))
    for model, name, cells in _by_set(found):
        parts.append(f"## {name}, {model}: accuracy by severity, %")
        parts.append(_table(*_cells(cells)))
    for model, name, edits in _by_set(found, "edits"):
        parts.append(f"## {name}, {model}: accuracy dropped by each edit, points")
        parts.append(_table(*_edits(edits)))
    return "\n\n".join(parts) + "\n"


def page(found: Mapping[str, Any]) -> str:
    """One HTML file without scripts: the table, and a heat map for each model on each corrupted set."""
    body = ["<h1>Shift benchmarks</h1>", f"<p>{escape(found['definition'])}</p>"]
    rows = summary(found)
    if len(rows[0]) > 1:
        body.append(f'<div class="across"><table><thead>{html_row("th", [*rows[0]])}</thead><tbody>')
        body += [html_row("td", list(row.values())) for row in rows]
        body.append("</tbody></table></div>")
    body.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in notes(found)) + "</ul>")
    for number, (model, name, cells) in enumerate(_by_set(found)):
        title = f"{name}: accuracy of {model}"
        drawn = heatmap(f"s{number}", title, _heat(cells), (0.0, 1.0))
        body.append(f"<section><h2>{escape(title)}</h2>")
        body.append(
            f'<figure><div class="wide">{drawn.wide}</div><div class="narrow">{drawn.narrow}</div></figure></section>'
        )
    for model, name, edits in _by_set(found, "edits"):
        head, rows_ = _edits(edits)
        body.append(f"<section><h2>{escape(f'{name}: accuracy dropped by each edit, {model}, points')}</h2>")
        body.append(f'<div class="across"><table><thead>{html_row("th", head)}</thead><tbody>')
        body += [html_row("td", row) for row in rows_]
        body.append("</tbody></table></div></section>")
    return document("Shift benchmarks", "\n".join(body))


def _with_interval(result: Mapping[str, Any]) -> str:
    """82.1 (81.0-83.2), in per cent."""
    scale = 1 if result.get("unit") == "%" else 100
    text = f"{scale * result['value']:.1f}"
    low, high = result.get("low"), result.get("high")
    return text if low is None or high is None else f"{text} ({scale * low:.1f}–{scale * high:.1f})"


def _by_set(found: Mapping[str, Any], what: str = "cells") -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(model, benchmark, cells or edits)."""
    keys = dict.fromkeys((cell["model"], cell["benchmark"]) for cell in found[what])
    return [(m, b, [c for c in found[what] if (c["model"], c["benchmark"]) == (m, b)]) for m, b in keys]


def _edits(edits: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for edit in edits:
        cost = {"value": edit["dropped"], "low": edit["low"], "high": edit["high"]}
        rows.append([edit["edit"], _with_interval(cost), f"{100 * edit['accuracy']:.1f}", str(edit["n"])])
    return ["edit", "dropped", "accuracy", "images"], rows


def _heat(cells: list[dict[str, Any]]) -> dict[str, Any]:
    kinds, levels = list(dict.fromkeys(c["corruption"] for c in cells)), sorted({c["severity"] for c in cells})
    values = {(c["corruption"], c["severity"]): c["value"] for c in cells}
    return {
        "row_label": "corruption",
        "column_label": "severity",
        "rows": kinds,
        "columns": [str(s) for s in levels],
        "values": [[values.get((k, s)) for s in levels] for k in kinds],
        "unit": "share",
        "better": "higher",
    }


def _cells(cells: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    heat = _heat(cells)
    rows = [
        [kind, *(words.NONE if v is None else f"{100 * v:.1f}" for v in row)]
        for kind, row in zip(heat["rows"], heat["values"])
    ]
    return ["corruption", *heat["columns"]], rows


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
