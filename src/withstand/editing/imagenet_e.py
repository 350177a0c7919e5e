"""ImageNet-E: eleven edits of every image, and the accuracy that each of them costs."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.data import load_data
from withstand.data.photos import SUFFIXES, Fit, Photo, decode
from withstand.editing.contract import EditResult
from withstand.editing.editor import ObjectEditor
from withstand.editing.masked import Masked, files
from withstand.editing.masks import fault
from withstand.editing.spectrum import complexity
from withstand.errors import bad, unknown
from withstand.files import write_atomic, write_json
from withstand.metrics import cluster_bootstrap, paired_difference
from withstand.protocols import Dataset

Steps = tuple[tuple[str, Mapping[str, Any]], ...]

_THROUGH: tuple[str, Mapping[str, Any]] = ("background", {"complexity": 0.0})
"""The pass through the painter, which every edit ends with; without weights it changes nothing."""

EDITS: dict[str, Steps] = {
    "inver": (_THROUGH,),
    "-20": (("background", {"complexity": -20.0}),),
    "20": (("background", {"complexity": 20.0}),),
    "20-adv": (("background", {"complexity": 20.0}),),
    "random": (("random_background", {}), _THROUGH),
    "full": (("size", {"rate": "full"}), _THROUGH),
    "0.1": (("size", {"rate": 0.1}), _THROUGH),
    "0.08": (("size", {"rate": 0.08}), _THROUGH),
    "0.05": (("size", {"rate": 0.05}), _THROUGH),
    "rp": (("size", {"rate": 0.05}), ("position", {"at": "random"}), _THROUGH),
    "rd": (("direction", {"degrees": "random"}), _THROUGH),
}
"""What is done for each edit of the benchmark; "rp" moves the object at its size of "0.05", as the released code does."""
CONTROL = "inver"
"""Nothing is edited: the object is taken out, what was behind it painted, and the object put back."""
ADVERSARIAL = "20-adv"
"""Painted against a guide, which an editor's painter must have."""
PLAIN = tuple(name for name in EDITS if name != ADVERSARIAL)
_ORI = "ori"


def edit_as(
    name: str,
    editor: ObjectEditor,
    image: Tensor,
    mask: Tensor | None,
    key: int | str = 0,
    label: int | None = None,
    others: Sequence[Any] = (),
) -> EditResult:
    """One image as an edit of the benchmark has it; see `ObjectEditor.edits`.

    A mask that is empty, or beyond the sizes that can be edited, makes the result a skipped one. label: only "20-adv" is
    told of it. Raises: BadInput for an unknown edit.
    """
    if name not in EDITS:
        raise unknown("edit", name, EDITS)
    if mask is not None and (problem := fault(mask)):
        return EditResult(image, mask, float(mask.double().mean()), complexity(image), True, problem)
    return editor.edits(image, mask, EDITS[name], key, label if name == ADVERSARIAL else None, others)


# Building ------------------------------------------------------------------------------------------------------------


