"""`withstand list`: what there is, without importing any of it."""

from typing import Annotated, Any

import typer

WHAT = (
    "systems", "attacks", "recipes", "detectors", "checks", "indicators", "threats", "objectives", "losses", "samplers",
    "augmentations", "models", "data", "benchmarks",
)  # fmt: skip
SOURCES = (
    ("timm:NAME", "any classifier of timm", ""),
    ("torchvision:NAME", "any classifier of torchvision", ""),
    ("hf:REPO_OR_FOLDER", "image classifiers of transformers", "hf"),
    ("FILE.py:FACTORY", "a function that returns a torch module", ""),
    ("artefact:FOLDER", "what `withstand harden --out` wrote, or a classifier by nearest neighbours", ""),
    ("FILE.onnx", "an exported graph (scores only)", "onnx"),
    ("http(s)://.../predict", "an endpoint that answers batches in JSON (black-box)", ""),
    ("http(s)://.../retrieve", "an image search, with --task retrieval", ""),
)
"""Where models come from."""


def run(
    what: Annotated[str | None, typer.Argument(metavar="WHAT", help=f"One of {', '.join(WHAT)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the published systems, the components that can be named, the models and the data sets."""
    from withstand.cli.console import show, table
    from withstand.errors import bad, unknown

    if what is None:
        raise bad("WHAT", "nothing", ", ".join(WHAT))
    if what not in WHAT:
        raise unknown("list", what, WHAT)
    rows = _rows(what)
    if as_json:
        show(rows)
    elif rows:
        show(table([{k: _plain(v) for k, v in row.items()} for row in rows]))
    else:
        show(f"no {what} yet")


def _rows(what: str) -> list[dict[str, Any]]:
    if what == "systems":
        from dataclasses import asdict

        from withstand.systems import systems

        return [asdict(system) for system in systems()]
    if what == "data":
        from withstand.data.catalogue import SETS

        return [{"name": e.name, "summary": e.summary, "aliases": list(e.aliases), "source": e.source} for e in SETS]
    if what == "benchmarks":
        from withstand.data.shift.table import BENCHMARKS

        return [{"name": b.name, "summary": b.summary, "folder": b.folders[0]} for b in BENCHMARKS]
    if what == "models":
        from withstand.models.zoo.table import ZOO

        zoo = [(f"zoo:{e.name}", f"{e.summary} (needs --weights)", "") for e in ZOO]
        return [{"name": name, "summary": summary, "extra": extra} for name, summary, extra in (*SOURCES, *zoo)]
    from withstand.registry import entries

    kinds = ("metric_loss", "hashing_loss") if what == "losses" else (what.removesuffix("s"),)
    rows = [
        {"name": e.name, "summary": e.summary, "systems": list(e.systems), "extra": e.extra, "module": e.module}
        for kind in kinds
        for e in entries(kind)
    ]
    if what == "recipes":  # what an attack has to train first lives with the attacks
        rows = [{"name": r["name"], "verb": _verb(str(r["module"]))} | r for r in rows]
    return rows


def _verb(module: str) -> str:
    return "fit-attack" if module.startswith("withstand.attacks.") else "harden"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
