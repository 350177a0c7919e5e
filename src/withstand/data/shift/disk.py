"""What of a benchmark is on the disk, and what is missing: found out before any work."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from withstand.data.folders import wnids
from withstand.data.shift.cells import (
    ArrayCell,
    Cell,
    FlatCell,
    FolderCell,
    array_of,
    folders_of,
    some,
    unknown_folder,
)
from withstand.data.shift.classes import OBJECTNET, OBJECTNET_FOLDERS
from withstand.data.shift.table import Benchmark
from withstand.errors import BadInput, bad

GROUPS = ("noise", "blur", "weather", "digital", "extra")
"""Folders of the published archives, between the set and its kinds of corruption."""
SEVERITIES = (1, 2, 3, 4, 5)
MANIFEST = "withstand.json"
MANIFESTS = (MANIFEST, "edits.json")
"""In a set that was made here instead of copied: how it was made."""


@dataclass(frozen=True)
class Stock:
    """A benchmark as it lies on the disk.

    cells: what is scored. images: in all cells together. identities, digests: for each cell, of the names of its images, and
    of names, sizes and times. missing: what the whole set has and this one has not, or the other way round. made: what the
    manifest of a set says that was made here; None for a copy of the published one.
    """

    benchmark: Benchmark
    place: Path
    cells: Mapping[str, Cell]
    sizes: Mapping[str, int]
    identities: Mapping[str, str]
    digests: Mapping[str, str]
    missing: Sequence[str]
    made: dict | None = None

    @property
    def images(self) -> int:
        return sum(self.sizes.values())

    @property
    def aligned(self) -> bool:
        """Whether all cells hold versions of the same images."""
        return len(set(self.identities.values())) == 1


def survey(
    benchmark: Benchmark,
    root: str | Path,
    kinds: Sequence[str] = (),
    extra: Sequence[str] = (),
    partial: bool = False,
    alone: bool = True,
) -> Stock:
    """Look at everything that a benchmark has below `root`, which is its own folder or the one above.

    kinds, extra: the corruptions that a corrupted set must and may have (the sources and edits of ImageNet-E). partial: take
    what is there of an incomplete set. alone: `root` may be the benchmark's own folder.
    Raises: BadInput for a set that is not there, class folders or corruptions that it does not know (by name), files that
    are no images, and, unless `partial`, for one that is incomplete, with the list.
    """
    place = locate(benchmark, root, (*kinds, *extra), alone)
    cells, missing = _cells(benchmark, place, kinds, extra)
    sizes: dict[str, int] = {}
    identities: dict[str, str] = {}
    digests: dict[str, str] = {}
    lacking: dict[str, list[str]] = {}
    for key, cell in cells.items():
        listing = cell.listing()
        for text in _lacking(benchmark, cell, listing.counts, len(listing)):
            lacking.setdefault(text, []).append(key)
        sizes[key], identities[key], digests[key] = len(listing), listing.identities, listing.digest
    missing += [f"{_cut(keys)}: {text}" if any(keys) else text for text, keys in lacking.items()]
    if not sum(sizes.values()):
        raise bad(str(place), "no images", f"those of {benchmark.name}")
    if missing and not partial:
        shown = "\n  ".join(missing[:20]) + (f"\n  and {len(missing) - 20:,} more" if len(missing) > 20 else "")
        raise BadInput(
            f"{benchmark.name}: what is in {place} is not the whole set:\n  {shown}\nComplete it, or give --partial "
            "(partial=True) to score what is there, which compares with no published figure."
        )
    if benchmark.layout == "edits" and not sizes[kinds[0]]:
        raise bad(str(place / kinds[0]), "no images", "the sources, which the edits are compared with")
    filled = {key: cell for key, cell in cells.items() if sizes[key]}
    manifests = [place / name for name in MANIFESTS if (place / name).is_file()]
    made = _manifest(manifests[0]) if manifests else None
    sizes = {key: sizes[key] for key in filled}
    identities = {key: identities[key] for key in filled}
    return Stock(benchmark, place, filled, sizes, identities, digests, tuple(missing), made)


def _manifest(file: Path) -> dict:
    """What it says. Raises: BadInput where it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise bad(
            str(file), "no manifest", "what withstand wrote beside a set that it made", "Copy it again, or remove it."
        )
    return found


def _cut(keys: Sequence[str]) -> str:
    """Cells in words."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def class_order(benchmark: Benchmark, place: Path) -> dict[str, int]:
    """The label of each class folder's name. Raises: BadInput where the names do not say it."""
    if benchmark.layout == "index":
        return _numbers(place)
    if benchmark.layout == "objectnet":
        return _objects(place)
    every = {wnid: label for label, wnid in enumerate(wnids())}
    if benchmark.subset is None:
        return every
    chosen = set(benchmark.subset)
    return {wnid: label for wnid, label in every.items() if label in chosen}


