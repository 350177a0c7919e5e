"""Edits of one image per second: withstand beside the bare inpainting of opencv, which is the limit for every edit that
takes the object out, and beside the same edits written straight down with PIL and numpy.

Photographs at 224 pixels, one thread, masks found beforehand (and given to all); processor time, for each photograph the
best of several alternating rounds. The straight version crops, resizes, turns and pastes with PIL over the same inpainted
ground and multiplies the spectrum with numpy; it meets no rate, mixes the background into the object's edge, resamples
once for each edit and checks nothing.
Run: WITHSTAND_DATA=... python benchmarks/editing.py [OUT.json]
"""

import io
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from withstand.editing import GrabCut, ObjectEditor
from withstand.editing.inpaint import dilated
from withstand.editing.masks import fault
from withstand.editing.transforms import box
from withstand.errors import bad

ROUNDS, PHOTOS, SIZE = 5, 16, 224
CHAIN: list[tuple[str, dict[str, Any]]] = [
    ("size", {"rate": 0.05}),
    ("direction", {"degrees": 45}),
    ("position", {"at": "random"}),
    ("background", {"complexity": 20}),
]
EDITS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "identity": [("identity", {})],
    "background": [CHAIN[3]],
    "size": [CHAIN[0]],
    "direction": [("size", {"rate": 0.05}), CHAIN[1]],
    "position": [("size", {"rate": 0.05}), CHAIN[2]],
    "all four": CHAIN,
}


def main(out: Path) -> dict:
    """Measure, print the table, write it to `out` as JSON and return it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photos = _photos()
    editor = ObjectEditor()
    table = {}
    for name, steps in EDITS.items():
        sides = (
            lambda x, mask, steps=steps: editor.edits(x, mask, steps),
            lambda x, mask: _inpainted(_bytes(x), mask.numpy()),
            lambda x, mask, steps=steps: _straight(_bytes(x), mask.numpy(), steps),
        )
        skipped = sum(editor.edits(x, mask, steps).skipped for x, mask in photos)
        seconds = np.zeros(3)
        for x, mask in photos:
            seconds += np.min([[_seconds(side, x, mask) for side in sides] for _ in range(ROUNDS)], 0)
        ours, limit, straight = (seconds / len(photos) * 1000).tolist()
        table[name] = {
            "images per second": round(1000 / ours, 1),
            "ms": round(ours, 2),
            "bare inpainting ms": round(limit, 2),
            "times the limit": round(ours / limit, 2),
            "PIL and numpy ms": round(straight, 2),
            "faster than them": round(straight / ours, 2),
            "skipped": skipped,
        }
        print(f"{name:12}" + "  ".join(f"{k} {v}" for k, v in table[name].items()))
    finding = [float(_seconds(lambda x, _: GrabCut()(x), x, mask)) for x, mask in photos[:4]]
    found = {
        "benchmark": "editing",
        "versions": {p: version(p) for p in ("withstand", "torch", "numpy", "pillow")} | {"opencv": cv2.__version__},
        "python": platform.python_version(),
        "threads": {"cpus": os.cpu_count(), "torch": torch.get_num_threads(), "opencv": cv2.getNumThreads()},
        "rounds": ROUNDS,
        "photographs": len(photos),
        "size": SIZE,
        "edits": table,
        "finding an object by GrabCut, ms": round(1000 * sum(finding) / len(finding), 1),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _seconds(work: Callable[..., object], x: Tensor, mask: Tensor) -> float:
    start = time.process_time()
    work(x, mask)
    return time.process_time() - start


def _bytes(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.mul(255).round().byte().permute(1, 2, 0).numpy())


def _inpainted(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return cv2.inpaint(pixels, dilated(mask, 3).astype(np.uint8), 3, cv2.INPAINT_TELEA)


def _straight(pixels: np.ndarray, mask: np.ndarray, steps: list[tuple[str, dict[str, Any]]]) -> np.ndarray:
    """The steps as one would write them down without further thought."""
    scene = _inpainted(pixels, mask)
    top, left, bottom, right = box(mask)
    thing = Image.fromarray(pixels[top:bottom, left:right])
    where = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
    row, column = (top + bottom) / 2, (left + right) / 2
    for kind, params in steps:
        if kind == "size":
            scale = (params["rate"] / mask.mean()) ** 0.5
            size = max(1, round(thing.width * scale)), max(1, round(thing.height * scale))
            thing, where = thing.resize(size, Image.Resampling.BILINEAR), where.resize(size, Image.Resampling.BILINEAR)
        elif kind == "direction":
            thing, where = (
                im.rotate(params["degrees"], Image.Resampling.BILINEAR, expand=True) for im in (thing, where)
            )
        elif kind == "position":
            row, column = SIZE / 2, SIZE / 2
        elif kind == "background":
            f = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE))
            spectrum = (
                np.fft.fft2(scene / 255.0, axes=(0, 1)) * ((1 + f / 0.05) ** (params["complexity"] / 40))[..., None]
            )
            scene = (np.fft.ifft2(spectrum, axes=(0, 1)).real.clip(0, 1) * 255).round().astype(np.uint8)
    made = Image.fromarray(scene)
    made.paste(thing, (round(column - thing.width / 2), round(row - thing.height / 2)), where)
    return np.asarray(made)


def _photos() -> list[tuple[Tensor, Tensor]]:
    """Photographs of the ImageNet samples, the middle square at 224 pixels, in which GrabCut finds an object."""
    path = Path(os.environ.get("WITHSTAND_DATA", "data")) / "vision" / "imagenet_samples.zip"
    if not path.is_file():
        raise bad("WITHSTAND_DATA", f"no {path}", "the folder of the data sets")
    found: list[tuple[Tensor, Tensor]] = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg"))[::40]:
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            photo = photo.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))
            x = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1).float() / 255
            mask = GrabCut()(x)
            if not fault(mask):
                found.append((x, mask))
            if len(found) == PHOTOS:
                break
    return found


if __name__ == "__main__":
    default = Path(__file__).parent / "results" / "editing.json"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
