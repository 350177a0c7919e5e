"""The public layouts: what torchvision's downloaders leave behind, and the folders of Tiny ImageNet and ImageNet."""

import csv
import gzip
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from withstand.data.arrays import array_source
from withstand.data.checks import inside
from withstand.data.folders import folder_source
from withstand.data.images import ArraySource, PhotoSource
from withstand.data.photos import Fit, Photo
from withstand.errors import BadInput

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def public_source(
    name: str, place: Path, split: str, size: int | None, channels: int | None
) -> ArraySource | PhotoSource:
    """The set `name` from its public layout at `place`.

    Raises: BadInput that names the file that is missing or damaged.
    """
    try:
        return _read(
            name, place, split, Fit(size, channels or 3, stretch=name == "gtsrb"), size=size, channels=channels
        )
    except BadInput:
        raise
    except (KeyError, ValueError, IndexError, TypeError) as error:  # from tables that are not what they should be
        raise BadInput(f"{place}: not the layout of {name} ({type(error).__name__}: {error}). Copy it again.") from None


def _read(name: str, place: Path, split: str, fit: Fit, **arrays: Any) -> ArraySource | PhotoSource:
    match name:
        case "mnist" | "fashion-mnist":
            return _idx(place, split, CLOTHES if name == "fashion-mnist" else "0123456789", arrays)
        case "cifar10" | "cifar100":
            return _cifar(place, split, arrays)
        case "svhn":
            return _svhn(place, arrays)
        case "gtsrb":
            return _gtsrb(place, split, fit)
        case "tiny-imagenet":
            return _tiny(place, split, fit)
        case "dtd":
            return _dtd(place, split, fit)
        case _:
            return folder_source(place, split, fit, "imagenet")


def _idx(place: Path, split: str, classes: Sequence[str], options: dict[str, Any]) -> ArraySource:
    """LeCun's idx files, plain or gzipped."""
    part = "train" if split == "train" else "t10k"
    images, labels = (_idx_array(place, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return array_source(images, labels, str(place), classes, **options)


def _idx_array(place: Path, name: str) -> np.ndarray:
    path = _one_of(place / name, place / f"{name}.gz")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise BadInput(f"{path}: damaged: {error}. Copy it again.") from None
    rank = data[3] if len(data) > 3 else 0
    shape = tuple(int(n) for n in np.frombuffer(data[4 : 4 + 4 * rank], ">u4")) if len(data) >= 4 + 4 * rank else ()
    if data[:3] != b"\0\0\x08" or not shape or len(data) != 4 + 4 * rank + int(np.prod(shape)):
        raise BadInput(f"{path}: not a whole idx file ({len(data)} bytes, shape {list(shape)}). Copy it again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _cifar(place: Path, split: str, options: dict[str, Any]) -> ArraySource:
    """Krizhevsky's pickled batches, read by an unpickler that knows arrays and nothing else."""
    hundred = place.name == "cifar-100-python"
    files = ["train" if split == "train" else "test"] if hundred else ["test_batch"]
    if not hundred and split == "train":
        files = [f"data_batch_{i}" for i in range(1, 6)]
    label, names = ("fine_labels", "fine_label_names") if hundred else ("labels", "label_names")
    batches = [plain_pickle(_one_of(place / f)) for f in files]
    classes = plain_pickle(_one_of(place / ("meta" if hundred else "batches.meta")))
    x = np.concatenate([np.asarray(b["data"], np.uint8).reshape(-1, 3, 32, 32) for b in batches])
    y = np.concatenate([np.asarray(b[label]) for b in batches])
    return array_source(x, y, str(place), classes[names], "nchw", **options)


def plain_pickle(path: Path) -> Any:
    """Unpickle dictionaries, lists, numbers, texts and numpy arrays. Raises: BadInput for anything else."""
    try:
        return _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except BadInput:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise BadInput(f"{path}: damaged ({type(error).__name__}: {error}). Copy it again.") from None


class _Plain(pickle.Unpickler):
    _ALLOWED = {
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise BadInput(
                f"a data pickle asks for {module}.{name}; allowed: arrays, lists and texts. Do not trust it."
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _svhn(place: Path, options: dict[str, Any]) -> ArraySource:
    from scipy.io import loadmat

    try:
        held = loadmat(place, variable_names=["X", "y"])
        x, y = held["X"].transpose(3, 0, 1, 2), held["y"].ravel().astype(np.int64) % 10  # there, 10 means the digit 0
    except Exception as error:  # scipy raises many kinds for damaged files
        raise BadInput(f"{place}: damaged ({type(error).__name__}: {error}). Copy it again.") from None
    return array_source(x, y, place.name, list("0123456789"), "nhwc", file=place, **options)


def _gtsrb(place: Path, split: str, fit: Fit) -> PhotoSource:
    if split == "train":
        return folder_source(_one_of(place / "GTSRB" / "Training"), "all", fit, {f"{k:05d}": k for k in range(43)})
    table = _one_of(place / "GT-final_test.csv")
    with table.open(encoding="utf-8", newline="") as file:
        rows = [(r["Filename"], int(r["ClassId"])) for r in csv.DictReader(file, delimiter=";")]
    return _photos(place / "GTSRB" / "Final_Test" / "Images", rows, [f"{k:05d}" for k in range(43)], str(place), fit)


def _tiny(place: Path, split: str, fit: Fit) -> PhotoSource:
    wnids = _one_of(place / "wnids.txt").read_text(encoding="utf-8").split()
    order = {w: i for i, w in enumerate(sorted(wnids))}
    if split == "train":
        rows = [
            (f"{w}/images/{f.name}", order[w])
            for w in sorted(wnids)
            for f in sorted((place / "train" / w / "images").glob("*.JPEG"))
        ]
        return _photos(place / "train", rows, sorted(wnids), str(place), fit)
    lines = _one_of(place / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    rows = [(name, order[wnid]) for name, wnid in (line.split("\t")[:2] for line in lines if line)]
    return _photos(place / "val" / "images", rows, sorted(wnids), str(place), fit)


def _dtd(place: Path, split: str, fit: Fit) -> PhotoSource:
    table = _one_of(place / "dtd" / "labels" / f"{'train' if split == 'train' else 'test'}1.txt")
    names = table.read_text(encoding="utf-8").split()
    classes = sorted(p.name for p in _one_of(place / "dtd" / "images").iterdir() if p.is_dir())
    rows = [(n, classes.index(n.split("/")[0])) for n in names]
    return _photos(place / "dtd" / "images", rows, classes, str(place), fit)


def _photos(folder: Path, rows: list[tuple[str, int]], classes: list[str], what: str, fit: Fit) -> PhotoSource:
    photos = tuple(Photo(str(folder / inside(name, what))) for name, _ in rows)
    return PhotoSource(photos, np.array([label for _, label in rows], np.int64), tuple(classes), what, fit)


def _one_of(*paths: Path) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise BadInput(f"{paths[0]}: missing, though {paths[0].parent} is there. Copy the set again, or download it.")
