"""What the queries of an audit are compared with: a gallery, or the audited examples themselves, each without itself."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.audit.gallery import png
from withstand.errors import bad
from withstand.files import write_atomic
from withstand.index import CodeIndex, Index, pack
from withstand.models.encoder import Encoder
from withstand.protocols import Context, Dataset, Figure, Target
from withstand.representation.density import density
from withstand.representation.metrics import distinct_codes, normalized_mutual_information

SHOWN, NEIGHBOURS = 8, 5
"""Queries in a figure, and neighbours of each."""
_BLOCK = 256
_PICTURES = 1 << 25  # bytes of small pictures that are kept of a gallery
_CLUSTERED = 20_000  # items at most that are clustered


class Shelf:
    """Items with their labels, searchable. items: vectors [M, D] or packed codes; own: the audited examples themselves.

    Its tensors are what a check's `prepare` returns; `measures` are those of the items as a whole, as far as defined.
    """

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        self.labels, self.ids, self.own = held["labels"].cpu(), held["ids"].cpu(), bool(held["own"])
        self.bits = int(held["bits"])
        self.index: Any = CodeIndex(held["items"].cpu(), self.bits) if self.bits else Index(held["items"].cpu())
        self.pictures = held["pictures"].cpu()
        self.measures = {n.removeprefix("of "): float(v) for n, v in held.items() if n.startswith("of ")}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def compared(self) -> int:
        """How many items a query is compared with."""
        return len(self) - self.own

    def places(self, ids: Tensor) -> Tensor | None:
        """The position of each query among the items, where they are the audited examples themselves."""
        if not self.own:
            return None
        order = self.ids.argsort()
        return order[torch.searchsorted(self.ids[order], ids.cpu())]

    def codes(self) -> Tensor:
        """Codes of -1 and +1, float32 [M, K]."""
        from withstand.index import unpack

        return unpack(torch.from_numpy(self.index.packed), self.bits)


def fill(target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context, nmi: bool) -> dict[str, Tensor]:
    """The tensors of a `Shelf`: the given gallery, or where there is none (or it is the same data) the audited examples.

    Raises: BadInput for examples without labels, a gallery of other classes, and fewer than two items.
    """
    gallery = given.get("gallery")
    own = gallery is None or gallery.fingerprint() == data.fingerprint()
    examples: Dataset = data if own else gallery  # type: ignore[assignment]
    if examples.classes != data.classes:
        said = f"{examples.name} with {len(examples.classes)} classes"
        raise bad("gallery", said, f"the classes of {data.name}, in the same order", "Labels must mean the same.")
    if len(examples) < 2:
        raise bad("gallery", f"{len(examples)} item", "two items or more")
    encode, side = Encoder(target), _side(examples)
    found: list[Tensor] = []
    labels: list[Tensor] = []
    ids: list[Tensor] = []
    pictures: list[Tensor] = []
    for begin in range(0, len(examples), _BLOCK):
        batch = examples.batch(range(begin, min(begin + _BLOCK, len(examples)))).to(ctx.device)
        if batch.y is None or batch.ids is None:
            raise bad("gallery", f"{examples.name}, without labels", "labelled examples")
        found.append(encode(batch.x).cpu())
        labels.append(batch.y.cpu())
        ids.append(batch.ids.cpu())
        if side:
            pictures.append(small(batch.x, side))
    ctx.spend(forwards=len(examples))
    items, y = torch.cat(found), torch.cat(labels)
    held = {"items": pack(items) if encode.binary else items, "labels": y, "ids": torch.cat(ids)}
    held |= {"own": torch.tensor(own), "bits": torch.tensor(items.shape[1] if encode.binary else 0)}
    held["pictures"] = torch.cat(pictures) if side else torch.zeros(0, dtype=torch.uint8)
    measures = _codes_as_a_whole(items) if encode.binary else _vectors_as_a_whole(items, y, nmi, ctx.seed)
    return held | {f"of {name}": torch.tensor(v, dtype=torch.float64) for name, v in measures.items() if np.isfinite(v)}


def _vectors_as_a_whole(items: Tensor, y: Tensor, nmi: bool, seed: int) -> dict[str, float]:
    total, n = items.double().sum(0), len(items)
    cosine = (total.square().sum() - items.double().square().sum()) / (n * (n - 1))
    found = {"mean_distance_of_items": max(0.0, 1 - float(cosine))}
    if y.dim() == 1:
        found |= density(items, y)
        if nmi and n <= _CLUSTERED:
            found["nmi"] = normalized_mutual_information(items, y, seed)
    return found


def _codes_as_a_whole(codes: Tensor) -> dict[str, float]:
    return {"distinct_codes": float(distinct_codes(codes))}


# Pictures ------------------------------------------------------------------------------------------------------------


def _side(data: Dataset) -> int:
    """The side of the small pictures that are kept of each example; 0: none."""
    shape = data.space.shape or ()
    if len(shape) != 3 or None in shape or shape[0] not in (1, 3):
        return 0
    sizes = [s for s in (96, 64, 48, 32, 24, 16) if s < max(shape[1:])]  # type: ignore[type-var]
    wanted = [min(96, max(shape[1:])), *sizes]  # type: ignore[type-var]
    return next((int(s) for s in wanted if len(data) * shape[0] * s * s <= _PICTURES), 0)  # type: ignore[operator]


def small(x: Tensor, side: int) -> Tensor:
    """Images [N, C, H, W] in [0, 1] as bytes, the longer side at most so many pixels."""
    scale = side / max(x.shape[2:])
    if scale < 1:
        x = F.interpolate(x.float(), [max(1, round(s * scale)) for s in x.shape[2:]], mode="area")
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def keep_lists(
    folder: Any, x: Tensor, x_adv: Tensor, facts: Mapping[str, Tensor], lists: Mapping[str, Tensor], shelf: Shelf
) -> None:
    """Keep the queries of a shard whose lists suffered most, in its folder, if it has one.

    facts: id, label, before, after (what the lists are worth), distance, each [N]. lists: before, after: positions [N, k],
    and far_before, far_after: their distances.
    """
    if folder is None or x.dim() != 4 or x.shape[1] not in (1, 3) or not len(facts["id"]):
        return
    rows = {name: value.cpu().numpy() for name, value in facts.items() if name != "row"}
    order = _worst_first(rows)[:SHOWN]
    chosen = facts["row"].cpu()[order.copy()]
    kept: dict[str, Any] = {name: value[order] for name, value in rows.items()}
    for when, pixels in (("clean", x), ("adversarial", x_adv)):
        kept[when] = small(pixels[chosen.to(x.device)], 96).numpy()
    for name, values in lists.items():
        kept[name] = values[chosen].cpu().numpy()
    for when in ("before", "after"):
        position = lists[when][chosen]
        kept[f"labels_{when}"] = shelf.labels[position].numpy()
        kept[f"ids_{when}"] = shelf.ids[position].numpy()
        if len(shelf.pictures):
            kept[f"pictures_{when}"] = shelf.pictures[position].numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **kept)
    write_atomic(Path(folder) / "lists.npz", buffer.getvalue())


def lists_figure(ctx: Context, condition: dict[str, Any], title: str, bits: int) -> Figure | None:
    """The queries of all shards whose lists suffered most, with their neighbours before and after; None without pictures.

    bits: of the codes, whose distances are numbers of bits; 0 for vectors.
    """
    shards = sorted(Path(ctx.folder).glob("[0-9]*/lists.npz")) if ctx.folder and ctx.root else []
    if not shards:
        return None
    held = [dict(np.load(path)) for path in shards]
    rows = {name: np.concatenate([h[name] for h in held]) for name in ("id", "before_value", "after_value", "distance")}
    home = [(shard, row) for shard, h in enumerate(held) for row in range(len(h["id"]))]
    items = []
    for i in _worst_first(rows)[:SHOWN]:
        shard, row = home[i]
        one = {name: values[row] for name, values in held[shard].items()}
        place = Path(ctx.folder) / "shown"

        def write(name: str, pixels: np.ndarray, place: Path = place) -> str:
            path = write_atomic(place / f"{name}.png", png(pixels.astype(np.float32) / 255))
            return path.relative_to(ctx.root).as_posix()

        key = int(one["id"])
        item: dict[str, Any] = {"id": key, "label": _named(one["label"], ctx.classes), "condition": condition}
        item |= {"distance": float(one["distance"])}
        item |= {when: write(f"{key}_{when}", one[when]) for when in ("clean", "adversarial")}
        for when in ("before", "after"):
            found = []
            for k, label in enumerate(one[f"labels_{when}"]):
                near: dict[str, Any] = {"id": int(one[f"ids_{when}"][k]), "label": _named(label, ctx.classes)}
                near |= {"relevant": _share(one["label"], label), "distance": float(one[f"far_{when}"][k])}
                if f"pictures_{when}" in one:
                    near["image"] = write(f"item_{near['id']}", one[f"pictures_{when}"][k])
                found.append(near)
            item[when] = found
        items.append(item)
    caption = (
        "Each query and the items that are found nearest to it, before and after the attack; those that suffered most "
        "first. ✓ relevant: of the query's class; ✕ not."
    )
    return Figure("neighbours", title, {"items": items, "unit": "bits" if bits else "cosine distance"}, caption)


def _worst_first(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.lexsort((rows["id"], rows["distance"], np.round(rows["after_value"] - rows["before_value"], 3)))


def _share(label: np.ndarray, other: np.ndarray) -> bool:
    return bool((label * other).sum() > 0) if label.ndim else bool(label == other)


def _named(label: np.ndarray, classes: tuple[str, ...]) -> str:
    numbers = np.flatnonzero(label).tolist() if label.ndim else [int(label)]
    return ", ".join(classes[n] if n < len(classes) else str(n) for n in numbers)
