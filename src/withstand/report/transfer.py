"""The transfer matrix for people: as Markdown, and as a page with heat maps that works offline."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from withstand.report import words
from withstand.report.heatmaps import heatmap

_MEASURES = {"linf": "Linf", "l2": "L2", "ssim": "SSIM", "passes": "passes per image", "seconds": "seconds"}

_HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title} · withstand</title>
<link rel="icon" href="data:,">"""

_OWN = """
body { display: block; max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
main { display: block; }
td { white-space: nowrap; }
.across { overflow-x: auto; margin-bottom: 1rem; }
"""
"""One column, where the page of an audit has its contents at the side."""


def markdown(found: dict[str, Any]) -> str:
    """The definition, then one table for each surrogate."""
    parts = ["# Transfer matrix", found["definition"], _facts(found)]
    for surrogate, head, rows in _tables(found):
        lines = [head, ["---"] * len(head), *rows]
        parts += [f"## Made on {surrogate}", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def page(found: dict[str, Any]) -> str:
    """One HTML file without scripts: a heat map and a table for each surrogate."""
    body = [
        "<h1>Transfer matrix</h1>",
        f"<p>{escape(found['definition'])}</p>",
        f"<p>{escape(_facts(found))}</p>",
    ]
    for number, (surrogate, head, rows) in enumerate(_tables(found)):
        body.append(f"<section><h2>Made on {escape(surrogate)}</h2>")
        drawn = heatmap(f"t{number}", f"Success of attacks made on {surrogate}", _heat(found, surrogate), (0.0, 1.0))
        body.append(f'<figure><div class="wide">{drawn.wide}</div><div class="narrow">{drawn.narrow}</div></figure>')
        body.append(f'<div class="across"><table><thead>{html_row("th", head)}</thead><tbody>')
        body += [html_row("td", row) for row in rows]
        body.append("</tbody></table></div></section>")
    return document("Transfer matrix", "\n".join(body))


def document(title: str, body: str) -> str:
    """A page of one column around a body of HTML."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    head = f"<head>{_HEAD.replace('{title}', escape(title))}<style>{style}{_OWN}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}<body><main>{body}</main></body></html>\n'


def _facts(found: dict[str, Any]) -> str:
    interval = "Wilson" if found["seeds"] == 1 else f"bootstrap over images, {found['seeds']} seeds"
    return (
        f"{found['data']}: {found['kept']} of {found['examples']} images that every model gets right; {found['threat']}; "
        f"in per cent, with 95 % intervals ({interval}). Targets with * are the surrogate itself (white box), and not in "
        "the mean."
    )


def _tables(found: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(surrogate, head, rows): success with interval on each target, their mean, and what the points are like."""
    for surrogate in dict.fromkeys(run["surrogate"] for run in found["runs"]):
        cells = _cells(found, surrogate)
        targets = list(dict.fromkeys(target for _, target in cells))
        head = ["attack", *(_marked(found, surrogate, t) for t in targets), "mean of others", *_MEASURES.values()]
        rows = []
        for run in (r for r in found["runs"] if r["surrogate"] == surrogate):
            mine = [cells[run["attack"], t] for t in targets]
            others = [c["success"] for c in mine if not c["white_box"]]
            mean = f"{100 * sum(others) / len(others):.1f}" if others else words.NONE
            rates = [f"{100 * c['success']:.1f} ({100 * c['low']:.1f}–{100 * c['high']:.1f})" for c in mine]
            rows.append([run["attack"], *rates, mean, *(_number(run[m]) for m in _MEASURES)])
        yield surrogate, head, rows


def _cells(found: dict[str, Any], surrogate: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(c["attack"], c["target"]): c for c in found["cells"] if c["surrogate"] == surrogate}


def _marked(found: dict[str, Any], surrogate: str, target: str) -> str:
    white = any(c["white_box"] for (_, t), c in _cells(found, surrogate).items() if t == target)
    return f"{target} *" if white else target


def _heat(found: dict[str, Any], surrogate: str) -> dict[str, Any]:
    cells = _cells(found, surrogate)
    attacks, targets = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    return {
        "row_label": "attack",
        "column_label": "target",
        "rows": attacks,
        "columns": [_marked(found, surrogate, t) for t in targets],
        "values": [[cells[a, t]["success"] for t in targets] for a in attacks],
        "unit": "share",
        "better": "lower",
    }


def _number(value: float | None) -> str:
    return words.NONE if value is None else words.number(value)


def html_row(kind: str, cells: list[str]) -> str:
    """A row of a table of HTML; kind: th or td."""
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"
