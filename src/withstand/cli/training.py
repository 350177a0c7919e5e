"""A training while it runs: past epochs as a table, the present one as its last row, and the time that is left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from withstand.errors import bad

ROWS = 12
_BEGUN = ("checkpoints", "history.csv", "tensorboard")  # what may lie there before `training.json` does


@contextmanager
def drawn() -> Iterator[Any]:
    """What `Trainer.fit(progress=)` takes; draws on stderr while the block runs, in a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
        yield lambda moment: live.update(_table(moment))


def refuse_occupied(folder: Path) -> None:
    """Raises: BadInput, before any work, for a file and for a folder that holds something else than a training."""
    if folder.exists() and not folder.is_dir():
        raise bad("out", f"{folder}, a file", "a folder")
    if not folder.is_dir() or (folder / "training.json").is_file():
        return
    if strangers := sorted(p.name for p in folder.iterdir() if p.name not in _BEGUN):
        raise bad("out", f"{folder}, which holds {strangers[0]} and no training", "a new folder, or that of a training")


def outcome(history: list[dict[str, Any]], best: int | None) -> str:
    """The last epoch and the best, as a table."""
    from withstand.cli.console import table

    return table([_line(row, best) for row in history if row["epoch"] in (best, len(history))])


def _table(moment: Any) -> Any:
    from rich.table import Table

    now = {"epoch": moment.epoch, **moment.means, "images_per_second": moment.images_per_second}
    rows = moment.history[-ROWS:]
    rows = rows if rows and rows[-1]["epoch"] == moment.epoch else [*rows, now]
    names = [n for n in dict.fromkeys(key for row in rows for key in row) if n not in ("step", "lr")]
    left = _time(moment.seconds_left)
    table = Table(title=f"epoch {moment.epoch} of {moment.epochs}, step {moment.step} of {moment.steps}, {left} left")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_text(name, row.get(name)) for name in names))
    return table


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "epoch":
        return str(value)
    return f"{value:.1%}" if _share(name) else f"{value:.0f}" if name == "images_per_second" else f"{value:.4g}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(row: dict[str, Any], best: int | None) -> dict[str, str]:
    """A row of the history as texts."""
    texts = {"epoch": f"{row['epoch']}{' (best)' if row['epoch'] == best else ''}"}
    for key, value in row.items():
        if _share(key):
            texts[key.replace("_", " ")] = f"{value:.1%}"
        elif key not in ("epoch", "step", "lr"):
            texts[key.replace("_", " ")] = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return texts


def _share(name: str) -> bool:
    return "accuracy" in name or "recall" in name
