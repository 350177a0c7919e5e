"""`load_data`: a data set by name or path."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from withstand.data import catalogue
from withstand.data.arrays import array_source, from_arrays, npz_arrays, npz_source
from withstand.data.catalogue import Entry
from withstand.data.compact import omniglot, zip_source
from withstand.data.folders import Classes, folder_source
from withstand.data.halves import HALVES, halved
from withstand.data.images import ArraySource, Images, PhotoSource
from withstand.data.photos import Fit
from withstand.data.series import Scaling, Series, archive_source, from_series, series_source
from withstand.errors import BadInput, Unavailable, bad
from withstand.protocols import Dataset, Target
from withstand.random import Rows


def load_data(
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    seed: int | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    classes: Classes | None = None,
    layout: str | None = None,
    download: bool = False,
    series: Scaling | None = None,
) -> Images:
    """A data set by name (`withstand list data`), or from an image folder, an `.npz` (x, y) or a `.zip` of either.

    >>> load_data("digits", limit=100, seed=0)
    <digits: 100 images [1, 8, 8], 10 classes>
    >>> load_data("SyntheticControl", split="train").batch([0]).x.shape  # doctest: +SKIP
    torch.Size([1, 1, 60])

    Time series come as [N, C, T], every channel of every series with mean 0 and deviation 1 (`from_series` for others).

    root: folder of the named sets; default $WITHSTAND_DATA, else ~/.cache/withstand/data. A complete public layout is
    preferred to a compact file. split: "train" or "test"; sets of one part give all of it for "test". Or, for zero-shot
    experiments, half of the classes: "seen", the first half in label order, and "unseen", the others; of the whole of a set
    of one part, else of the training part and of the test part (which must then have the same classes).
    limit: use so many, from the start of the split; with a seed, from a random order in which each class keeps its share.
    ids are always positions in the whole split.
    size: side in pixels; needed where photographs differ in shape. channels: 1 or 3, to change between grey and RGB.
    classes: names or number of classes of an `.npz`; for a folder, see `folder_source`. layout: "nhwc" or "nchw" for an
    `.npz` whose shape leaves it open. download: let torchvision fetch a public set that is missing.
    series: the x of an `.npz` is time series [N, T] or [N, C, T], "normalised" as above or "raw"; None: it is images,
    but for [N, T], which can only be series.

    Raises: BadInput before any work for a set that is not there (saying where it was looked for) and for bad data:
    NaN, Inf or out-of-range pixels, wrong ranks, bad labels, damaged files, files that are no images, an empty set.
    """
    fit = Fit(size, channels or 3)
    path = Path(name_or_path).expanduser()
    try:
        entry = catalogue.find(str(name_or_path))
    except BadInput as error:
        if not path.exists():
            if "/" in str(name_or_path) or path.suffix:
                raise bad(
                    "data", f"{name_or_path}, which is no file or folder", "one that is, or a named set"
                ) from None
            raise BadInput(f"{error} (nor is there a file or folder {str(path)!r})") from None
        if series not in (None, *get_args(Scaling)):
            raise bad("series", repr(series), '"normalised", "raw" or None') from None
        if path.suffix.lower() == ".npz" and path.is_file():
            return _npz(path, split, limit, seed, size, channels, classes, layout, series)
        if series is not None:
            raise bad("series", repr(series), f"None for {path}", "Own series come as an .npz.") from None
        source = halved(_from_path(path, HALVES.get(split, split), fit, channels, classes), split, str(path))
        return Images.of(path.stem if path.is_file() else path.resolve().name, source, limit, seed, str(path))
    if series is not None and not entry.series:
        raise bad("series", repr(series), f"None for {entry.name}, a set of images")
    if series == "raw":
        raise bad("series", repr(series), f"None or 'normalised' for {entry.name}")
    for argument, value in (("classes", classes), ("layout", layout)):
        if value is not None:
            raise bad(argument, repr(value), f"None for a named set ({entry.name} has its own)")
    if entry.series:
        return _series(entry, root, split, limit, seed, size=size, channels=channels, download=download or None)
    source, where = _named(entry, root, split, size, channels, download)
    return Images.of(entry.name, halved(source, split, entry.name), limit, seed, where)


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Where named sets lie: the argument, else $WITHSTAND_DATA, else ~/.cache/withstand/data."""
    return Path(root or os.environ.get("WITHSTAND_DATA") or "~/.cache/withstand/data").expanduser()


