"""Parts of a benchmark that are scored as one: photographs in class folders, or the rows of an array."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from withstand.data.photos import SUFFIXES, Photo, each, look, opened
from withstand.data.shift.view import BORDER, Part, View
from withstand.errors import BadInput, bad

SHOWN = 10
"""Names that an error lists before it counts the rest."""


class Cell(Protocol):
    """What is scored as one. key: "" or "fog/3"; corruption and severity: of a corrupted set."""

    @property
    def key(self) -> str: ...

    @property
    def corruption(self) -> str | None: ...

    @property
    def severity(self) -> int | None: ...

    def listing(self) -> "Listing": ...


@dataclass(frozen=True)
class Listing:
    """What a cell holds now. labels: int64 [N]; digest: changes with names, sizes and times; identities: names without their
    endings, so that the versions of one image share theirs.

    pixels: a position and a view -> uint8 [H, W, 3]. damaged: what is wrong with the files at these positions, looked
    at one by one. counts: images of each class folder. names: of the files, below the cell's folder.
    """

    labels: np.ndarray
    digest: str
    identities: str
    pixels: Callable[[int, View, Part], np.ndarray] = field(repr=False)
    damaged: Callable[[np.ndarray], list[str]] = field(repr=False, default=lambda positions: [])
    counts: Mapping[str, int] = field(default_factory=dict, repr=False)
    names: Sequence[str] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FolderCell:
    """Class folders of photographs. order: the label of each folder's name; kept: labels that are scored, None = all."""

    place: Path
    order: Mapping[str, int]
    kept: Collection[int] | None = None
    corruption: str | None = None
    severity: int | None = None

    @property
    def key(self) -> str:
        return "" if self.corruption is None else f"{self.corruption}/{self.severity}"

    def listing(self) -> Listing:
        """Read the folders. Raises: BadInput for folders without a label, files that are no images, and empty files."""
        names, labels, counts = [], [], {}
        digest, identities = hashlib.sha256(), hashlib.sha256()
        strange: list[str] = []
        empty: list[str] = []
        for folder in folders_of(self.place):
            if folder not in self.order:
                raise unknown_folder(self.place, folder, self.order)
            label = self.order[folder]
            if self.kept is not None and label not in self.kept:
                continue
            count = 0
            for name, size, changed, file in sorted(_entries(self.place / folder)):
                if not file or os.path.splitext(name)[1].lower() not in SUFFIXES:
                    strange.append(f"{folder}/{name}")
                    continue
                if size == 0:
                    empty.append(f"{folder}/{name}")
                digest.update(f"{folder}/{name}\0{size}\0{changed}\0".encode())
                identities.update(f"{folder}/{os.path.splitext(name)[0]}\0".encode())
                names.append(f"{folder}/{name}")
                labels.append(label)
                count += 1
            counts[folder] = count
        if strange:
            raise bad(str(self.place), f"no images: {some(strange)}", "image files", "Move them out of the folders.")
        if empty:
            raise BadInput(f"{self.place}: empty files: {some(empty)}. Copy them again.")
        files = Files(self.place, names)
        y = np.array(labels, np.int64)
        return Listing(y, digest.hexdigest(), identities.hexdigest(), files.pixels, files.damaged, counts, names)


@dataclass(frozen=True)
class FlatCell:
    """Photographs in one folder. labels: by name without ending."""

    place: Path
    labels: Mapping[str, int]
    key: str
    corruption: str | None = None
    severity: int | None = None

    def listing(self) -> Listing:
        """Read the folder. Raises: BadInput for files without a label, that are no images, or empty."""
        found = [entry for entry in sorted(_entries(self.place)) if os.path.splitext(entry[0])[0] in self.labels]
        if strange := {entry[0] for entry in _entries(self.place)} - {entry[0] for entry in found}:
            raise bad(str(self.place), f"files without a label: {some(sorted(strange))}", "those of labels.txt")
        if off := [
            n for n, size, _, file in found if not file or not size or os.path.splitext(n)[1].lower() not in SUFFIXES
        ]:
            raise bad(str(self.place), f"empty files, or no images: {some(off)}", "image files", "Copy them again.")
        names = [entry[0] for entry in found]
        stems = [os.path.splitext(name)[0] for name in names]
        if twice := [stem for stem, n in Counter(stems).items() if n > 1]:
            raise bad(
                str(self.place), f"several files of one image: {some(twice)}", "one of each", "Move the others away."
            )
        text = "\0".join(f"{n} {size} {changed} {self.labels[k]}" for (n, size, changed, _), k in zip(found, stems))
        digest = hashlib.sha256(text.encode())
        identities = hashlib.sha256("\0".join(stems).encode())
        files = Files(self.place, names)
        y = np.array([self.labels[stem] for stem in stems], np.int64)
        return Listing(y, digest.hexdigest(), identities.hexdigest(), files.pixels, files.damaged, {}, names)


