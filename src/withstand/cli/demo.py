"""`withstand demo`: the embedded demo, an audit of two small networks on scikit-learn's digits."""

from pathlib import Path
from typing import Annotated

import typer

from withstand.cli.console import Format


def run(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    format: Annotated[Format, typer.Option(help="What is printed on stdout.")] = Format.text,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
) -> None:
    """Audit the embedded demo: a network for handwritten digits, trained plainly and trained adversarially."""
    from withstand.cli import audit

    audit.run(out=out, format=format, fresh=fresh)
