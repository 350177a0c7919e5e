"""Queries of a search with what it found, before and after an attack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from withstand.report import words
from withstand.report.gallery import Image, embed

_MOST_BYTES = 6_000_000


@dataclass(frozen=True)
class Near:
    """An item that was found. said: its label and how far it is."""

    image: Image | None
    label: str
    relevant: bool
    distance: str


@dataclass(frozen=True)
class Asked:
    """A query. rows: (its name, its image, what was found), before and after."""

    id: Any
    label: str
    where: str
    rows: list[tuple[str, Image | None, list[Near]]]


def lists(data: dict[str, Any], folder: Path | None, budget: int = _MOST_BYTES) -> tuple[list[Asked], int]:
    """The queries of a figure, and how many had to be left out to keep the page below the budget."""
    found: list[Asked] = []
    spent = 0
    for item in data["items"]:
        rows = [
            ("clean", embed(folder, item["clean"], "clean query"), _near(item["before"], folder, data["unit"])),
            (
                "attacked",
                embed(folder, item["adversarial"], "attacked query"),
                _near(item["after"], folder, data["unit"]),
            ),
        ]
        spent += sum(len(i.uri) for _, query, near in rows for i in (query, *(n.image for n in near)) if i)
        if found and spent > budget:
            break
        where = words.condition(item["condition"])
        distance = f"distance {words.radius(item['distance'])}" if words.is_number(item["distance"]) else ""
        found.append(Asked(item["id"], item["label"], ", ".join(filter(None, (where, distance))), rows))
    return found, len(data["items"]) - len(found)


def _near(items: list[dict[str, Any]], folder: Path | None, unit: str) -> list[Near]:
    return [
        Near(
            embed(folder, item.get("image"), f"item {item['id']}, {item['label']}"),
            item["label"],
            item["relevant"],
            f"{item['distance']:.0f} bits" if unit == "bits" else f"{item['distance']:.3f}",
        )
        for item in items
    ]
