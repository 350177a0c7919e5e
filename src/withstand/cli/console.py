"""What the verbs share: results to stdout, progress and remarks to stderr, silent where nobody watches."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer


class Format(StrEnum):
    """How a result is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"
    junit = "junit"


def say(text: str) -> None:
    """A remark, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(value: Any) -> None:
    """A result, on stdout: texts as they are, other values as JSON."""
    print(value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False), flush=True)


def table(rows: list[dict[str, str]], markdown: bool = False) -> str:
    """Columns as wide as their widest value; on a terminal cut to its width. Columns without any value are left out."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    if markdown:
        lines = [names, ["---"] * len(names), *([row[n].replace("|", "\\|") for n in names] for row in rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    texts = ["  ".join(line[n].ljust(widths[n]) for n in names).rstrip() for line in [dict(zip(names, names)), *rows]]
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        texts = [text if len(text) <= width else text[: width - 1] + "…" for text in texts]
    return "\n".join(texts)


@contextmanager
def resumable(what: str) -> Iterator[None]:
    """Turn Ctrl-C into exit code 130 and a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\nstopped; what is done is kept. {what}")
        raise typer.Exit(130) from None


@contextmanager
def progress() -> Iterator[Any]:
    """A bar for each check of each model, drawn while the block runs; yields what `audit(report=)` takes."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[tuple[str, str], Any] = {}

        def report(model: str, check: str, done: int, total: int) -> None:
            if (model, check) not in tasks:
                tasks[model, check] = bars.add_task(f"{model}: {check}", total=total)
            bars.update(tasks[model, check], completed=done)

        yield report


def channel_values(text: str | None, option: str) -> tuple[float, ...] | str | None:
    """Numbers with commas between them, e.g. `0.485,0.456,0.406`, or the name of a known set of them."""
    from withstand.errors import bad

    if text is None or text.isidentifier():
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        allowed = "numbers with commas between them, e.g. 0.485,0.456,0.406, or a name such as imagenet"
        raise bad(option, repr(text), allowed) from None


def print_card(card: Any, format: Format, requirements: list[str], model_card: Path | None) -> None:
    """Print a scorecard, write the block for a model card, and hold it against the requirements.

    Raises: NotMet for a requirement that is not met; BadInput for one that cannot be judged, and for failed checks.
    """
    from withstand.audit.requirements import Requirement
    from withstand.errors import BadInput, NotMet
    from withstand.files import write_atomic
    from withstand.report import tables

    data = card.to_json()
    failures: dict[str, str] = {}
    mistakes: list[str] = []
    for text in requirements:
        try:
            failures[text] = "; ".join(Requirement.read(text).reasons(card))
        except BadInput as error:
            failures[text] = str(error)
            mistakes.append(str(error))
    match format:
        case Format.text:
            from rich.console import Console

            Console(width=None if sys.stdout.isatty() else 160, soft_wrap=not sys.stdout.isatty()).print(
                tables.terminal(data)
            )
            say(f"report: {Path(card.folder) / 'report.html'}")
        case Format.json:
            show(data)
        case Format.markdown:
            show(tables.markdown(data).rstrip("\n"))
        case Format.junit:
            show(tables.junit(data, failures).rstrip("\n"))
    if model_card is not None:
        write_atomic(model_card, tables.model_index(data))
    mistakes += [f"{r.check} of {r.model} failed: {r.reason}" for r in card.results if r.status == "failed"]
    if mistakes:
        raise BadInput("; ".join(mistakes))
    if any(failures.values()):
        raise NotMet("; ".join(filter(None, failures.values())))
