"""The few SVG parts that the figures are drawn from: elements, axes, ticks, markers, labels that keep apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

MARKERS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")


def tag(name: str, *inside: Any, **attributes: Any) -> Markup:
    """An element; text is escaped, `None` attributes are left out, `class_` and `stroke_width` are spelled for SVG."""
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(escape(part) for part in inside)
    return Markup(f"<{name}{spelled}>{body}</{name}>" if body else f"<{name}{spelled}/>")


def short(value: Any) -> Any:
    """A coordinate with at most two decimals; anything else as it is."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@dataclass(frozen=True)
class Axis:
    """A map from values to pixels: [low, high] -> [start, stop], linear or logarithmic.

    gutter: on a logarithmic axis, the share of the length that zero gets, left of the smallest positive value.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    gutter: float = 0.0

    def __call__(self, value: float) -> float:
        if not self.log:
            share = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            share = 0.0
        else:
            along = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
            share = self.gutter + (1 - self.gutter) * along
        return self.start + share * (self.stop - self.start)


def axis(values: Sequence[float], start: float, stop: float, log: bool = False) -> Axis:
    """The axis that just holds the values; a logarithmic one only where there are two positive values."""
    positive = sorted({v for v in values if v > 0})
    if log and len(positive) > 1:
        return Axis(positive[0], positive[-1], start, stop, True, 0.1 if min(values) <= 0 else 0.0)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return Axis(low, high if high > low else low + 1, start, stop)


def nice(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high]."""
    rough = (high - low) / max(1, count - 1) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def powers(scale: Axis) -> list[float]:
    """The powers of ten on a logarithmic axis, and zero where it has a place."""
    lowest, highest = math.ceil(math.log10(scale.low) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
    inside = [10.0**k for k in range(lowest, highest + 1)]
    return ([0.0] if scale.gutter else []) + (inside if len(inside) > 1 else [scale.low, scale.high])


def width_of(text: str, size: float = 12) -> float:
    """About how wide a text is, in pixels; rather too wide than too narrow."""
    return sum(0.38 if c in "iIl.,:;'|!/ " else 1.0 if c in "mMwWQ@%" or c > "\u2e80" else 0.65 for c in text) * size


def shortened(text: str, pixels: float, size: float = 12) -> str:
    """The text, cut in the middle with an ellipsis where it is wider than that."""
    if width_of(text, size) <= pixels:
        return text
    keep = len(text)
    while keep > 2 and width_of(text[:keep] + "…", size) > pixels:
        keep -= 1
    return f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"


def wrapped(text: str, pixels: float, size: float = 12) -> list[str]:
    """The text on one line, or on two, cut where even two are not enough."""
    if width_of(text, size) <= pixels:
        return [text]
    first, rest = "", text
    while " " in rest and width_of(f"{first} {rest.split(' ', 1)[0]}", size) <= pixels:
        word, rest = rest.split(" ", 1)
        first = f"{first} {word}".strip()
    return [first, shortened(rest, pixels, size)] if first else [shortened(text, pixels, size)]


def without_overlap(labels: Sequence[tuple[float, str]], size: float = 12, gap: float = 8) -> list[tuple[float, str]]:
    """The (position, text) labels that fit side by side: the last, then from the first on whatever has room."""
    if not labels:
        return []
    *others, last = sorted(labels)
    edge = last[0] - width_of(last[1], size) / 2
    kept, right = [], -math.inf
    for position, text in others:
        half = width_of(text, size) / 2
        if position - half >= right + gap and position + half + gap <= edge:
            kept.append((position, text))
            right = position + half
    return [*kept, last]


def spread(positions: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels of these heights, in the order of the positions they belong to, that do not overlap.

    They lie in [low, high] if they fit there; where there is not room enough, they stand out above.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    result = [float(p) for p in positions]
    edge = low
    for i in order:
        result[i] = max(result[i], edge + heights[i] / 2)
        edge = result[i] + heights[i] / 2
    edge = high
    for i in reversed(order):
        result[i] = min(result[i], edge - heights[i] / 2)
        edge = result[i] - heights[i] / 2
    return result


def marker(kind: int, x: float, y: float, r: float = 4.0) -> Markup:
    """The sign of a model: circle, square, triangle, diamond, inverted triangle, cross, then from the start."""
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        3: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        4: [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
        5: [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2),
            (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
    }.get(kind % MARKERS)  # fmt: skip
    if corners is None:
        return tag("circle", class_="mark", cx=x, cy=y, r=r)
    path = "L".join(f"{short(float(x + a * r))} {short(float(y + b * r))}" for a, b in corners)
    return tag("path", class_="mark", d=f"M{path}Z")


def line(points: Sequence[tuple[float, float]]) -> str:
    """The path through points."""
    return "M" + "L".join(f"{short(float(x))} {short(float(y))}" for x, y in points)