def _npz(
    path: Path,
    split: str,
    limit: int | None,
    seed: int | None,
    size: int | None,
    channels: int | None,
    classes: Any,
    layout: str | None,
    series: Scaling | None,
) -> Images:
    x, y, classes = npz_arrays(path, HALVES.get(split, split), classes=classes)
    if series is None and x.ndim != 2:
        whole = array_source(x, y, path.name, classes, layout, file=path, size=size, channels=channels)
        source = halved(whole, split, path.name)
        try:
            return Images.of(path.stem, source, limit, seed, str(path))
        except BadInput as error:
            if x.ndim != 3:
                raise
            raise BadInput(f"{error} If these are time series, say series='normalised' or 'raw' (--series).") from None
    for argument, value in (("size", size), ("channels", channels), ("layout", layout)):
        if value is not None:
            raise bad(argument, repr(value), f"nothing for the time series of {path.name}")
    found = series_source(x, y, path.name, classes, normalise=series != "raw")
    return Series.of(path.stem, halved(found, split, path.name), limit, seed, str(path))


def _from_path(path: Path, split: str, fit: Fit, channels: int | None, classes: Any) -> ArraySource | PhotoSource:
    if path.is_dir():
        return folder_source(path, split, fit, classes)
    if path.suffix.lower() == ".zip":
        return zip_source(path, split, "label", fit.size, channels)
    raise bad("data", f"the file {path}", "a folder of images, an .npz with x and y, or a .zip with labels.csv")


def _named(
    entry: Entry,
    root: str | os.PathLike[str] | None,
    split: str,
    size: int | None,
    channels: int | None,
    download: bool,
) -> tuple[ArraySource | PhotoSource, str]:
    whole = "all" in entry.compact and not entry.public
    part = "all" if whole and split in HALVES else HALVES.get(split, split)
    _check_split(entry, split, ("all", "test") if whole else ("test", "train"))
    if entry.name == "digits":
        return _digits(part, size, channels), "scikit-learn"
    size = size or entry.size
    base = data_root(root)
    looked = list(_places(entry, base, split))
    if download and not any(p.exists() for p, _ in looked):
        _download(entry, base, split)
    for path, public in looked:
        if path.exists() and public:
            from withstand.data.public import public_source

            return public_source(entry.name, path, part, size, channels), str(path)
        if path.exists():
            return _compact(entry, path, part, size, channels), str(path)
    raise BadInput(_missing(entry, split, [p for p, _ in looked], base))


def _series(entry: Entry, root: Any, split: str, limit: int | None, seed: int | None, **unfit: Any) -> Series:
    for argument, value in unfit.items():
        if value is not None:
            raise bad(argument, repr(value), f"nothing for the time series of {entry.name}")
    _check_split(entry, split, ("test", "train"))
    looked = [path for path, _ in _places(entry, data_root(root), split)]
    for path in filter(Path.exists, looked):
        source = archive_source(path, entry.series, HALVES.get(split, split))
        return Series.of(entry.name, halved(source, split, entry.name), limit, seed, str(path))
    raise BadInput(_missing(entry, split, looked, data_root(root)))


def _check_split(entry: Entry, split: str, parts: tuple[str, ...]) -> None:
    if split not in (*parts, *HALVES):
        allowed = " or ".join(f'"{p}"' for p in parts) + f" for {entry.name}"
        raise bad("split", repr(split), f'{allowed}, or half of its classes: "seen" or "unseen"')