@dataclass(frozen=True)
class Files:
    """Photographs below a folder."""

    place: Path
    names: list[str]

    def pixels(self, i: int, view: View, part: Part) -> np.ndarray:
        """uint8 [H, W, 3]. Raises: BadInput that names the file."""
        image = opened(self._photo(i))
        if image.mode in ("F", "I") or image.mode.startswith("I;"):  # which would turn white
            raise bad(
                str(self._photo(i)), "more than 8 bits per channel", "8-bit images", "Convert it, e.g. to 8-bit PNG."
            )
        if part == "inside" and min(image.size) <= 2 * BORDER:
            raise bad(
                str(self._photo(i)), f"{image.size[0]} x {image.size[1]} pixels", "more than its border", "Remove it."
            )
        return np.asarray(view(image.convert("RGB"), part))

    def damaged(self, positions: np.ndarray) -> list[str]:
        """What is wrong with which of these files."""

        def problem(i: int) -> str | None:
            try:
                look(self._photo(i))
            except BadInput as error:
                return str(error)
            return None

        found = each(problem, positions, f"looking at the files of {self.place.name}")
        return [text for text in found if text is not None]

    def _photo(self, i: int) -> Photo:
        return Photo(f"{self.place}/{self.names[i]}")


@dataclass(frozen=True)
class ArrayCell:
    """n rows of an array file, from row n (severity - 1). labels: int64 [n]."""

    file: Path
    labels: np.ndarray
    corruption: str
    severity: int

    @property
    def key(self) -> str:
        return f"{self.corruption}/{self.severity}"

    def listing(self) -> Listing:
        """Map the file. Raises: BadInput as `array_of`."""
        n, seen = len(self.labels), self.file.stat()
        text = f"{self.file.name} {seen.st_size} {seen.st_mtime_ns} {self.severity} "
        digest = hashlib.sha256(text.encode() + self.labels.tobytes()).hexdigest()
        return Listing(self.labels, digest, str(n), self._pixels)

    def _pixels(self, i: int, view: View, part: Part) -> np.ndarray:
        return self._rows[len(self.labels) * (self.severity - 1) + i]

    @cached_property
    def _rows(self) -> np.ndarray:
        return array_of(self.file)


def array_of(file: Path) -> np.ndarray:
    """The array in an .npy file, mapped. Raises: BadInput for a truncated file, and one with pickled objects."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{file}: not a whole .npy file ({error}). Copy it again.") from None
    if not isinstance(found, np.ndarray):
        raise BadInput(f"{file}: an archive of arrays, not a whole .npy file. Copy it again.")
    return found


def folders_of(place: Path) -> list[str]:
    """The names of the subfolders, sorted; hidden ones and files beside them are passed over."""
    return sorted(e.name for e in os.scandir(place) if e.is_dir() and not e.name.startswith("."))


def unknown_folder(place: Path, folder: str, order: Collection[str]) -> BadInput:
    """The error for a class folder that has no label."""
    example = ", ".join(sorted(order)[:2])
    mend = "Move it away, or choose the benchmark that it belongs to."
    return bad(str(place), f"the class folder {folder!r}", f"{len(order)} names such as {example}", mend)


def some(names: Collection[object]) -> str:
    """A list for people: the first ones, and how many more."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else "")


def _entries(folder: Path) -> Iterator[tuple[str, int, int, bool]]:
    """(name, bytes, ns of the last change, whether it is a file) of what lies in a folder; hidden names are passed over."""
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith("."):
                file = entry.is_file()
                seen = entry.stat() if file else None
                yield entry.name, seen.st_size if seen else 0, seen.st_mtime_ns if seen else 0, file