def _numbers(place: Path) -> dict[str, int]:
    """Folders that are called by label, with or without leading zeros: never by position."""
    order: dict[str, int] = {}
    for name in folders_of(place):
        if not name.isdecimal() or int(name) > 999:
            raise unknown_folder(place, name, [*map(str, range(1000))])
        if int(name) in order.values():
            raise bad(str(place), f"two folders for class {int(name)}", "one", "Keep 12 or 0012, not both.")
        order[name] = int(name)
    return order


def _objects(place: Path) -> dict[str, int]:
    """ObjectNet's folders by their position among all 313; of a part of the set, by the list that comes with it."""
    names = folders_of(place)
    table = place.parent / "mappings" / "folder_to_objectnet_label.json"
    if table.is_file():
        try:
            known = sorted(json.loads(table.read_text(encoding="utf-8")))
        except ValueError as error:
            raise BadInput(f"{table}: no table of folders ({error}). Copy it again.") from None
        if len(known) != OBJECTNET_FOLDERS:
            raise bad(str(table), f"{len(known)} folders", f"{OBJECTNET_FOLDERS}", "Copy it again.")
        return {name: position for position, name in enumerate(known)}
    if len(names) != OBJECTNET_FOLDERS:
        raise bad(
            str(place),
            f"{len(names)} class folders",
            f"all {OBJECTNET_FOLDERS} of ObjectNet, whose labels go by position",
            f"For a part of them put the archive's table at {table}.",
        )
    return {name: position for position, name in enumerate(names)}


