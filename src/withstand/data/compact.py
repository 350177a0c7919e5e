"""The compact files of data/README.md: lossless strips of small images, zips of photographs with labels.csv."""

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from withstand.data.arrays import Npz, array_source
from withstand.data.checks import check_labels, inside
from withstand.data.images import ArraySource, PhotoSource
from withstand.data.photos import Fit, Photo, each
from withstand.errors import BadInput, bad


def zip_source(path: Path, split: str, label: str, size: int | None, channels: int | None) -> ArraySource | PhotoSource:
    """A zip of either kind. split: "train", "test", or "all" for files of one part.

    Raises: BadInput for a damaged zip, for members that point outside, and for a zip that holds neither kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [inside(n, str(path)) for n in archive.namelist()]
            if "meta.json" in names:
                return strips(archive, path, split, size, channels)
            if "labels.csv" in names:
                rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"), "utf-8")))
                classes = _class_names(archive, names, rows, label)
                photos = [Photo(inside(r["file"], str(path)), str(path)) for r in rows if r.get("file")]
                return listed(photos, rows, split, label, classes, path.name, Fit(size, channels or 3), path)
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a whole data file ({type(error).__name__}: {error}). Copy it again.") from None
    raise bad(
        str(path), "a zip without labels.csv or meta.json", "photographs with labels.csv, or strips with meta.json"
    )


def strips(archive: zipfile.ZipFile, path: Path, split: str, size: int | None, channels: int | None) -> ArraySource:
    """Lossless WebP strips, images stacked from top to bottom; `is_test.npy` splits where it is present."""
    meta = json.load(archive.open("meta.json"))
    names = sorted(n for n in archive.namelist() if n.endswith(".webp"))
    if not names:
        raise BadInput(f"{path}: no strips of images in it. Copy it again.")
    h, w, c = meta["tile"]

    def pixels(i: int) -> np.ndarray:
        image = Image.open(io.BytesIO(Photo(names[i], str(path)).read()))
        strip = np.asarray(image.convert("RGB" if c == 3 else "L"))
        return strip.reshape(-1, h, w, c)

    try:
        x = np.concatenate(each(pixels, np.arange(len(names))))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: a strip of images is damaged ({error}). Copy it again.") from None
    y = np.load(io.BytesIO(archive.read("labels.npy")))
    if "is_test.npy" in archive.namelist() and split != "all":
        part = np.load(io.BytesIO(archive.read("is_test.npy"))) == (split == "test")
        x, y = x[part], y[part]
    return array_source(x, y, path.name, meta["classes"], "nhwc", file=path, size=size, channels=channels)


def listed(
    photos: Sequence[Photo],
    rows: Sequence[Mapping[str, str]],
    split: str,
    label: str,
    classes: Sequence[str] | None,
    what: str,
    fit: Fit,
    archive: Path | None = None,
) -> PhotoSource:
    """Photographs with the rows of their labels.csv: whole numbers, and perhaps `split` (train, val, test). label: the
    column; of several, joined by commas, each holds 0 or 1 for a class of its name."""
    columns = label.split(",")
    if len(photos) != len(rows) or not all(c in r for r in rows for c in columns):
        got = f"the columns {', '.join(rows[0]) if rows else '(none)'}"
        raise bad(f"{what}: labels.csv", got, f"file and {label} in each row")
    if rows and "split" in rows[0] and split != "all":
        wanted = {"test": ("test", "val")}.get(split, (split,))
        kept = [i for i, r in enumerate(rows) if r["split"] in wanted]
        photos, rows = [photos[i] for i in kept], [rows[i] for i in kept]
    try:
        y = np.array([[int(r[c]) for c in columns] for r in rows], np.int64).reshape(-1, len(columns))
    except ValueError as error:
        raise bad(f"{what}: labels.csv: {label}", str(error), "whole numbers") from None
    if len(columns) > 1:
        if not np.isin(y, (0, 1)).all():
            raise bad(
                f"{what}: labels.csv: {label}", f"the number {y[~np.isin(y, (0, 1))][0]}", "0 or 1 in each column"
            )
        y, classes = y > 0, columns
    else:
        y = y[:, 0]
    labels, names = check_labels(y, len(photos), classes, what)
    return PhotoSource(tuple(photos), labels, names, what, fit, archive)


def omniglot(path: Path, size: int | None, channels: int | None) -> ArraySource:
    """105x105 drawings, eight pixels to the byte; ink = 1."""
    arrays = Npz(path)
    x = np.unpackbits(arrays["bits"], axis=-1)[..., :105].astype(bool)
    names = [str(c) for c in arrays["characters"]]
    return array_source(x, arrays["char"], path.name, names, file=path, size=size, channels=channels)


def _class_names(
    archive: zipfile.ZipFile, names: Iterable[str], rows: Sequence[Mapping[str, str]], label: str
) -> Sequence[str] | None:
    """From classes.csv, which lists all classes, or from the rows themselves; None where they have no names."""
    if "classes.csv" in names:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("classes.csv"), "utf-8")))
    if not rows or "name" not in rows[0] or label not in rows[0]:
        return None
    named = {int(r[label]): r["name"] for r in rows}
    return [named.get(k, str(k)) for k in range(max(named) + 1)]
