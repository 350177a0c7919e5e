"""Curves and bars as SVG, drawn from a figure's data; each also as a table of its numbers.

Figures with one title are drawn over one another: `series` merges those of several models. Colour, marker and dash all
say which series it is, so that any one of them suffices. A curve or bars may state its "unit"; without one, values that
all lie in [0, 1] are taken for shares and written in percent.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from withstand.report import svg, words
from withstand.report.svg import tag

WIDE, NARROW = 720, 340
COLOURS = 8
_MOST_LABELS = 14
_MOST_MARKERS = 24
_MOST_BARS = 30
_LABEL = 150


@dataclass(frozen=True)
class Series:
    """One line or one set of bars. colour: decides colour and marker. dash: decides the dashes. x: None for bars."""

    name: str
    model: str
    colour: int
    dash: int
    y: Sequence[Any]
    low: Sequence[Any]
    high: Sequence[Any]
    x: Sequence[Any] = ()


@dataclass(frozen=True)
class Drawing:
    """What the page needs of a figure: the picture at two widths, in words, and as a table (columns, rows)."""

    wide: Markup
    narrow: Markup
    legend: list[Series]
    columns: list[str]
    rows: list[list[str]]
    labelled: bool = False
    note: str = ""


def series(shown: Sequence[tuple[int, str, dict[str, Any]]], values: str) -> list[Series]:
    """The series of one figure of several models, as (place among all models, model, data of the figure).

    values: the name of the values in a series, "y" or "values". A model with one series gives it its own name.
    """
    lengths = {len(data["series"]) for _, _, data in shown}
    alone = len(shown) == 1
    made = []
    for place, model, data in shown:
        for k, one in enumerate(data["series"]):
            name = model if lengths == {1} else one["name"] if alone else f"{model}, {one['name']}"
            y, x = one[values], data.get("x", ())
            low, high = (one.get(end) or [None] * len(y) for end in ("low", "high"))
            colour, dash = (k, k) if alone and lengths != {1} else (place, place if lengths == {1} else k)
            made.append(Series(name, model, colour, dash, y, low, high, x))
    return made


def unit_of(data: dict[str, Any], drawn: Iterable[Series]) -> str:
    """The unit that the data states; else "share" where every value lies in [0, 1], else none."""
    values = [v for s in drawn for v in s.y if words.is_number(v)]
    return data.get("unit") or ("share" if all(0 <= v <= 1 for v in values) else "")


def legend(drawn: Sequence[Series]) -> list[Markup]:
    """The sign of each series, for a list beside the figure."""
    return [key(s.colour, s.dash) for s in drawn]


def key(colour: int, dash: int | None = None) -> Markup:
    """A model's sign: its marker on a piece of its line."""
    dashes = svg.DASHES[(colour if dash is None else dash) % len(svg.DASHES)]
    stroke = tag("line", class_="line", x1=1, x2=27, y1=7, y2=7, stroke_dasharray=dashes or None)
    sign = tag("g", stroke, svg.marker(colour, 14, 7), class_=f"m{colour % COLOURS}")
    return tag("svg", sign, class_="key", viewBox="0 0 28 14", width=28, height=14, aria_hidden="true")


