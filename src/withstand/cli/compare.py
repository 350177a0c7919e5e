"""`withstand compare`: paired tests between the models of one or more runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from withstand.cli.console import Format


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of audits on the same data.")],
    format: Annotated[Format, typer.Option(help="text, json or markdown.")] = Format.text,
    check: Annotated[str | None, typer.Option(help="Only this check, e.g. robust.")] = None,
) -> None:
    """What got better or worse, for which examples, and whether that may be chance.

    Models of later runs are compared with the model of the same name in the first run (or its first model); those of a
    single run with its first one. Differences are paired, with 95 % intervals (Agresti and Min) and McNemar's exact test.
    """
    from dataclasses import asdict

    from withstand.audit.compare import compare_runs
    from withstand.cli.console import say, show, table
    from withstand.errors import bad, unknown

    if format is Format.junit:
        raise bad("--format", "junit", "text, json or markdown", "Use --fail-under on `withstand audit` or `report`.")
    found, notes = compare_runs(runs)
    for note in notes:
        say(note)
    if check is not None:
        if check not in {c.check for c in found}:
            raise unknown("check that both sides ran", check, {c.check for c in found})
        found = [c for c in found if c.check == check]
    if format is Format.json:
        show([asdict(c) for c in found])
    elif not found:
        show("nothing to compare: no check has outcomes for two models")
    else:
        show(table([_row(c) for c in found], markdown=format is Format.markdown))


def _row(c: Any) -> dict[str, str]:
    from dataclasses import asdict

    from withstand.report.summary import clear
    from withstand.report.words import condition

    sure = "" if not clear(asdict(c)) else ("better" if c.difference > 0 else "worse")
    return {
        "check": c.check,
        "condition": condition(c.condition),
        "from": c.before,
        "to": c.after,
        "withstood": f"{100 * c.difference:+.1f} points",
        "interval": f"{100 * c.low:+.1f} to {100 * c.high:+.1f}",
        "p": f"{c.p_value:.2g}",
        "n": str(c.n),
        "": sure,
        "right only after": _ids(c.gained),
        "right only before": _ids(c.lost),
    }


def _ids(ids: list[int], shown: int = 6) -> str:
    return " ".join(map(str, ids[:shown])) + (" ..." if len(ids) > shown else "")
