"""Maps of the same examples by several models: each image once, its maps side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from withstand.report.gallery import Image, embed

_MOST_BYTES = 6_000_000


@dataclass(frozen=True)
class Looked:
    """One example. maps: (model, its map, its prediction), for the models that have one."""

    id: Any
    label: str
    image: Image | None
    maps: list[tuple[str, Image | None, str]]


def maps(shown: Sequence[tuple[str, dict[str, Any]]], folder: Path | None, budget: int = _MOST_BYTES) -> list[Looked]:
    """The examples of a figure of several models, as (model, data of the figure), while the page stays below the budget."""
    found: dict[Any, Looked] = {}
    for model, data in shown:
        for item in data["items"]:
            image = embed(folder, item.get("image"), f"example {item['id']}, {item['label']}")
            one = found.setdefault(item["id"], Looked(item["id"], str(item["label"]), image, []))
            drawn = embed(folder, item.get("map"), f"gradients of {model}")
            one.maps.append((model, drawn, str(item["prediction"])))
    kept, spent = [], 0
    for one in found.values():
        spent += sum(len(i.uri) for i in (one.image, *(m for _, m, _ in one.maps)) if i)
        if kept and spent > budget:
            break
        kept.append(one)
    return kept