def picture(name: str, title: str, description: str, width: float, height: float, inside: Iterable[Markup]) -> Markup:
    """An SVG picture that is named and described for those who do not see it."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-t"),
        tag("desc", description, id=f"{name}-d"),
        *inside,
        id=name,
        role="img",
        aria_labelledby=f"{name}-t {name}-d",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
    )


def both(draw: Callable[[str, int], Markup], name: str) -> tuple[Markup, Markup]:
    """A picture for wide pages and one for narrow ones, under ids of their own."""
    return draw(f"{name}w", WIDE), draw(f"{name}n", NARROW)


# Curves --------------------------------------------------------------------------------------------------------------


def curve(name: str, title: str, shown: Sequence[tuple[int, str, dict[str, Any]]]) -> Drawing:
    """Lines with bands for their intervals, over one x axis. name: the id of the picture on the page."""
    drawn, data = series(shown, "y"), shown[0][2]
    unit = unit_of(data, drawn)
    ticks = {x: t for _, _, d in shown for x, t in zip(d["x"], d.get("x_ticks") or [words.bare(v) for v in d["x"]])}
    labelled = len(drawn) <= _MOST_LABELS
    said = " ".join(_in_words(s, ticks, unit) for s in drawn)
    description = f"{data['y_label']} against {data['x_label']}. {said}"

    def draw(one: str, width: int) -> Markup:
        inside = _curve(drawn, data, ticks, unit, width, labelled and width == WIDE)
        return picture(one, title, description, width, _height(width), inside)

    columns = [data["x_label"], *(s.name for s in drawn)]
    at = [{x: i for i, x in enumerate(s.x)} for s in drawn]
    rows = [[ticks[x], *(_cell(s, i.get(x), unit) for s, i in zip(drawn, at))] for x in sorted(ticks)]
    return Drawing(*both(draw, name), drawn, columns, rows, labelled)


def _height(width: int) -> int:
    return 330 if width == WIDE else 270


def _cell(s: Series, i: int | None, unit: str) -> str:
    if i is None or i >= len(s.y):
        return words.NONE
    between = words.interval(s.low[i], s.high[i], unit)
    return words.quantity(s.y[i], unit) + (f" ({between})" if between else "")


def _in_words(s: Series, ticks: dict[Any, str], unit: str) -> str:
    known = [(x, y) for x, y in zip(s.x, s.y) if words.is_number(y)]
    if not known:
        return f"{s.name}: no values."
    (x0, y0), (x1, y1) = known[0], known[-1]
    return f"{s.name}: {words.quantity(y0, unit)} at {ticks[x0]}, {words.quantity(y1, unit)} at {ticks[x1]}."


def y_axis(drawn: Sequence[Series], unit: str, start: float, stop: float) -> tuple[svg.Axis, list[float]]:
    """The value axis and its ticks: 0 to 100% for shares, else (and for differences of shares, which may be negative) round
    numbers from zero or below up."""
    values = [v for s in drawn for v in (*s.y, *s.low, *s.high) if words.is_number(v)]
    low, high = min([0, *values]), max([0, *values])
    if unit == "share" and low >= 0:
        return svg.Axis(0, 1, start, stop), [0, 0.25, 0.5, 0.75, 1]
    ticks = svg.nice(low, high if high > low else low + 1)
    return svg.Axis(ticks[0], ticks[-1], start, stop), ticks


def x_axis(data: dict[str, Any], ticks: dict[Any, str], start: float, stop: float) -> tuple[svg.Axis, list[Any]]:
    """The axis of a curve and where it is ticked: at the data where that has texts, else at round numbers."""
    scale = svg.axis(list(ticks), start, stop, bool(data.get("log_x")))
    if data.get("x_ticks"):
        return scale, list(ticks)
    if scale.log:
        return scale, svg.powers(scale)
    return scale, [t for t in svg.nice(scale.low, scale.high, 6) if scale.low <= t <= scale.high]


def _curve(
    drawn: Sequence[Series], data: dict[str, Any], ticks: dict[Any, str], unit: str, width: int, labelled: bool
) -> list[Markup]:
    height, top = _height(width), 30
    room = min(_LABEL, max(svg.width_of(s.name, 12.5) for s in drawn)) + 26 if labelled and drawn else 16
    left, right, bottom = 50, width - room, height - 44
    y, y_ticks = y_axis(drawn, unit, bottom, top)
    x, x_ticks = x_axis(data, ticks, left + 6, right - 4)
    inside = [tag("text", data["y_label"], class_="axis", x=0, y=14)]
    for value in y_ticks:
        text = f"{100 * value:g}%" if unit == "share" else words.bare(value)
        inside.append(tag("line", class_="grid" if value else "base", x1=left, x2=right, y1=y(value), y2=y(value)))
        inside.append(tag("text", text, class_="tick end", x=left - 7, y=y(value) + 4))
    inside += [tag("line", class_="base", x1=x(v), x2=x(v), y1=bottom, y2=bottom + 4) for v in x_ticks]
    for position, text in svg.without_overlap([(x(v), ticks.get(v) or words.bare(v)) for v in x_ticks]):
        inside.append(tag("text", text, class_="tick middle", x=position, y=bottom + 18))
    inside.append(tag("text", data["x_label"], class_="axis middle", x=(left + right) / 2, y=height - 6))
    if data.get("diagonal"):
        low, high = max(x.low, y.low), min(x.high, y.high)
        ends = {"x1": x(low), "y1": y(low), "x2": x(high), "y2": y(high)}
        inside.append(tag("line", class_="base", **ends, stroke_dasharray="2 4"))
    inside += [_line(s, x, y, ticks, unit) for s in drawn]
    return inside + (_labels(drawn, x, y, right, top, bottom) if labelled else [])


def runs(s: Series) -> list[list[int]]:
    """Positions of the points of a line, broken where a value is missing."""
    found: list[list[int]] = [[]]
    for i in sorted(range(min(len(s.x), len(s.y))), key=lambda i: s.x[i]):
        if words.is_number(s.y[i]):
            found[-1].append(i)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _line(s: Series, x: svg.Axis, y: svg.Axis, ticks: dict[Any, str], unit: str) -> Markup:
    inside = []
    dashes = svg.DASHES[s.dash % len(svg.DASHES)] or None
    for run in runs(s):
        sure = [i for i in run if words.is_number(s.low[i]) and words.is_number(s.high[i])]
        if sure:
            there = [(x(s.x[i]), y(s.low[i])) for i in sure]
            back = [(x(s.x[i]), y(s.high[i])) for i in reversed(sure)]
            inside.append(tag("path", class_="band", d=svg.line(there + back) + "Z"))
        inside.append(tag("path", class_="line", d=svg.line([(x(s.x[i]), y(s.y[i])) for i in run]),
                          stroke_dasharray=dashes))  # fmt: skip
    points = [i for run in runs(s) for i in run]
    every = max(1, -(-len(points) // _MOST_MARKERS))
    for k, i in enumerate(points):
        if k % every == 0 or k == len(points) - 1:
            tip = f"{s.name}, {ticks[s.x[i]]}: {_cell(s, i, unit)}"
            inside.append(tag("g", svg.marker(s.colour, x(s.x[i]), y(s.y[i])), class_="point", data_tip=tip))
    return tag("g", *inside, class_=f"series m{s.colour % COLOURS}", data_series=s.name, data_model=s.model)


def _labels(drawn: Sequence[Series], x: svg.Axis, y: svg.Axis, right: float, top: float, bottom: float) -> list[Markup]:
    ends = [(s, run[-1]) for s in drawn for run in runs(s)[-1:]]
    texts = [svg.wrapped(s.name, _LABEL, 12.5) for s, _ in ends]
    if len(ends) > _MOST_LABELS // 2:
        texts = [[svg.shortened(s.name, _LABEL, 12.5)] for s, _ in ends]
    places = svg.spread([y(s.y[i]) for s, i in ends], [14 * len(t) + 2 for t in texts], top, bottom + 8)
    inside = []
    for (s, i), place, text in zip(ends, places, texts):
        joint = tag("path", class_="joint", d=svg.line([(x(s.x[i]) + 6, y(s.y[i])), (right + 8, place)]))
        shown = [
            tag("text", part, class_="label", x=right + 12, y=place + 4 + 14 * (k - (len(text) - 1) / 2))
            for k, part in enumerate(text)
        ]
        inside.append(
            tag("g", joint, *shown, class_=f"series m{s.colour % COLOURS}", data_series=s.name, data_model=s.model)
        )
    return inside


# Bars ----------------------------------------------------------------------------------------------------------------


def bars(name: str, title: str, shown: Sequence[tuple[int, str, dict[str, Any]]]) -> Drawing:
    """One row for each label: a stem from zero to each series' marker, and its interval.

    Of more than 30 labels the 30 lowest are drawn, lowest first; the table has all.
    """
    drawn = series(shown, "values")
    unit = unit_of(shown[0][2], drawn)
    labels = max((d["labels"] for _, _, d in shown), key=len)
    rows = list(range(len(labels)))
    note = ""
    if len(rows) > _MOST_BARS:
        rows = sorted(rows, key=lambda i: min((_value(s, i) for s in drawn), default=0))[:_MOST_BARS]
        note = f"The {_MOST_BARS} lowest of {len(labels)} are drawn, the lowest first."
    lowest = {s.name: min(rows, key=lambda i: _value(s, i)) for s in drawn if rows}
    said = " ".join(f"{n}: lowest at {labels[i]}." for n, i in lowest.items())

    def draw(one: str, width: int) -> Markup:
        inside, height = _bars(drawn, labels, rows, unit, width)
        return picture(one, title, f"{shown[0][2]['y_label']} for {len(rows)} labels. {said}", width, height, inside)

    table = [[str(label), *(_cell(s, i, unit) for s in drawn)] for i, label in enumerate(labels)]
    return Drawing(*both(draw, name), drawn, ["", *(s.name for s in drawn)], table, note=note)


def _value(s: Series, i: int) -> float:
    return s.y[i] if i < len(s.y) and words.is_number(s.y[i]) else float("inf")


def _bars(
    drawn: Sequence[Series], labels: Sequence[Any], rows: Sequence[int], unit: str, width: int
) -> tuple[list[Markup], float]:
    texts = [svg.shortened(str(labels[i]), width * 0.3) for i in rows]
    left = max([svg.width_of(t) for t in texts], default=0) + 12
    step = max(22, 11 * len(drawn) + 8)
    bottom = 12 + step * len(rows)
    x, x_ticks = y_axis(drawn, unit, left, width - 22)
    inside = []
    for value in x_ticks:
        text = f"{100 * value:g}%" if unit == "share" else words.bare(value)
        inside.append(tag("line", class_="grid" if value else "base", x1=x(value), x2=x(value), y1=6, y2=bottom))
        inside.append(tag("text", text, class_="tick middle", x=x(value), y=bottom + 16))
    for row, (i, text) in enumerate(zip(rows, texts)):
        middle = 12 + step * (row + 0.5)
        inside.append(tag("text", text, class_="tick end", x=left - 8, y=middle + 4))
        for k, s in enumerate(drawn):
            y = middle + 11 * (k - (len(drawn) - 1) / 2)
            if _value(s, i) != float("inf"):
                inside.append(_stem(s, i, x, y, f"{s.name}, {labels[i]}: {_cell(s, i, unit)}"))
    return inside, bottom + 26


def _stem(s: Series, i: int, x: svg.Axis, y: float, tip: str) -> Markup:
    zero = x(max(0, x.low))
    dashes = svg.DASHES[s.dash % len(svg.DASHES)] or None
    inside = [tag("line", class_="stem", x1=zero, x2=x(s.y[i]), y1=y, y2=y, stroke_dasharray=dashes)]
    if words.is_number(s.low[i]) and words.is_number(s.high[i]):
        inside.append(tag("line", class_="whisker", x1=x(s.low[i]), x2=x(s.high[i]), y1=y, y2=y))
    inside.append(svg.marker(s.colour, x(s.y[i]), y, 3.6))
    return tag(
        "g", *inside, class_=f"series point m{s.colour % COLOURS}", data_series=s.name, data_model=s.model, data_tip=tip
    )


# Intervals in tables -------------------------------------------------------------------------------------------------


def strip(colour: int, value: Any, low: Any, high: Any, span: tuple[float, float]) -> Markup:
    """A value and its interval on a short axis, for a table's cell; a difference's span holds zero, which is marked."""
    x = svg.Axis(span[0], span[1] if span[1] > span[0] else span[0] + 1, 5, 115)
    inside = [tag("line", class_="rail", x1=5, x2=115, y1=6, y2=6)]
    if span[0] < 0 < span[1]:
        inside.append(tag("line", class_="zero", x1=x(0), x2=x(0), y1=0, y2=12))
    if words.is_number(low) and words.is_number(high):
        inside.append(tag("rect", class_="range", x=x(low), y=1.5, width=max(1.0, x(high) - x(low)), height=9))
    if words.is_number(value):
        inside.append(svg.marker(colour, x(value), 6, 2.9))
    return tag("svg", tag("g", *inside, class_=f"m{colour % COLOURS}"), class_="strip", viewBox="0 0 120 12",
               width=120, height=12, aria_hidden="true")  # fmt: skip
