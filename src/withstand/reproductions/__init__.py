"""What the published systems claim, and how it is measured again here: one module per system, found by its file.

A module of this package states `SYSTEM = "id"` as a literal and offers

- `CLAIMS: list[Claim]`: the statements, their sources, arms, metric and direction, with the settings of each scale;
- `measure(scale, seed, progress) -> {"rows": [...]}`: one row {"arm", "metric", "examples"} per arm and metric, where
  examples is one number per example in a fixed order (a text of 0 and 1 for yes and no). Rows may say more.
  Or `PARTS = {"name": measure, ...}`: several such experiments, which are measured one by one and can be kept one by one.

It may offer `figures(seeds) -> list[Figure]` besides: curves and bars made of the rows of every seed, which are kept with
the result, drawn by the command and shown in the docs.

`reproduce` runs it seed by seed, judges the claims and writes `results/<system>.<scale>.json`; nothing else does.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@cache
def available() -> dict[str, str]:
    """System id -> module, for every module of this package that states one; read from the text, nothing is imported."""
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SYSTEM":
                found[ast.literal_eval(node.value)] = f"{__name__}.{path.stem}"
    return found


def __getattr__(name: str) -> Any:
    if name == "reproduce":
        from withstand.reproductions.runner import reproduce

        return reproduce
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
