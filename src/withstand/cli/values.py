"""Options of several values: `--attacks mi ni di`, `--attacks mi,ni,di`, or the option again for each."""

import re
from collections.abc import Collection, Iterable
from typing import Any

from typer.core import TyperCommand

_SETTING = re.compile(r"\s*[A-Za-z_]\w*\s*=")


class SeveralValues(TyperCommand):
    """A command without arguments, whose repeatable options take all values up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        return super().parse_args(ctx, spread(args, several))


def spread(args: Iterable[str], several: Collection[str]) -> list[str]:
    """`--a x y` as `--a x --a y`, for the options in `several`."""
    found: list[str] = []
    option, values = "", 0
    for arg in args:
        if arg.startswith("--"):
            option, equals, _ = arg.partition("=")
            values = len(equals)
        elif option in several:
            if values:
                found.append(option)
            values += 1
        found.append(arg)
    return found


def listed(texts: Iterable[str]) -> list[str]:
    """Texts of components, in which `a,b` stands for two. Commas inside brackets and before a setting do not separate:
    `pgd(linf(8/255), steps=5),mi:steps=3,threat=l2(1.0)` are two."""
    found: list[str] = []
    for text in texts:
        first = True
        for piece in text.split(","):
            inside = not first and found[-1].count("(") + found[-1].count("[") > found[-1].count(")") + found[-1].count(
                "]"
            )
            if inside or (not first and _SETTING.match(piece)):
                found[-1] += f",{piece}"
            else:
                found.append(piece)
            first = False
    return [text.strip() for text in found]
