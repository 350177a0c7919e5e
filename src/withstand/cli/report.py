"""`withstand report`: the page and the tables of a run that was made before."""

from pathlib import Path
from typing import Annotated

import typer

from withstand.cli.console import Format


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an audit.")],
    html: Annotated[
        Path | None, typer.Option(help="Where to write the page; default report.html in the folder.")
    ] = None,
    format: Annotated[Format, typer.Option(help="What is printed on stdout.")] = Format.text,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="[MODEL/]METRIC[@THREAT]=VALUE", help="Exit with code 1 where a number is worse."),
    ] = None,
    model_card: Annotated[
        Path | None, typer.Option(help="Write a model-index block for a Hugging Face model card to this file.")
    ] = None,
) -> None:
    """Write the page of a run again, and print its tables."""
    from withstand.audit.scorecard import Scorecard
    from withstand.cli.console import print_card, say

    card = Scorecard.load(folder)
    path = card.to_html(html)
    say(f"page: {path}")
    print_card(card, format, fail_under or [], model_card)
