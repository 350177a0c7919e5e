"""Folders of image files: one subfolder per class, or a labels.csv beside the files, or no labels at all."""

import csv
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from withstand.data.checks import inside
from withstand.data.compact import listed
from withstand.data.images import PhotoSource
from withstand.data.photos import SUFFIXES, Fit, Photo
from withstand.errors import bad, unknown

Classes = str | int | Sequence[str] | Mapping[str, int]
_PARTS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


def folder_source(folder: Path, split: str, fit: Fit, classes: Classes | None = None) -> PhotoSource:
    """An image folder.

    Subfolders are classes, in the order of their names (of their numbers, where all are whole numbers: "2" before
    "10"); `train`, `val` and `test` subfolders are parts. labels.csv (columns file, label) stands for subfolders. A
    flat folder without it has no labels, which serves as unfamiliar inputs.

    classes: which label each subfolder means: names in label order, a mapping from name to label, or "imagenet" where
    subfolders are named by WordNet ids (n01440764) and labels 0..999 are meant.
    Raises: BadInput for files that are no images (all are listed), subfolders without images, and unknown classes.
    """
    if (table := folder / "labels.csv").is_file():
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        photos = [Photo(str(folder / inside(r["file"], str(table)))) for r in rows if r.get("file")]
        names = classes if isinstance(classes, (list, tuple)) else None
        return listed(photos, rows, split, "label", names, str(folder), fit)
    subfolders = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    if subfolders and set(subfolders) <= {name for names in _PARTS.values() for name in names}:
        part = next((n for n in _PARTS.get(split, (split,)) if n in subfolders), None)
        if part is None:
            raise bad("split", repr(split), f"a part that {folder} has: {', '.join(subfolders)}")
        return folder_source(folder / part, split, fit, classes)
    files = image_files(folder)
    if not subfolders:
        return PhotoSource(tuple(Photo(str(folder / f)) for f in files), None, (), str(folder), fit)
    if loose := [f for f in files if len(f.parts) == 1]:
        raise bad(str(folder), f"images beside the class folders: {_some(loose)}", "subfolders only", "Move them away.")
    if empty := set(subfolders) - {f.parts[0] for f in files}:
        raise bad(str(folder), f"class folders without images: {_some(empty)}", "images in each", "Remove them.")
    order = _order(subfolders, classes, folder)
    names = {label: name for name, label in order.items()}
    count = max(max(names) + 1, classes if isinstance(classes, int) else 0)
    labels = np.array([order[f.parts[0]] for f in files], np.int64)
    every = tuple(names.get(k, str(k)) for k in range(count))
    return PhotoSource(tuple(Photo(str(folder / f)) for f in files), labels, every, str(folder), fit)


def _order(names: list[str], classes: Classes | None, folder: Path) -> dict[str, int]:
    """Subfolder -> label."""
    if classes is None or isinstance(classes, int):
        numbers = all(n.isdecimal() for n in names)
        order = {n: i for i, n in enumerate(sorted(names, key=int) if numbers else names)}
        if isinstance(classes, int) and classes < len(names):
            raise bad("classes", classes, f"at least {len(names)}, the number of subfolders of {folder}")
    elif classes == "imagenet":
        order = {w: i for i, w in enumerate(wnids())}
    elif isinstance(classes, str):
        raise bad("classes", repr(classes), '"imagenet", names in label order, or a mapping from name to label')
    else:
        order = dict(classes) if isinstance(classes, Mapping) else {str(n): i for i, n in enumerate(classes)}
    if strange := [n for n in names if n not in order]:
        raise unknown(f"classes: the subfolder {strange[0]!r} of {folder} has no label; class", strange[0], order)
    if isinstance(classes, Mapping) and any(not isinstance(v, int) or v < 0 for v in order.values()):
        raise bad("classes", dict(classes), "labels that are whole numbers >= 0")
    return order


def wnids() -> list[str]:
    """The 1,000 WordNet ids in the standard label order, from the list that timm carries."""
    found = importlib.util.find_spec("timm")
    for place in (found.submodule_search_locations if found else None) or ():
        listed = Path(place) / "data" / "_info" / "imagenet_synsets.txt"
        if listed.is_file():  # read directly, since importing timm takes seconds
            return listed.read_text(encoding="utf-8").split()
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


_BROWSERS = {"Thumbs.db", "ehthumbs.db", "desktop.ini"}  # what Windows leaves in folders of pictures


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, relative to it and sorted; hidden ones, and those of a file browser, are passed over.

    Raises: BadInput that lists the files of other kinds.
    """
    found = [(Path(place) / name).relative_to(folder) for place, _, names in os.walk(folder) for name in names]
    files = sorted(p for p in found if not any(part.startswith(".") for part in p.parts) and p.name not in _BROWSERS)
    if strange := [f for f in files if f.suffix.lower() not in SUFFIXES]:
        allowed = ", ".join(sorted(SUFFIXES))
        raise bad(str(folder), f"files that are no images: {_some(strange)}", allowed, "Move them out of the folder.")
    return files


def _some(names: Iterable[object]) -> str:
    listed = sorted(map(str, names))
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
