"""ImageNet-E: eleven edits of every image, in the layout of the benchmark."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from withstand.data import load_data
from withstand.editing.adversarial import Adversarial
from withstand.editing.contract import EditResult
from withstand.editing.diffusion import DiffusersPainter
from withstand.editing.editor import ObjectEditor
from withstand.editing.masked import Masked, files, ids_of
from withstand.editing.masks import fault
from withstand.editing.spectrum import Spectral, complexity
from withstand.errors import bad, unknown
from withstand.files import write_atomic, write_json
from withstand.models import as_target
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
"""Painted against a guide."""
PLAIN: tuple[str, ...] = tuple(name for name in EDITS if name != ADVERSARIAL)
"""The edits that need no guide."""
ORI = "ori"
"""The folder of the sources."""


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

    A mask that is empty, or beyond the sizes that can be edited, makes the result a skipped one. editor: for "20-adv" one
    made by `against`. label: told to the painter in "20-adv" alone. Raises: BadInput for an unknown edit, and for "20-adv"
    without a label or with an editor that has no guide.
    """
    if name not in EDITS:
        raise unknown("edit", name, EDITS)
    if name == ADVERSARIAL and label is None:
        raise bad("label", None, f"the true class, which the edit {ADVERSARIAL} leads away from")
    if name == ADVERSARIAL and isinstance(editor.painter, Spectral):
        raise bad("editor", "one without a guide", f"for the edit {ADVERSARIAL} what against(editor, guide) returns")
    if mask is not None and (problem := fault(mask)):
        return EditResult(image, mask, float(mask.double().mean()), complexity(image), True, problem)
    return editor.edits(image, mask, EDITS[name], key, label if name == ADVERSARIAL else None, others)


def against(editor: ObjectEditor, guide: Any) -> ObjectEditor:
    """The editor for "20-adv": its painter leads the guide astray, a classifier of images [N, 3, H, W] in [0, 1].

    A diffusion model is led by the guide's gradient; any other painting is followed by a bounded search, see `Adversarial`.
    """
    if guide is None:
        raise bad("guide", None, f"a classifier, for the edit {ADVERSARIAL}", "Give one, or leave this edit out.")
    painter = editor.painter
    led = painter.led_by(guide) if isinstance(painter, DiffusersPainter) else Adversarial(guide, base=painter)
    return replace(editor, painter=led)


def build_imagenet_e(
    images: str | Path | Dataset,
    masks: str | Path | Dataset | None,
    out: str | Path,
    edits: Sequence[str] = PLAIN,
    editor: ObjectEditor | None = None,
    guide: Any = None,
    size: int | None = 256,
    others: Sequence[Any] = (),
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> dict[str, dict[str, str]]:
    """A benchmark of one's own images in the layout of ImageNet-E, {edit: {image: why it was skipped}} in return.

    In `out`: a flat folder of PNGs for every edit, and `ori` with the sources; `labels.txt` (file name, tab, class index);
    `skipped.txt` (edit, image, reason); `edits.json`, how it was made. A skipped image is missing from that edit's folder.
    The same call continues a build that was stopped, and adds further edits; each image is edited alike, alone or among
    others.

    images: a folder by class, or a labelled data set. masks: a folder of masks of the same names, or a data set of them (see
    `Masked`); None: found by the editor's segmenter. edits: names of `EDITS`. editor: by default `ObjectEditor()`. guide:
    the classifier that "20-adv" leads astray, see `against`. size: side to which photographs are brought; None leaves them,
    which then must be of one size. others: what stands behind the object in "random", see `ObjectEditor.edit`. progress:
    called with the number of images done, and of all.

    Raises: BadInput for images without labels, unknown edits, masks that do not fit, and a folder made otherwise, from other
    images, with another editor, other scenes behind, or another guide.
    """
    editor, place = editor or ObjectEditor(), Path(out)
    for name in edits:
        if name not in EDITS:
            raise unknown("edit", name, EDITS)
    editors = {name: against(editor, guide) if name == ADVERSARIAL else editor for name in edits}
    data: Any = load_data(images, size=size) if isinstance(images, (str, Path)) else images
    if masks is not None:
        data = Masked(data, load_data(masks, size=size, channels=3) if isinstance(masks, (str, Path)) else masks)
    names = _names(data)
    if names and data.batch([0]).y is None:
        raise bad("images", f"{data.name}, without labels", "labelled images, e.g. a folder by class")
    how = {"data": data.fingerprint(), "editor": repr(editor), "others": _digest(others)}
    if ADVERSARIAL in edits:
        how["guide"] = as_target(guide).fingerprint()
    _same_as_before(place / "edits.json", how)
    labels, skipped = {}, {name: {} for name in edits}
    for at, name in enumerate(names):
        batch = data.batch([at])
        assert batch.y is not None
        labels[name] = int(batch.y[0])
        image = batch.x[0].expand(3, -1, -1)
        mask = batch.extra["object"][0] if masks is not None else None
        for edit in (ORI, *edits):
            file = place / edit / f"{name}.png"
            if file.is_file():
                continue
            if edit == ORI:
                write_atomic(file, _png(image))
                continue
            made = edit_as(edit, editors[edit], image, mask, name, labels[name], others)
            if made.skipped:
                skipped[edit][name] = made.reason
            else:
                write_atomic(file, _png(made.image))
        progress(at + 1, len(names))
    write_atomic(place / "labels.txt", "".join(f"{name}.png\t{label}\n" for name, label in labels.items()))
    _note_skipped(place / "skipped.txt", skipped)
    return skipped


def _same_as_before(file: Path, made: dict[str, Any]) -> None:
    """What an earlier call did not need, such as a guide, may come now."""
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if different := [k for k in made if before.get(k, made[k]) != made[k]]:
            mend = "Choose another folder, or remove this one."
            raise bad(
                "out",
                f"{file.parent}, made with another {' and '.join(different)}",
                "a new folder, or its own settings",
                mend,
            )
        made = before | made
    write_json(file, made)


def _digest(others: Sequence[Any]) -> str:
    """Of pictures, and of pairs of a picture and its mask."""
    digest = hashlib.sha256()
    for other in others:
        for part in (other,) if isinstance(other, Tensor) else other:
            if part is None or isinstance(part, (str, Path)):
                digest.update(str(part).encode())
            else:
                part = torch.as_tensor(part).detach().cpu().contiguous()
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
        digest.update(b";")
    return digest.hexdigest()[:32]


def _names(data: Any) -> list[str]:
    """A file name for every image: its own, with its class where that is not enough; its id where it has none."""
    paths = files(data.data if isinstance(data, Masked) else data)
    if paths is None:
        return [f"{i:06d}" for i in ids_of(data)]
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
