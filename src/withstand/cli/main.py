"""`withstand`: the verbs, and how errors are told."""

import sys

import typer

import withstand
from withstand.cli import (
    attack,
    audit,
    compare,
    demo,
    detect,
    edit,
    fit_attack,
    harden,
    index,
    list_,
    report,
    reproduce,
    transfer,
)
from withstand.cli.console import say
from withstand.cli.values import SeveralValues
from withstand.errors import NotMet, WithstandError

app = typer.Typer(
    name="withstand",
    help="Find out what a machine-learning model withstands, and make it withstand more.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing boxes would take longer than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (audit, demo, attack, fit_attack, transfer, edit, harden, compare, report, list_, reproduce):
    name = verb.__name__.rpartition(".")[2].strip("_").replace("_", "-")
    app.command(name, cls=SeveralValues if verb is transfer else None)(verb.run)
app.add_typer(index.app, name="index")
app.add_typer(detect.app, name="detect")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"withstand {withstand.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def run() -> None:
    """The entry point. Exit codes: 0 done; 1 a requirement is not met; 2 bad input or usage; 130 interrupted."""
    try:
        app()
    except WithstandError as error:
        say(f"withstand: {error}")
        sys.exit(1 if isinstance(error, NotMet) else 2)