def locate(benchmark: Benchmark, root: str | Path, kinds: Sequence[str], alone: bool) -> Path:
    """The benchmark's folder, see `survey`. Letters may be large or small. Raises: BadInput that says where it looked."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise bad("root", f"{root}, which is no folder", "a folder with benchmarks in it")
    looked = []
    for name in benchmark.folders:
        at = root
        for part in name.split("/"):
            same = [f for f in folders_of(at) if f.lower() == part.lower()]
            at = at / (part if part in same or not same else same[0])
            if not at.is_dir():
                break
        else:
            if folders_of(at) or any(at.iterdir()):
                return at
        looked.append(at)
    if benchmark.layout == "objectnet":
        inside = root / "images"
        if alone and inside.is_dir():
            return inside
    elif alone and _resembles(benchmark, root, kinds):
        return root
    looked_at = ", ".join(dict.fromkeys(str(p) for p in looked))
    raise BadInput(
        f"{benchmark.name}: not below {root} (looked for {looked_at}). Give --root the folder that holds "
        f"{benchmark.folders[0]}, or for a single benchmark its own folder."
    )


def _resembles(benchmark: Benchmark, root: Path, kinds: Sequence[str]) -> bool:
    if benchmark.layout in ("arrays", "edits"):
        return (root / ("labels.npy" if benchmark.layout == "arrays" else "labels.txt")).is_file()
    names = folders_of(root)
    if benchmark.corrupted:
        return any(n in kinds or n in GROUPS for n in names)
    if benchmark.layout == "index":
        return any(n.isdecimal() for n in names)
    return any(len(n) == 9 and n[0] == "n" and n[1:].isdecimal() for n in names)


def _cells(
    benchmark: Benchmark, place: Path, kinds: Sequence[str], extra: Sequence[str]
) -> tuple[dict[str, Cell], list[str]]:
    """The cells that are there, and those that are not."""
    if benchmark.layout == "arrays":
        return _arrays(benchmark, place, kinds, extra)
    if benchmark.layout == "edits":
        return _edits(benchmark, place, kinds)
    if not benchmark.corrupted:
        kept = set(OBJECTNET.values()) if benchmark.layout == "objectnet" else None
        return {"": FolderCell(place, class_order(benchmark, place), kept)}, []
    order = class_order(benchmark, place)
    found: dict[str, Path] = {}
    for kind, folder in _kinds(place, (*kinds, *extra)):
        if kind in found:
            raise bad(str(place), f"two folders of {kind}: {found[kind]} and {folder}", "one", "Move one away.")
        found[kind] = folder
    cells: dict[str, Cell] = {}
    missing = [f"{kind}: no folder" for kind in kinds if kind not in found]
    for kind in (k for k in (*kinds, *extra) if k in found):
        levels = folders_of(found[kind])
        if strange := [n for n in levels if n not in map(str, SEVERITIES)]:
            raise bad(str(found[kind]), f"the folder {strange[0]!r}", "severities 1 to 5")
        missing += [f"{kind}/{s}: no folder" for s in SEVERITIES if str(s) not in levels]
        for severity in map(int, levels):
            cell = FolderCell(found[kind] / str(severity), order, None, kind, severity)
            cells[cell.key] = cell
    return cells, missing


def _kinds(place: Path, known: Sequence[str], grouped: bool = True) -> Iterator[tuple[str, Path]]:
    """The folder of each kind of corruption, directly below the set or in the groups of the archives."""
    for name in folders_of(place):
        if grouped and name in GROUPS:
            yield from _kinds(place / name, known, False)
        elif name in known:
            yield name, place / name
        else:
            raise bad(str(place), f"the folder {name!r}", f"corruptions ({', '.join(known)})", "Move it away.")


def _edits(benchmark: Benchmark, place: Path, kinds: Sequence[str]) -> tuple[dict[str, Cell], list[str]]:
    """The first of the kinds, the sources, has to be there."""
    file = place / "labels.txt"
    if not file.is_file() or not (place / kinds[0]).is_dir():
        raise bad(str(place), "another layout", f"labels.txt, {kinds[0]}, and a folder for each edit")
    labels: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, label = line.partition("\t")
        if line.strip() and (not label.strip().isdecimal() or int(label) >= benchmark.logits):
            raise bad(str(file), f"line {number}: {line!r}", "a file name, a tab and a label from 0 to 999")
        if line.strip() and labels.setdefault(Path(name).stem, int(label)) != int(label):
            raise bad(str(file), f"line {number}: another label for {name}", "one label for each image")
    if strange := [name for name in folders_of(place) if name not in kinds]:
        raise bad(str(place), f"the folder {strange[0]!r}", ", ".join(kinds), "Move it away.")
    missing = [f"{kind}: no folder" for kind in kinds if not (place / kind).is_dir()]
    return {kind: FlatCell(place / kind, labels, kind) for kind in kinds if (place / kind).is_dir()}, missing


def _arrays(
    benchmark: Benchmark, place: Path, kinds: Sequence[str], extra: Sequence[str]
) -> tuple[dict[str, Cell], list[str]]:
    files = {path.stem: path for path in sorted(place.glob("[!.]*.npy"))}
    if "labels" not in files:
        raise bad(str(place), "no labels.npy", "labels.npy and an .npy for each corruption")
    y = array_of(files.pop("labels"))
    if strange := [name for name in files if name not in (*kinds, *extra)]:
        raise bad(str(place), f"{strange[0]}.npy", f"corruptions ({', '.join((*kinds, *extra))})", "Move it away.")
    missing = [f"{kind}.npy: missing" for kind in kinds if kind not in files]
    cells: dict[str, Cell] = {}
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise bad(f"{place / 'labels.npy'}", f"{y.dtype} {list(y.shape)}", "one whole number for each image")
    for kind in (k for k in (*kinds, *extra) if k in files):
        x = array_of(files[kind])
        n = len(x) // 5
        if x.dtype != np.uint8 or x.shape != (5 * n, 32, 32, 3) or n == 0:
            raise bad(str(files[kind]), f"{x.dtype} {list(x.shape)}", "uint8 [5 n, 32, 32, 3], severity after severity")
        labels = _labels(benchmark, place / "labels.npy", np.asarray(y), n, files[kind])
        if n != benchmark.images:
            missing.append(f"{kind}.npy: {n:,} images at each severity instead of {benchmark.images:,}")
        for severity in SEVERITIES:
            cell = ArrayCell(files[kind], labels, kind, severity)
            cells[cell.key] = cell
    return cells, missing


def _labels(benchmark: Benchmark, file: Path, y: np.ndarray, n: int, of: Path) -> np.ndarray:
    """The labels of n images, from n of them or from five times the same n."""
    if len(y) not in (n, 5 * n) or (len(y) == 5 * n and (y.reshape(5, n) != y[:n]).any()):
        mend = "The labels of the test part, in its order, once or five times."
        raise bad(str(file), f"{len(y):,} labels", f"{n:,} or five times the same, as {of.name} has images", mend)
    if y.min() < 0 or y.max() >= benchmark.logits:
        got = f"labels from {y.min()} to {y.max()}"
        raise bad(str(file), got, f"0 to {benchmark.logits - 1}, as {benchmark.name} has")
    return y[:n].astype(np.int64)


def _lacking(benchmark: Benchmark, cell: Cell, counts: Mapping[str, int], n: int) -> Iterator[str]:
    """What a cell of folders lacks, or has too much."""
    if isinstance(cell, FlatCell) and n != benchmark.images:
        yield f"{n:,} images instead of {benchmark.images:,}"
    if not isinstance(cell, FolderCell):
        return
    wanted = _wanted(benchmark, cell)
    have = {cell.order[name] for name, count in counts.items() if count}
    names = {label: name for name, label in cell.order.items()}
    if absent := [names.get(label, str(label)) for label in sorted(wanted - have)]:
        yield f"{len(absent):,} of {len(wanted):,} classes have no images: {some(absent)}"
    if benchmark.each is not None:
        off = [f"{k} ({count})" for k, count in counts.items() if count not in (0, benchmark.each)]
        if off:
            yield f"{len(off):,} classes do not have {benchmark.each} images: {some(off)}"
    elif benchmark.images not in (None, n) and not absent:
        yield f"{n:,} images instead of {benchmark.images:,}"


def _wanted(benchmark: Benchmark, cell: FolderCell) -> set[int]:
    if benchmark.layout == "objectnet":
        return set(OBJECTNET.values())
    return set(benchmark.subset or range(benchmark.logits))
