"""Corrupted test sets on the disk, in the layouts of CIFAR-10-C and ImageNet-C, made from clean images."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from withstand.corruptions.apply import corrupt
from withstand.corruptions.frost import Textures, textures
from withstand.corruptions.tables import COMMON, SIDES, Preset, corruption_names
from withstand.data.shift.disk import MANIFEST, SEVERITIES, survey
from withstand.data.shift.table import benchmark
from withstand.data.shift.view import View
from withstand.errors import BadInput, bad, unknown
from withstand.files import lock, write_json
from withstand.protocols import Dataset

Layout = Literal["cifar10-c", "cifar100-c", "imagenet-c"]
QUALITY = 85
"""Of the JPEG files of ImageNet-C."""
BLOCK = 64
_LOG = ".done"
"""In a folder of files: one line for each finished block."""


def make_corrupted(
    layout: Layout,
    source: Dataset | str | Path,
    out: str | Path,
    *,
    kinds: Sequence[str] = COMMON,
    limit: int | None = None,
    seed: int = 0,
    frost_textures: Textures = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write clean images under every kind of corruption at all five severities, for `withstand shift` and other tools.

    layout: "cifar10-c" and "cifar100-c" make KIND.npy, uint8 [5 n, 32, 32, 3], severity after severity, and labels.npy;
    their source is a data set of 32 x 32 colour images, e.g. `load_data("cifar10")`. "imagenet-c" makes
    KIND/SEVERITY/WNID/NAME.JPEG of quality 85, from the folder that holds ImageNet's validation part (a part of it will
    do): shorter side to 256 pixels, the centre of 224. limit: the first so many images. frost_textures: as for `corrupt`;
    without them the frost is procedural. report: told of the kind, images done, images in all.

    A file `withstand.json` says that the set was made here and how; `withstand shift` repeats it beside its numbers. The
    same call goes on where an earlier one was stopped; other settings are refused.

    Raises: BadInput, before anything is written, for unknown kinds, images of another size, frost textures that cannot be
    used, and a folder with other files.

    Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    2019, arXiv 1903.12261.
    """
    if layout not in ("cifar10-c", "cifar100-c", "imagenet-c"):
        raise unknown("layout", layout, ("cifar10-c", "cifar100-c", "imagenet-c"))
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds or [""]:
        if kind not in corruption_names("all"):
            raise unknown("corruption", kind, corruption_names("all"))
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise bad("limit", limit, "a whole number >= 1")
    if frost_textures is not None:
        if "frost" not in kinds:
            raise bad("frost_textures", f"textures for {', '.join(kinds)}", "textures where frost is made")
        preset: Preset = "imagenet" if layout == "imagenet-c" else "cifar"
        textures(frost_textures, preset, SIDES[preset], SIDES[preset])  # which refuses what cannot be used
    images = _Photographs(source, limit) if layout == "imagenet-c" else _Thumbnails(source, layout, limit)
    manifest = {
        "withstand": metadata.version("withstand"),
        "layout": layout,
        "source": images.source,
        "images": len(images),
        "kinds": kinds,
        "seed": seed,
        "frost": "procedural" if frost_textures is None else "photographs",
    }
    place = Path(out)
    if place.is_dir() and not (place / MANIFEST).is_file() and [p for p in place.iterdir() if p.name != ".lock"]:
        raise bad("out", f"{place}, which holds other files", "a new folder, or that of an unfinished set")
    with lock(place):
        _same(place / MANIFEST, manifest)
        for kind in kinds:
            ice = frost_textures if kind == "frost" else None
            images.write(place, kind, seed, ice, report or (lambda *_: None))
    return place


