"""The worst adversarial images of a run: kept shard by shard in small files, shown as PNGs."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.files import write_atomic
from withstand.protocols import Context, Figure

SHOWN = 12
"""Images in a gallery."""
_KEPT = 1 << 18
"""Values of images that a shard keeps at most, beyond two images."""


def keep_worst(
    folder: Any,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    ids: Tensor,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    distance: Tensor | None,
    broken: Tensor,
    edits: Sequence[str] | None = None,
) -> None:
    """Keep the worst broken images of a shard in its folder, if it has one.

    x, x_adv: [N, C, H, W] with 1 or 3 channels (anything else is no picture and is not kept). before, after: (confidence,
    class) at both points. broken: bool [N], right before and wrong after. edits: what was done to each image, where that
    differs; the worst of every kind are then kept in turn.
    """
    if folder is None or x.dim() != 4 or x.shape[1] not in (1, 3) or not bool(broken.any()):
        return
    facts = {
        "id": ids,
        "label": y,
        "clean_confidence": before[0],
        "clean_prediction": before[1],
        "adversarial_confidence": after[0],
        "adversarial_prediction": after[1],
        "distance": torch.full((len(x),), torch.nan) if distance is None else distance,
    }
    rows = {name: value[broken.to(value.device)].cpu().numpy() for name, value in facts.items()}
    if edits is not None:
        rows["edit"] = np.array(edits)[broken.cpu().numpy()]
    order = _worst_first(rows)[: max(2, min(SHOWN, _KEPT // x[0].numel()))]
    chosen = broken.nonzero().flatten().cpu()[order.copy()].to(x.device)
    clean, change = x[chosen], x_adv[chosen] - x[chosen]
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        "clean": clean.cpu().numpy().astype(np.float16),
        "change": change.cpu().numpy().astype(np.float16),  # small numbers keep their digits, which a sum would lose
        **{name: value[order] for name, value in rows.items()},
    }
    np.savez_compressed(buffer, **arrays)
    write_atomic(Path(folder) / "worst.npz", buffer.getvalue())


def gallery(ctx: Context, condition: dict[str, Any], title: str) -> Figure | None:
    """The worst images of all shards as a figure, its PNGs written under the run folder; None where nothing broke.

    Worst is what the model gets wrong with most confidence (to the percent), then by the smallest change; of several edits
    the worst of each come first.
    """
    shards = sorted(Path(ctx.folder).glob("[0-9]*/worst.npz")) if ctx.folder and ctx.root else []
    if not shards:
        return None
    facts: list[dict[str, np.ndarray]] = []
    for path in shards:
        with np.load(path) as held:
            facts.append({name: held[name] for name in held.files if name not in ("clean", "change")})
    rows = {name: np.concatenate([f[name] for f in facts]) for name in facts[0]}
    home = [(shard, row) for shard, f in enumerate(facts) for row in range(len(f["id"]))]
    worst = _worst_first(rows)[:SHOWN]
    pairs = []
    for i in worst:
        shard, row = home[i]
        with np.load(shards[shard]) as held:
            pairs.append((held["clean"][row].astype(np.float32), held["change"][row].astype(np.float32)))
    largest = max(float(np.abs(change).max()) for _, change in pairs)
    magnified = float(f"{0.5 / max(largest, 1e-6):.2g}")
    place = Path(ctx.folder) / "shown"
    items = []
    for i, (clean, change) in zip(worst, pairs):
        images = {"clean": clean, "adversarial": clean + change, "difference": 0.5 + magnified * change}
        files = {}
        for name, pixels in images.items():
            edit = f"_{rows['edit'][i]}" if "edit" in rows else ""
            path = write_atomic(place / f"{int(rows['id'][i])}{edit}_{name}.png", png(pixels))
            files[name] = path.relative_to(ctx.root).as_posix()
        said = {name: value[i].item() for name, value in rows.items()}
        done = {"edit": said.pop("edit")} if "edit" in said else {}
        said["distance"] = None if np.isnan(said["distance"]) else said["distance"]
        items.append(said | {"condition": condition | done} | files)
    if "edit" in rows:
        caption = (
            "The model was right on the clean image and is wrong on its edit; the most confident errors of every edit."
        )
    else:
        caption = "The model was right on the clean image and is wrong on the other, which looks the same; the most "
        caption += "confident errors first, then the smallest changes."
    shown = "Differences are " + ("shown" if magnified <= 1 else f"magnified {magnified:g} times") + " around grey."
    data = {"magnified": magnified, "items": items} | ({"after": "edited"} if "edit" in rows else {})
    return Figure("gallery", title, data, f"{caption} {shown}")


def _worst_first(rows: dict[str, np.ndarray]) -> np.ndarray:
    order = np.lexsort((rows["id"], rows["distance"], -np.round(rows["adversarial_confidence"], 2)))
    if "edit" not in rows:
        return order
    turn: dict[str, int] = {}
    place = []
    for edit in rows["edit"][order].tolist():
        place.append(turn.get(edit, 0))
        turn[edit] = place[-1] + 1
    return order[np.argsort(place, kind="stable")]


def png(pixels: np.ndarray) -> bytes:
    """An image [C, H, W] in [0, 1] (clipped to it) as a PNG of its own size."""
    from PIL import Image

    levels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
