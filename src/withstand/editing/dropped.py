"""Dropped accuracy: what the edits of ImageNet-E cost a classifier, on the same images."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from withstand.data.photos import SUFFIXES, Fit, Photo, decode
from withstand.editing.imagenet_e import CONTROL, EDITS, ORI
from withstand.errors import bad
from withstand.metrics import cluster_bootstrap, paired_difference
from withstand.models import as_target, frozen


@dataclass(frozen=True)
class Dropped:
    """What one edit costs: shares of the same n images that are right before and after it, and their difference with its
    interval (see `withstand.metrics.paired_difference`). missing: images of `ori` that the edit does not have."""

    edit: str
    n: int
    missing: int
    before: float
    after: float
    dropped: float
    low: float
    high: float


@dataclass(frozen=True)
class DroppedAccuracy:
    """The dropped accuracy of every edit.

    right, n: of the source images. average: of the edits without the control; interval by a bootstrap over images, each
    drawn with all its edits. average_with_control: of all.
    """

    right: int
    n: int
    edits: tuple[Dropped, ...]
    average: float
    low: float
    high: float
    average_with_control: float

    def __str__(self) -> str:
        width = max(len(d.edit) for d in self.edits)
        lines = [f"right in ori: {self.right} of {self.n} ({self.right / self.n:.1%}); dropped accuracy in points"]
        for d in self.edits:
            notes = [
                f"n = {d.n}",
                *([f"{d.missing} missing"] if d.missing else []),
                *(["control"] if d.edit == CONTROL else []),
            ]
            lines.append(f"{d.edit:>{width}}  {_points(d.dropped, d.low, d.high)}, {', '.join(notes)}")
        lines.append(f"average without {CONTROL}: {_points(self.average, self.low, self.high)}")
        lines.append(f"average with {CONTROL}: {_points(self.average_with_control)}")
        return "\n".join(lines)


def dropped(edit: str, before: np.ndarray, after: np.ndarray, made: np.ndarray) -> Dropped:
    """What one edit costs. before, after: right on the source and on the edited image, bool [N]; made: which images the edit
    has, at least one."""
    b, a = before[made], after[made]
    change, low, high, _ = paired_difference(b, a)
    missing = int((~made).sum())
    return Dropped(
        edit, int(made.sum()), missing, float(b.mean()), float(a.mean()), 0.0 - change, 0.0 - high, 0.0 - low
    )


def average(before: np.ndarray, after: np.ndarray, made: np.ndarray) -> tuple[float, float, float]:
    """(mean over edits of the dropped accuracy, low, high), 95 % by a bootstrap over images, each drawn with all its edits.

    before: right on the source, bool [N]. after, made: bool [N, E]; an edit that no image has does not count.
    """
    has, some = made.any(0), made.any(1)  # of an image without any edit nothing is learned
    before, after, made = before[some], after[some][:, has], made[some][:, has]

    def mean(of: np.ndarray) -> np.ndarray:
        lost, n = np.split(of, 2, axis=1)
        return np.nanmean(np.where(n > 0, lost / np.maximum(n, 1e-12), np.nan), axis=1)

    columns = np.concatenate([(before[:, None].astype(float) - after) * made, made.astype(float)], 1)
    low, high = cluster_bootstrap(columns, mean)
    return float(mean(columns.mean(0, keepdims=True))[0]), low, high


def dropped_accuracy(
    model: Any, root: str | Path, edits: Sequence[str] | None = None, size: int | None = None, batch: int = 64
) -> DroppedAccuracy:
    """What the edits in a folder of ImageNet-E's layout cost a classifier: its accuracy on `ori` less that on each edit, on
    the images that both have. Images are matched by their names without endings.

    model: anything that `as_target` takes; it is asked in eval mode. root: see `build_imagenet_e`. edits: names of its
    folders; None: all. size: side to which images are brought (see `withstand.data.photos.Fit`); None: as they are. batch:
    images in a forward pass.

    Raises: BadInput for a folder without labels.txt, `ori` or an edit; labels that name no image, or no class of the model;
    an edit that shares no image with `ori`.
    """
    target, place = as_target(model), Path(root)
    labels = _labels(place / "labels.txt")
    folders = sorted(p.name for p in place.iterdir() if p.is_dir() and p.name != ORI) if edits is None else list(edits)
    if not folders:
        raise bad("root", f"{place}, without a folder of edits", f"{ORI} and at least one edit, e.g. {CONTROL}")
    order = [*(name for name in EDITS if name in folders), *(name for name in folders if name not in EDITS)]
    found = {name: _by_stem(place / name) for name in (ORI, *order)}
    stems = [stem for stem in labels if stem in found[ORI]]
    if not stems:
        raise bad("labels.txt", f"{len(labels)} names, none of them in {ORI}", f"names of the files in {place / ORI}")
    for name in order:
        if not found[name].keys() & set(stems):
            raise bad(name, f"a folder that shares no image with {ORI}", "edited images of the same names")
    y = np.array([labels[stem] for stem in stems])
    answers = {name: _right(target, found[name], stems, y, Fit(size), batch) for name in (ORI, *order)}
    before, _ = answers[ORI]
    after, made = (np.stack([answers[name][i] for name in order], 1) for i in (0, 1))
    rows = tuple(dropped(name, before, after[:, i], made[:, i]) for i, name in enumerate(order))
    counted = [i for i, name in enumerate(order) if name != CONTROL] or list(range(len(order)))
    mean, low, high = average(before, after[:, counted], made[:, counted])
    every = float(np.mean([r.dropped for r in rows]))
    return DroppedAccuracy(int(before.sum()), len(stems), rows, mean, low, high, every)


def _right(
    target: Any, paths: Mapping[str, Path], stems: list[str], y: np.ndarray, fit: Fit, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which images are there and right, and which are there; bool [N] each."""
    there = np.array([stem in paths for stem in stems])
    right = np.zeros(len(stems), bool)
    at = np.flatnonzero(there)
    for part in np.array_split(at, -(-len(at) // batch)):
        pixels = [decode(Photo(str(paths[stems[i]])), fit) for i in part]
        if shapes := {p.shape for p in pixels} - {pixels[0].shape}:
            got = f"images of {pixels[0].shape[:2]} and of {shapes.pop()[:2]} pixels"
            raise bad("root", got, "one size", "Give size=224, or what the model takes.")
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        device = (
            next((p.device for p in target.module.parameters()), x.device) if target.module is not None else x.device
        )
        with torch.no_grad(), frozen(target.module) if target.module is not None else nullcontext():
            said = target(x.to(device)).cpu()
        if said.dim() == 2 and y[part].max() >= said.shape[1]:
            raise bad("labels.txt", f"class {int(y[part].max())}", f"0 to {said.shape[1] - 1}, the model's classes")
        right[part] = (said.argmax(1) if said.dim() == 2 else said).numpy() == y[part]
    return right, there


def _labels(file: Path) -> dict[str, int]:
    """Class index by name without ending."""
    if not file.is_file():
        raise bad(
            "root", f"{file.parent}, without labels.txt", "a folder in ImageNet-E's layout: labels.txt, ori, edits"
        )
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.partition("\t")
        if not label.strip().isdecimal():
            raise bad(str(file), f"line {number}: {line!r}", "a file name, a tab, and a class index")
        if found.setdefault(Path(name).stem, int(label)) != int(label):
            raise bad(
                str(file), f"line {number}: {line!r}, another class for the same name", "one class for each image"
            )
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise bad("root", f"{folder.parent}, without the folder {folder.name}", "ori, and a folder for each edit")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and found.setdefault(path.stem, path) != path:
            got = f"{found[path.stem].name} and {path.name} in {folder}"
            raise bad("root", got, "one image of each name", "Images are matched by their names without endings.")
    return found


def _points(value: float, *interval: float) -> str:
    said = f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else ""
    return f"{100 * value:6.2f}{said}"