def build_imagenet_e(
    images: str | Path | Dataset,
    masks: str | Path | Dataset | None,
    out: str | Path,
    edits: Sequence[str] = PLAIN,
    editor: ObjectEditor | None = None,
    size: int | None = 256,
    others: Sequence[Any] = (),
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> dict[str, dict[str, str]]:
    """A benchmark of one's own images in the layout of ImageNet-E, {edit: {image: why it was skipped}} in return.

    In `out`: a flat folder of PNGs for every edit, and `ori` with the sources; `labels.txt` (file name, tab, class index);
    `skipped.txt` (edit, image, reason); `edits.json`, how it was made. A skipped image is missing from that edit's folder. The
    same call continues a build that was stopped, and adds further edits; each image is edited alike, alone or among others.

    images: a folder by class, or a labelled data set. masks: a folder of masks of the same names, or a data set of them (see
    `Masked`); None: found by the editor's segmenter. edits: names of `EDITS`; "20-adv" asks for a painter with a guide.
    editor: by default `ObjectEditor()`. size: side to which photographs are brought; None leaves them, which then must be of
    one size. others: what stands behind the object in "random", see `ObjectEditor.edit`. progress: called with the number
    of images done, and of all.

    Raises: BadInput for images without labels, unknown edits, masks that do not fit, and a folder made otherwise.
    """
    editor, place = editor or ObjectEditor(), Path(out)
    for name in edits:
        if name not in EDITS:
            raise unknown("edit", name, EDITS)
    data: Any = load_data(images, size=size) if isinstance(images, (str, Path)) else images
    if masks is not None:
        data = Masked(data, load_data(masks, size=size, channels=3) if isinstance(masks, (str, Path)) else masks)
    _same_as_before(place / "edits.json", {"data": data.fingerprint(), "editor": repr(editor), "others": len(others)})
    names = _names(data)
    labels, skipped = {}, {name: {} for name in edits}
    for at, name in enumerate(names):
        batch = data.batch([at])
        if batch.y is None:
            raise bad("images", f"{data.name}, without labels", "labelled images, e.g. a folder by class")
        labels[name] = int(batch.y[0])
        image = batch.x[0].expand(3, -1, -1)
        mask = batch.extra["object"][0] if masks is not None else None
        for edit in (_ORI, *edits):
            file = place / edit / f"{name}.png"
            if file.is_file():
                continue
            if edit == _ORI:
                write_atomic(file, _png(image))
                continue
            made = edit_as(edit, editor, image, mask, name, labels[name], others)
            if made.skipped:
                skipped[edit][name] = made.reason
            else:
                write_atomic(file, _png(made.image))
        progress(at + 1, len(names))
    write_atomic(place / "labels.txt", "".join(f"{name}.png\t{label}\n" for name, label in labels.items()))
    _note_skipped(place / "skipped.txt", skipped)
    return skipped


def _same_as_before(file: Path, made: dict[str, Any]) -> None:
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if different := [k for k in made if before.get(k) != made[k]]:
            mend = "Choose another folder, or remove this one."
            raise bad("out", f"{file.parent}, made with another {' and '.join(different)}", "a new folder, or its own settings", mend)
    write_json(file, made)


def _names(data: Any) -> list[str]:
    """A file name for every image: its own, with its class where that is not enough; its id where it has none."""
    paths = files(data.data if isinstance(data, Masked) else data)
    if paths is None:
        ids = [int(i) for at in range(0, len(data), 256) for i in data.batch(range(at, min(at + 256, len(data)))).ids]
        return [f"{i:06d}" for i in ids]
    stems = [p.stem for p in paths]
    names = stems if len(set(stems)) == len(stems) else [f"{p.parent.name}_{p.stem}" for p in paths]
    if len(set(names)) < len(names):
        raise bad("images", "files of the same class and name", "names that differ in more than their endings")
    return names


def _note_skipped(file: Path, skipped: dict[str, dict[str, str]]) -> None:
    """Lines of other edits, from an earlier call, stay."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    kept = [line for line in lines if line.split("\t")[0] not in skipped]
    new = [f"{edit}\t{name}\t{reason}" for edit, found in skipped.items() for name, reason in found.items()]
    write_atomic(file, "".join(f"{line}\n" for line in [*kept, *new]))


def _png(image: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((image.cpu() * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


# Dropped accuracy ----------------------------------------------------------------------------------------------------


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
            lost = f", {d.missing} missing" if d.missing else ""
            said = "control" if d.edit == CONTROL else ""
            lines.append(
                f"{d.edit:>{width}}  {100 * d.dropped:6.2f} ({100 * d.low:.2f} to {100 * d.high:.2f}), n = {d.n}{lost} {said}".rstrip()
            )
        lines.append(f"average without {CONTROL}: {100 * self.average:.2f} ({100 * self.low:.2f} to {100 * self.high:.2f})")
        lines.append(f"average with {CONTROL}: {100 * self.average_with_control:.2f}")
        return "\n".join(lines)


def dropped(edit: str, before: np.ndarray, after: np.ndarray, made: np.ndarray) -> Dropped:
    """What one edit costs. before, after: right on the source and on the edited image, bool [N]; made: which images the edit
    has, at least one."""
    b, a = before[made], after[made]
    change, low, high, _ = paired_difference(b, a)
    missing = int((~made).sum())
    return Dropped(edit, int(made.sum()), missing, float(b.mean()), float(a.mean()), -change, -high, -low)


def average(before: np.ndarray, after: np.ndarray, made: np.ndarray) -> tuple[float, float, float]:
    """(mean over edits of the dropped accuracy, low, high), 95 % by a bootstrap over images, each drawn with all its edits.

    before: right on the source, bool [N]. after, made: bool [N, E]; an edit that no image has does not count.
    """
    has = made.any(0)
    after, made = after[:, has], made[:, has]

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

    model: anything that `as_target` takes. root: see `build_imagenet_e`. edits: names of its folders; None: all. size: side to
    which images are brought (see `withstand.data.photos.Fit`); None: as they are. batch: images in a forward pass.

    Raises: BadInput for a folder without labels.txt, `ori` or an edit; labels that name no image, or no class of the model;
    an edit that shares no image with `ori`.
    """
    from withstand.models import as_target

    target, place = as_target(model), Path(root)
    labels = _labels(place / "labels.txt")
    folders = sorted(p.name for p in place.iterdir() if p.is_dir() and p.name != _ORI) if edits is None else list(edits)
    if not folders:
        raise bad("root", f"{place}, without a folder of edits", f"{_ORI} and at least one edit, e.g. {CONTROL}")
    order = [*(name for name in EDITS if name in folders), *(name for name in folders if name not in EDITS)]
    found = {name: _by_stem(place / name) for name in (_ORI, *order)}
    stems = [stem for stem in labels if stem in found[_ORI]]
    if not stems:
        raise bad("labels.txt", f"{len(labels)} names, none of them in {_ORI}", f"names of the files in {place / _ORI}")
    y = np.array([labels[stem] for stem in stems])
    answers = {name: _right(target, found[name], stems, y, Fit(size), batch) for name in (_ORI, *order)}
    before, _ = answers[_ORI]
    for name in order:
        if not answers[name][1].any():
            raise bad(name, f"a folder that shares no image with {_ORI}", "edited images of the same names")
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
    for part in np.array_split(at, max(1, -(-len(at) // batch))):
        pixels = [decode(Photo(str(paths[stems[i]])), fit) for i in part]
        if shapes := {p.shape for p in pixels} - {pixels[0].shape}:
            got = f"images of {pixels[0].shape[:2]} and of {shapes.pop()[:2]} pixels"
            raise bad("root", got, "one size", "Give size=224, or what the model takes.")
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        device = next((p.device for p in target.module.parameters()), x.device) if target.module is not None else x.device
        with torch.no_grad():
            logits = target(x.to(device)).cpu()
        if y[part].max() >= logits.shape[1]:
            raise bad("labels.txt", f"class {int(y[part].max())}", f"0 to {logits.shape[1] - 1}, the model's classes")
        right[part] = logits.argmax(1).numpy() == y[part]
    return right, there


def _labels(file: Path) -> dict[str, int]:
    """Class index by name without ending."""
    if not file.is_file():
        raise bad("root", f"{file.parent}, without labels.txt", "a folder in ImageNet-E's layout: labels.txt, ori, edits")
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.partition("\t")
        if not label.strip().isdecimal():
            raise bad(str(file), f"line {number}: {line!r}", "a file name, a tab, and a class index")
        found[Path(name).stem] = int(label)
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise bad("root", f"{folder.parent}, without the folder {folder.name}", "ori, and a folder for each edit")
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES}
