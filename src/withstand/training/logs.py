"""Where the history goes: CSV always, TensorBoard and MLflow on request."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from withstand.errors import missing_extra, unknown

Logger = Callable[[int, dict[str, Any]], None]


def as_csv(history: list[dict[str, Any]]) -> str:
    """One line per epoch; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def logger(name: str, folder: Path) -> Logger:
    """A logger by name: "tensorboard" writes event files into the folder, "mlflow" to the tracking server that its own
    environment variables name. Raises: MissingExtra, BadInput for another name."""
    if name == "tensorboard":
        return _tensorboard(folder)
    if name == "mlflow":
        return _mlflow()
    raise unknown("logger", name, ("tensorboard", "mlflow"))


def _tensorboard(folder: Path) -> Logger:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing_extra("tensorboard", "track", "logging to TensorBoard") from None
    writer = SummaryWriter(str(folder))

    def log(step: int, row: dict[str, Any]) -> None:
        for key, value in _numbers(row).items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return log


def _mlflow() -> Logger:
    try:
        import mlflow
    except ImportError:
        raise missing_extra("mlflow", "track", "logging to MLflow") from None

    return lambda step, row: mlflow.log_metrics(_numbers(row), step=step)


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k not in ("epoch", "step")}
