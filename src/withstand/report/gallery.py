"""Galleries: examples with what the attack made of them, worst first, their images embedded in the page."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from withstand.report import words

_PNG = b"\x89PNG\r\n\x1a\n"
_TINY = 96
_MOST_BYTES = 12_000_000
IMAGES = (("clean", "clean"), ("adversarial", "attacked"), ("difference", "difference"))


@dataclass(frozen=True)
class Image:
    """An embedded image. tiny: its pixels are to be shown as squares."""

    name: str
    uri: str
    width: int
    height: int
    tiny: bool


@dataclass(frozen=True)
class Shot:
    """One example. images: those that were found; fooled: whether the prediction is no longer the label; changed: what was
    done to it, "attacked" or "edited"."""

    id: Any
    images: list[Image]
    label: str
    before: str
    after: str
    fooled: bool
    condition: str
    distance: str
    changed: str

    @property
    def said(self) -> str:
        """The example in one sentence, for those who do not see the images."""
        result = f"predicted {self.before} when clean, {self.after} when {self.changed}"
        return f"Example {self.id}: truly {self.label}, {result}; {self.condition}"


def gallery(data: dict[str, Any], folder: Path | None, budget: int = _MOST_BYTES) -> tuple[list[Shot], int]:
    """The shots of a gallery, worst first, and how many had to be left out to keep the page below the budget.

    Worst: fooled before not fooled, then by confidence in what was predicted, then by smallness of the change.
    """
    shots: list[Shot] = []
    spent, after = 0, data.get("after", "attacked")
    items = sorted(data["items"], key=_badness)
    for item in items:
        named = [(k, after if name == "attacked" else name) for k, name in IMAGES]
        images = [i for i in (embed(folder, item.get(k), name) for k, name in named) if i]
        spent += sum(len(i.uri) for i in images)
        if spent > budget and shots:
            break
        shots.append(_shot(item, images, after))
    return shots, len(items) - len(shots)


def embed(folder: Path | None, name: Any, label: str) -> Image | None:
    """A PNG file of the run folder as a data URI; None where it is missing, not a PNG, or outside of the folder."""
    if folder is None or not isinstance(name, str) or not name:
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    raw = path.read_bytes()
    if not raw.startswith(_PNG) or len(raw) < 24:
        return None
    width, height = struct.unpack(">II", raw[16:24])
    uri = "data:image/png;base64," + base64.b64encode(raw).decode("ascii")
    return Image(label, uri, width, height, max(width, height) <= _TINY)


def _fooled(item: dict[str, Any]) -> bool:
    return str(item.get("adversarial_prediction")) != str(item.get("label"))


def _badness(item: dict[str, Any]) -> tuple[bool, float, float]:
    sure, far = item.get("adversarial_confidence"), item.get("distance")
    fooled = _fooled(item)
    confidence = float(sure) if words.is_number(sure) else 0.0
    return not fooled, -confidence if fooled else confidence, float(far) if words.is_number(far) else float("inf")


def _shot(item: dict[str, Any], images: Sequence[Image], after: str) -> Shot:
    def said(kind: str) -> str:
        sure = item.get(f"{kind}_confidence")
        share = f" ({words.quantity(sure)})" if words.is_number(sure) else ""
        return f"{item.get(f'{kind}_prediction', words.NONE)}{share}"

    where = item.get("condition") or {}
    return Shot(
        id=item.get("id", ""),
        images=list(images),
        label=str(item.get("label", words.NONE)),
        before=said("clean"),
        after=said("adversarial"),
        fooled=_fooled(item),
        condition=words.condition(where) if isinstance(where, dict) else str(where),
        changed=after,
        distance=words.radius(item["distance"]) if words.is_number(item.get("distance")) else "",
    )
