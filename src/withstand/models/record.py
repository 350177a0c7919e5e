"""What is known of the training that made a model."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainingRecord:
    """The history of a training, one row per epoch, and how it was made.

    recipe, judge: as texts; judge: the attack of the robust accuracy on the validation examples, "" for none. learned,
    held: numbers of training and validation examples.
    """

    history: Sequence[dict[str, Any]]
    recipe: str = ""
    judge: str = ""
    learned: int = 0
    held: int = 0

    @classmethod
    def read(cls, folder: Path) -> "TrainingRecord | None":
        """From the folder of a training; None where it holds none, or a damaged one."""
        try:
            config = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            with open(folder / "history.csv", newline="", encoding="utf-8") as file:
                history = [{k: _number(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            judge = "" if config["attack"] == "None" else config["attack"]
            held = (config["validation"] or {"examples": 0})["examples"]
            return cls(history, config["recipe"], judge, config["data"]["examples"], held)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)
