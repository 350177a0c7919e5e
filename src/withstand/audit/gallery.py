"""The worst adversarial images of a run: kept shard by shard in small files, shown as PNGs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
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
    distance: Tensor,
    broken: Tensor,
) -> None:
    """Keep the worst broken images of a shard in its folder, if it has one.

    x, x_adv: [N, C, H, W] with 1 or 3 channels (anything else is no picture and is not kept). before, after: (confidence,
    class) at both points. broken: bool [N], right before and wrong after.
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
        "distance": distance,
    }
    rows = {name: value[broken].cpu().numpy() for name, value in facts.items()}
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

    Worst is what the model gets wrong with most confidence (to the percent), then by the smallest change.
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
            path = write_atomic(place / f"{int(rows['id'][i])}_{name}.png", png(pixels))
            files[name] = path.relative_to(ctx.root).as_posix()
        items.append({name: value[i].item() for name, value in rows.items()} | {"condition": condition} | files)
    caption = (
        "The model was right on the clean image and is wrong on the other, which looks the same; the most confident errors "
        f"first, then the smallest changes. Differences are magnified {magnified:g} times around grey."
    )
    return Figure("gallery", title, {"magnified": magnified, "items": items}, caption)


def _worst_first(rows: dict[str, np.ndarray]) -> np.ndarray:
    return np.lexsort((rows["id"], rows["distance"], -np.round(rows["adversarial_confidence"], 2)))


def png(pixels: np.ndarray) -> bytes:
    """An image [C, H, W] in [0, 1] (clipped to it) as a PNG of its own size."""
    from PIL import Image

    levels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
