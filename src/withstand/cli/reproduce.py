"""`withstand reproduce`: measure again what the papers claim."""

from pathlib import Path
from typing import Annotated, Any

import typer


def run(
    system: Annotated[str | None, typer.Argument(help="An id of `withstand list systems`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every system that has a reproduction.")] = False,
    scale: Annotated[str, typer.Option(help="smoke (minutes on two cores), cpu (the recorded one) or gpu.")] = "smoke",
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable; default those of the claims.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the results.")] = Path("runs/reproductions"),
    record: Annotated[
        bool, typer.Option("--record", help="Write to the results that ship with the package instead.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Take this part from the recorded result; repeatable. Needs one system."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure the claims of the papers again, with the baseline beside each, and say whether they show.

    The same command continues where an earlier one was stopped.
    """
    from withstand.cli.console import resumable, say, show, table
    from withstand.errors import BadInput, bad
    from withstand.report.files import svg_file
    from withstand.reproductions import available
    from withstand.reproductions.runner import reproduce

    if every == (system is not None):
        raise bad("SYSTEM", "both a system and --all" if every else "nothing", "a system, or --all")
    if keep and every:
        raise bad("--keep", "with --all", "parts of one system")
    results: list[dict[str, Any]] = []
    with resumable("The same command continues."):
        for name in sorted(available()) if system is None else [system]:
            say(f"{name}, scale {scale}")
            try:
                results.append(reproduce(name, scale, seeds, None if record else out, say, keep or ()))
            except BadInput as error:
                if system is not None or not str(error).startswith("scale:"):
                    raise
                say(f"{name}: left out, {error}")
    for result in results:
        for k, figure in enumerate(result.get("figures", ())):
            path = out / f"{result['system']}.{result['scale']}.{k + 1}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(svg_file(figure), encoding="utf-8")
            say(f"{figure['title']}: {path}")
    if as_json:
        show(results)
    elif rows := [_row(result, claim) for result in results for claim in result["claims"]]:
        show(table(rows))
    else:
        show("no claim was measured")


def _row(result: dict[str, Any], claim: dict[str, Any]) -> dict[str, str]:
    return {
        "system": result["system"],
        "claim": claim["statement"],
        "metric": claim["metric"],
        "from, to": " -> ".join(
            f"{arm} {value:.4g}" for arm, value in zip((claim["arms"][0], claim["arms"][-1]), claim["values"])
        ),
        "difference": f"{claim['difference']:+.4g} ({claim['low']:+.4g} to {claim['high']:+.4g})",
        "verdict": claim["verdict"],
    }