def _same(file: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or refuse the folder of another set."""
    if not file.is_file():
        write_json(file, manifest)
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    if differing := [k for k in manifest if found.get(k) != manifest[k]]:
        key = differing[0]
        raise BadInput(
            f"out: {file.parent} holds another set ({key}: there {str(found.get(key))[:80]}, now "
            f"{str(manifest[key])[:80]}); allowed: the same settings, which would continue, or a new folder."
        )


class _Thumbnails:
    """Images of a data set, as arrays."""

    def __init__(self, source: Any, layout: str, limit: int | None) -> None:
        if not isinstance(source, Dataset):
            raise bad("source", type(source).__name__, f'a data set for {layout}, e.g. load_data("cifar10")')
        classes = benchmark(layout).logits
        if source.space.shape != (3, 32, 32) or len(source.classes) != classes:
            got = f"{source.name}: images {list(source.space.shape or ())} of {len(source.classes)} classes"
            raise bad("source", got, f"colour images of 32 x 32 pixels and {classes} classes")
        self.data, self.n = source, min(len(source), limit or len(source))
        self.source = f"{source.name} {source.fingerprint()}"

    def __len__(self) -> int:
        return self.n

    def write(self, place: Path, kind: str, seed: int, ice: Textures, report: Callable[[str, int, int], None]) -> None:
        """place/KIND.npy, whole or not at all, and the labels five times, as published."""
        final, temporary = place / f"{kind}.npy", place / f".{kind}.part"
        if not (place / "labels.npy").is_file():
            self._labels(place)
        if final.is_file():
            return
        n = self.n
        rows = np.lib.format.open_memmap(temporary, "w+", np.uint8, (5 * n, 32, 32, 3))
        for start in range(0, n, 1000):
            batch = self.data.batch(range(start, min(start + 1000, n)))
            x = (batch.x * 255).round().to(torch.uint8)
            for severity in SEVERITIES:
                made = corrupt(x, kind, severity, seed, batch.ids, "cifar", frost_textures=ice)
                at = n * (severity - 1) + start
                rows[at : at + len(made)] = made.permute(0, 2, 3, 1).numpy()
            report(kind, min(start + 1000, n), n)
        rows.flush()
        del rows
        os.replace(temporary, final)

    def _labels(self, place: Path) -> None:
        parts = [self.data.batch(range(s, min(s + 1000, self.n))).y for s in range(0, self.n, 1000)]
        y = torch.cat([part for part in parts if part is not None]).numpy().astype(np.uint8)
        with open(place / ".labels.part", "wb") as file:
            np.save(file, np.tile(y, 5))
        os.replace(place / ".labels.part", place / "labels.npy")


class _Photographs:
    """ImageNet's validation part, as JPEG files."""

    def __init__(self, source: Any, limit: int | None) -> None:
        if not isinstance(source, (str, Path)):
            raise bad("source", type(source).__name__, "the folder that holds ImageNet's validation part")
        stock = survey(benchmark("imagenet"), source, partial=True)
        self.listing = stock.cells[""].listing()
        self.names = [f"{os.path.splitext(name)[0]}.JPEG" for name in self.listing.names]
        self.n = min(len(self.listing), limit or len(self.listing))
        self.source = self.listing.digest

    def __len__(self) -> int:
        return self.n

    def write(self, place: Path, kind: str, seed: int, ice: Textures, report: Callable[[str, int, int], None]) -> None:
        """place/KIND/SEVERITY/WNID/NAME.JPEG, block by block; a block that is not in the log is written again."""
        log = place / _LOG
        done = set(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else set()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, log.open("a", encoding="utf-8") as finished:
            for start in range(0, self.n, BLOCK):
                if f"{kind} {start}" in done:
                    continue
                rows = range(start, min(start + BLOCK, self.n))
                pixels = np.stack(list(pool.map(lambda i: self.listing.pixels(i, View(), "centre"), rows)))
                x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
                for severity, made in self._severities(x, kind, seed, torch.tensor(rows), ice):
                    folder = place / kind / str(severity)
                    for i in rows:
                        (folder / self.names[i]).parent.mkdir(parents=True, exist_ok=True)
                    files = [folder / self.names[i] for i in rows]
                    list(pool.map(_save, made.permute(0, 2, 3, 1).numpy(), files))
                finished.write(f"{kind} {start}\n")
                finished.flush()
                os.fsync(finished.fileno())
                report(kind, rows[-1] + 1, self.n)

    @staticmethod
    def _severities(x: Tensor, kind: str, seed: int, ids: Tensor, ice: Textures) -> Iterator[tuple[int, Tensor]]:
        for severity in SEVERITIES:
            yield severity, corrupt(x, kind, severity, seed, ids, "imagenet", frost_textures=ice)


def _save(pixels: np.ndarray, file: Path) -> None:
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
