"""Curves and bars as SVG files of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from withstand.errors import bad
from withstand.report import figures

_LIGHT = ":root { color-scheme: light; background: #fdfdfb; }"


def svg_file(figure: Mapping[str, Any]) -> str:
    """A figure (kind, title, data, as of `withstand.protocols.Figure`) as the text of an SVG file, styled like the page.

    Raises: BadInput for kinds other than curves and bars, and for bars of several series, which need the page's legend.
    """
    kind, data = figure["kind"], figure["data"]
    if kind not in ("curve", "bars") or (kind == "bars" and len(data["series"]) > 1):
        raise bad("figure", f"{kind} of {len(data.get('series', ()))} series", "a curve, or bars of one series")
    draw = figures.curve if kind == "curve" else figures.bars
    made = str(draw("figure", figure["title"], [(0, figure["title"], data)]).wide)
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8").replace("]]>", "")
    opening, _, rest = made.partition(">")
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{opening}><style><![CDATA[{style}\n{_LIGHT}]]></style>{rest}\n"