def _places(entry: Entry, base: Path, split: str) -> list[tuple[Path, bool]]:
    """Where the set may lie, and whether that is its public layout."""
    part = HALVES.get(split, split)
    places = [(base / entry.public.format(split=part), True)] if entry.public else []
    if file := entry.compact.get(part) or (entry.compact.get("all") if split != "train" else None):
        places += [(base / file, False), (base / Path(file).name, False)]
    return places


def _compact(entry: Entry, path: Path, split: str, size: int | None, channels: int | None) -> ArraySource | PhotoSource:
    if entry.name == "omniglot":
        return omniglot(path, size, channels)
    if path.suffix == ".npz":
        return npz_source(path, split, y=entry.label, size=size, channels=channels)
    return zip_source(path, split, entry.label, size, channels)


def _digits(split: str, size: int | None, channels: int | None) -> ArraySource:
    """scikit-learn's 1,797 digits, pixels 0..16. The split is fixed: 1,297 and 500, drawn once by the seed 0."""
    from sklearn.datasets import load_digits

    held: Any = load_digits()
    order = torch.argsort(Rows.count(0, 1797).bits((), "digits split"), stable=True).numpy()
    part = np.sort(order[:1297] if split == "train" else order[1297:])
    x = held.images[part].astype(np.uint8)[:, None]
    names = tuple(map(str, range(10)))
    return ArraySource(x, held.target[part].astype(np.int64), names, "digits", top=16, size=size, channels=channels)


def _download(entry: Entry, base: Path, split: str) -> None:
    if not entry.torchvision:
        raise bad("download", True, f"False for {entry.name}, which no downloader offers", "Copy its files by hand.")
    import torchvision.datasets

    train = HALVES.get(split, split) == "train"
    options: dict[str, Any] = {"train": train}
    if entry.torchvision in ("SVHN", "GTSRB", "DTD"):
        options = {"split": "train" if train else "test"}
    try:
        getattr(torchvision.datasets, entry.torchvision)(base, download=True, **options)
    except (OSError, RuntimeError, ImportError) as error:
        raise Unavailable(
            f"{entry.name}: the download failed: {error}. Try again, or copy the files to {base}."
        ) from error


def _missing(entry: Entry, split: str, looked: list[Path], base: Path) -> str:
    get = "pass download=True (--download) to fetch it, or " if entry.torchvision else ""
    paths = "; ".join(map(str, looked))
    return (
        f"data: {entry.name} ({split}) is not here. Looked at: {paths}. To get it, {get}copy its files there; "
        f"for another folder pass root (--root) or set WITHSTAND_DATA (now {base})."
    )


def as_dataset(data: Any, models: Iterable[Target] = ()) -> Dataset:
    """A data set from anything that can stand for one: a data set, what `load_data` reads, or a pair (x, y) of arrays.

    models: where one of them takes series, arrays [N, C, T] are series.

    Raises: BadInput for anything else, and for what `load_data` and `from_arrays` refuse.
    """
    if isinstance(data, (str, os.PathLike)):
        return load_data(data, series=scaling_for(data, models))
    if isinstance(data, tuple) and len(data) == 2:
        return from_series(*data) if _series_models(models) else from_arrays(*data)
    if isinstance(data, Dataset):
        return data
    raise bad(
        "data", type(data).__name__, "a data set, a name or path that load_data reads, or a pair (x, y) of arrays"
    )


def scaling_for(data: str | os.PathLike[str], models: Iterable[Target]) -> Scaling | None:
    """What `load_data` has to be told about a file that these models are to read: whether it holds series."""
    return "normalised" if str(data).lower().endswith(".npz") and _series_models(models) else None


def _series_models(models: Iterable[Target]) -> bool:
    return any(model.space.shape is not None and len(model.space.shape) == 2 for model in models)
