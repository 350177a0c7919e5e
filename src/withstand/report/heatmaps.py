"""Heat maps as SVG: cells that darken from good to bad, with their values where they fit."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from withstand.report import svg, words
from withstand.report.figures import NARROW, WIDE, Drawing, both, picture
from withstand.report.svg import tag

_MOST_CELLS = 2500
_ACROSS = 56.0
_INVERTED = 0.775  # from this darkness on, white reads better than black on the page's heat colour (dark theme: black)


def scale_of(shown: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """One scale for the heat maps of all models: 0 to 1 for shares, else what the values span."""
    values = [v for data in shown for row in data["values"] for v in row if words.is_number(v)]
    if all(data.get("unit", "share") == "share" for data in shown) and all(0 <= v <= 1 for v in values):
        return 0.0, 1.0
    low, high = min(values, default=0.0), max(values, default=1.0)
    return low, high if high > low else low + 1


def heatmap(name: str, title: str, data: dict[str, Any], scale: tuple[float, float]) -> Drawing:
    """Cells whose darkness grows from good to bad ("better" says which way; without it, from low to high).

    Of more rows than make 2,500 cells those with the worst mean are drawn; the table has all.
    """
    unit, rows, columns = data.get("unit", "share"), data["rows"], data["columns"]
    kept = _kept(data)
    note = "" if len(kept) == len(rows) else f"The {len(kept)} worst of {len(rows)} rows are drawn."
    cells = [(v, i, j) for i, row in enumerate(data["values"]) for j, v in enumerate(row) if words.is_number(v)]
    worst = (min if data.get("better", "higher") == "higher" else max)(cells, default=None)
    said = f" Worst: {rows[worst[1]]}, {columns[worst[2]]}: {words.quantity(worst[0], unit)}." if worst else ""
    description = f"{len(rows)} rows ({data['row_label']}) by {len(columns)} columns ({data['column_label']}).{said}"

    def draw(one: str, width: int) -> Markup:
        inside, across, height = _heatmap(_rows(data, kept), unit, scale, width)
        return picture(one, title, description, across, height, inside)

    table = [[str(label), *(words.quantity(v, unit) for v in values)] for label, values in zip(rows, data["values"])]
    head = [f"{data['row_label']} / {data['column_label']}", *map(str, columns)]
    return Drawing(*both(draw, name), [], head, table, note=note)


def _kept(data: dict[str, Any]) -> list[int]:
    """Positions of the rows that are drawn, in their order."""
    room = max(1, _MOST_CELLS // max(1, len(data["columns"])))
    sign = 1 if data.get("better", "higher") == "higher" else -1

    def mean(i: int) -> float:
        known = [v for v in data["values"][i] if words.is_number(v)]
        return sign * sum(known) / len(known) if known else float("inf")

    return sorted(sorted(range(len(data["rows"])), key=mean)[:room])


def _rows(data: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    return {**data, **{k: [data[k][i] for i in kept] for k in ("rows", "values")}}


def darkness(value: float, scale: tuple[float, float], better: str) -> float:
    """How dark a cell is, 0 (good) to 1 (bad)."""
    share = min(1.0, max(0.0, (value - scale[0]) / (scale[1] - scale[0])))
    return 1 - share if better == "higher" else share


def _heatmap(
    data: dict[str, Any], unit: str, scale: tuple[float, float], width: int
) -> tuple[list[Markup], float, float]:
    rows, columns, better = data["rows"], data["columns"], data.get("better", "higher")
    room = min(0.36 * WIDE, max(0.36 * NARROW, width - 14 - _ACROSS * len(columns)))
    texts = [svg.shortened(str(r).replace("_", " "), room) for r in rows]
    left, top = max([svg.width_of(t) for t in texts], default=0) + 10, 40
    across = max(2.0, min(_ACROSS, (width - left - 4) / max(1, len(columns))))
    down = max(3.0, min(23.0, 1200 / max(1, len(rows))))
    right, bottom = left + across * len(columns), top + down * len(rows)
    inside = [tag("text", data["column_label"], class_="axis", x=left, y=14)]
    for position, text in svg.without_overlap([(left + across * (j + 0.5), str(c)) for j, c in enumerate(columns)], 11):
        inside.append(
            tag("text", svg.shortened(text, max(40, 2 * across)), class_="tick middle", x=position, y=top - 8)
        )
    every = max(1, -(-13 // int(down)))
    for i, text in enumerate(texts):
        if i % every == 0:
            inside.append(tag("text", text, class_="tick end", x=left - 8, y=top + down * (i + 0.5) + 4))
    for i, values in enumerate(data["values"]):
        for j, value in enumerate(values[: len(columns)]):
            x, y = left + across * j, top + down * i
            dark = darkness(value, scale, better) if words.is_number(value) else 0.0
            tip = f"{rows[i]}, {columns[j]}: {words.quantity(value, unit)}"
            shade = f"{0.04 + 0.9 * dark:.3f}" if words.is_number(value) else None
            size = {"width": max(1.0, across - 1.5), "height": max(1.0, down - 1.5)}
            kind = "cell" if shade else "cell void"
            inside.append(tag("rect", class_=kind, x=x, y=y, **size, fill_opacity=shade, data_tip=tip))
            text = _in_cell(value, unit, across)
            if text and down >= 15:
                kind = "in dark" if dark > _INVERTED else "in"
                inside.append(tag("text", text, class_=kind, x=x + across / 2 - 0.75, y=y + down / 2 + 3.5))
    return inside, max(right, left + svg.width_of(data["column_label"])) + 2, bottom + 4


def _in_cell(value: Any, unit: str, across: float) -> str:
    if not words.is_number(value):
        return "–" if across >= 20 else ""
    texts = (
        (f"{100 * value:.1f}", f"{100 * value:.0f}")
        if unit == "share"
        else (words.number(value), words.number(value, 2))
    )
    return next((t for t in texts if svg.width_of(t, 11) <= across - 3), "")
