"""`edit`: the pictures of a folder, edited into another folder, with a manifest; stopped and continued at will."""

import csv
import hashlib
import io
import json
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from withstand.editing.adversarial import Adversarial
from withstand.editing.editor import ObjectEditor, Step, check_steps
from withstand.editing.inpaint import Filling
from withstand.editing.inputs import OtherScenes, Picture, find_pictures
from withstand.editing.masks import Segmenter, fault
from withstand.editing.segmenters import load_segmenter
from withstand.editing.spectrum import STRONGEST, Spectral, complexity
from withstand.editing.transforms import CannotMeet, Variant
from withstand.errors import BadInput, Unavailable, bad
from withstand.files import lock, write_atomic, write_json

COLUMNS: tuple[str, ...] = (
    "file",
    "edits",
    "rate_before",
    "rate_after",
    "complexity_before",
    "complexity_after",
    "seed",
    "skipped",
    "reason",
    "notes",
)
BACKGROUNDS = "plain:20, complex:20, random, procedural, adversarial:20 or identity"
_ROWS, _COMMAND = ".rows.jsonl", "edit.json"


def edit(
    images: str | Path,
    out: str | Path,
    *,
    size: float | str | None = None,
    direction: float | str | None = None,
    position: str | tuple[int, int] | None = None,
    background: str | None = None,
    masks: str | Path | None = None,
    segmenter: str | Segmenter = "grabcut",
    segmenter_weights: str | Path | None = None,
    wanted: str | int | None = None,
    guide: Any = None,
    seed: int = 0,
    variant: Variant = "exact",
    filling: Filling = "telea",
    jobs: int = 1,
    allow_pickle: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Edit the object of every picture of a folder, and return the manifest: a row for each, see `COLUMNS`.

    images: a file, or a folder with any subfolders. out: gets images/ and masks/ (PNG, the same subfolders),
    manifest.csv, and edit.json, which holds the settings. What cannot be edited is a row with skipped = 1 and its reason,
    and no picture. The same call again continues where an earlier one was stopped; any other is refused.

    size: a share of the picture, or "full". direction: degrees counter-clockwise, or "random". position: "random" or (row,
    column). background: "complex:20", "plain:20", "random" (the scene of another picture; of a single picture
    procedural), "procedural", "adversarial:20" (needs guide, and class folders for the labels), or "identity" (taken out
    and put back: the control). They are done in this order; at least one is needed. See `ObjectEditor.edit`.
    masks: a folder of masks under the pictures' names; None: objects are found by segmenter, a callable or what
    `load_segmenter` takes, together with segmenter_weights and wanted (the class). guide: a classifier, as a text for
    `load_model` or live. jobs: processes. report: called with the numbers of pictures done and in all.

    What is drawn for a picture depends on seed and on the bytes of its file, so that it is edited alike alone, in any
    folder and in any order; a random background depends on the other pictures as well.
    Raises: BadInput before any work, see `find_pictures`; Unavailable where out cannot be written.
    """
    steps, adversarial = read_steps(size, direction, position, background)
    if adversarial != (guide is not None):
        raise bad(
            "guide", None if guide is None else "a model", "a classifier with background='adversarial:20', else None"
        )
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise bad("jobs", repr(jobs), "a whole number >= 1")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise bad("seed", repr(seed), "a whole number")
    work = _Work(
        tuple(steps), segmenter, segmenter_weights, wanted, guide, seed, variant, filling, allow_pickle, background
    )
    editor = work.editor()  # refuses segmenters, guides and variants before any work
    target, place = Path(out).expanduser(), Path(images).expanduser()
    if place.is_dir() and target.resolve().is_relative_to(place.resolve()):
        raise bad("out", target, f"a folder outside {place}", "What is written would be taken for input the next time.")
    classes = getattr(getattr(work.live_guide, "space", None), "classes", None)
    pictures = find_pictures(place, masks, adversarial, classes)
    if classes is not None and (over := max((p.label for p in pictures if p.label is not None), default=0)) >= classes:
        raise bad("guide", f"a classifier of {classes} classes", f"one that knows the folder's {over + 1}")
    with lock(_fresh_or_own(target)):
        done = _begin(target, work.settings() | {"pictures": _fingerprint(pictures)})
        todo = [p for p in pictures if p.name not in done]
        report(len(done), len(pictures))
        with open(target / _ROWS, "a", encoding="utf-8") as kept:
            for row in _results(work, editor, pictures, todo, target, jobs):
                done[row["file"]] = row
                kept.write(json.dumps(row, ensure_ascii=False) + "\n")
                kept.flush()
                report(len(done), len(pictures))
        rows = [done[p.name] for p in pictures]
        write_atomic(target / "manifest.csv", _table(rows))
    return rows


def read_steps(
    size: float | str | None,
    direction: float | str | None,
    position: str | tuple[int, int] | None,
    background: str | None,
) -> tuple[Sequence[Step], bool]:
    """The edits as steps of `ObjectEditor.edits`, and whether the background is adversarial."""
    steps: list[Step] = []
    if size is not None:
        steps.append(("size", {"rate": size}))
    if direction is not None:
        steps.append(("direction", {"degrees": direction}))
    if position is not None:
        steps.append(("position", {"at": position}))
    if background is not None and not isinstance(background, str):
        raise bad("background", repr(background), BACKGROUNDS)
    kind, _, amount = (background or "").partition(":")
    if background is not None:
        strength = _strength(background, amount) if kind in ("plain", "complex", "adversarial") else 0.0
        if kind in ("plain", "complex", "adversarial"):
            steps.append(("background", {"complexity": -strength if kind == "plain" else strength}))
        elif kind in ("random", "procedural") and not amount:
            steps.append(("random_background", {}))
        elif kind == "identity" and not amount:
            steps.append(("identity", {}))
        else:
            raise bad("background", repr(background), BACKGROUNDS)
    if not steps:
        raise bad("edit", "none", "at least one of size, direction, position and background")
    return check_steps(steps), kind == "adversarial"


def _strength(text: str, amount: str) -> float:
    try:
        strength = float(amount or 20)
    except ValueError:
        strength = math.nan
    if not 0 <= strength <= STRONGEST:
        raise bad("background", repr(text), f"{BACKGROUNDS}, with a number >= 0 and <= {STRONGEST:g}")
    return strength


@dataclass
class _Work:
    """What a process must know to edit any of the pictures; travels to other processes, without what it has loaded."""

    steps: tuple[Step, ...]
    segmenter: Any
    segmenter_weights: Any
    wanted: Any
    guide: Any
    seed: int
    variant: Variant
    filling: Filling
    allow_pickle: bool
    background: str | None
    live_guide: Any = None

    def editor(self) -> ObjectEditor:
        found = self.segmenter
        if isinstance(found, str):
            found = load_segmenter(found, self.segmenter_weights, self.wanted, self.allow_pickle)
        painter: Any = Spectral()
        if self.guide is not None:
            from withstand.models import as_target, load_model

            text = isinstance(self.guide, str)
            self.live_guide = load_model(self.guide, allow_pickle=self.allow_pickle) if text else as_target(self.guide)
            painter = Adversarial(self.live_guide)
        return ObjectEditor(painter, found, self.seed, self.variant, self.filling)

    def settings(self) -> dict[str, Any]:
        """What makes two commands the same."""

        def said(value: Any) -> Any:
            if value is None or isinstance(value, str):
                return value
            named = value if hasattr(value, "__qualname__") else type(value)  # addresses differ from run to run
            return str(value) if isinstance(value, os.PathLike) else f"{named.__module__}.{named.__qualname__}"

        return {
            "steps": [[kind, dict(params)] for kind, params in self.steps],
            "background": self.background,
            "segmenter": said(self.segmenter),
            "segmenter_weights": said(self.segmenter_weights),
            "wanted": self.wanted,
            "guide": None if self.live_guide is None else self.live_guide.fingerprint(),
            "seed": self.seed,
            "variant": self.variant,
            "filling": self.filling,
            "version": version("withstand"),
        }


def _fresh_or_own(target: Path) -> Path:
    """Raises: BadInput for a folder that holds something else."""
    if target.is_file():
        raise bad("out", target, "a folder, new or of the same command")
    if target.is_dir() and not (target / _COMMAND).is_file():
        strangers = [p.name for p in target.iterdir() if p.name != ".lock"]
        if strangers:
            raise bad("out", f"{target} with {strangers[0]}", "a new or empty folder", "It holds something else.")
    return target


def _begin(target: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that an earlier run of the same command has left. Raises: BadInput where it was another command."""
    plain = json.loads(json.dumps(settings))
    if (target / _COMMAND).is_file():
        try:
            held = json.loads((target / _COMMAND).read_text(encoding="utf-8"))
        except ValueError:
            held = {}
        if differs := [k for k in plain if held.get(k) != plain[k]]:
            raise bad(
                "out",
                f"{target}, of a run with other {', '.join(differs)}",
                "the same command again",
                "Take another folder.",
            )
    else:
        write_json(target / _COMMAND, plain)
    file = target / _ROWS
    if not file.is_file():
        return {}
    lines = file.read_bytes()
    whole = lines[: lines.rfind(b"\n") + 1]
    if whole != lines:  # the last row was being written when the run was killed
        write_atomic(file, whole)
    rows = {row["file"]: row for row in map(json.loads, whole.decode().splitlines())}
    return {name: row for name, row in rows.items() if row["skipped"] or _written(target, name)}


def _written(target: Path, name: str) -> bool:
    """Whether what was made of a picture is still there."""
    made = Path(name).with_suffix(".png")
    return all((target / kind / made).is_file() for kind in ("images", "masks"))


def _fingerprint(pictures: Sequence[Picture]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture.digest()).digest())
    return digest.hexdigest()[:32]


def _results(
    work: _Work, editor: ObjectEditor, pictures: list[Picture], todo: list[Picture], target: Path, jobs: int
) -> Iterator[dict[str, Any]]:
    if jobs == 1 or len(todo) < 2:
        for picture in todo:
            yield _edited(editor, work, pictures, picture, target)
        return
    work = _without_loaded(work, jobs)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    positions = {p.name: i for i, p in enumerate(pictures)}
    given = work, pictures, target, os.getpid()
    try:
        with ProcessPoolExecutor(min(jobs, len(todo)), context, _start, given) as pool:
            yield from pool.map(_edit_one, [positions[p.name] for p in todo])
    except BrokenProcessPool as error:
        raise Unavailable(
            f"a process that edits ended before its time: {str(error).rstrip('.')}. With less memory give fewer --jobs; the "
            "same command continues. A script must call it below if __name__ == '__main__'."
        ) from None


_here: tuple[ObjectEditor, _Work, list[Picture], Path]


def _without_loaded(work: _Work, jobs: int) -> _Work:
    """For other processes, which load guides by themselves. Raises: BadInput for live ones that cannot travel."""
    light = replace(work, live_guide=None)
    try:
        pickle.dumps(light)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise bad("jobs", jobs, "1 with this segmenter or guide", f"It cannot be sent to processes: {error}") from None
    return light


def _start(work: _Work, pictures: list[Picture], target: Path, owner: int) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's affair
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _here = work.editor(), work, pictures, target


def _end_with(owner: int) -> None:
    """Processes of a pool whose owner was killed, be it before they were up, would wait for work for ever."""
    while os.getppid() == owner:
        time.sleep(1)
    os._exit(1)


def _edit_one(position: int) -> dict[str, Any]:
    editor, work, pictures, target = _here
    return _edited(editor, work, pictures, pictures[position], target)


def _edited(
    editor: ObjectEditor, work: _Work, pictures: list[Picture], picture: Picture, target: Path
) -> dict[str, Any]:
    """Edit one picture, write it, and say what became of it."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "file": picture.name,
        "edits": "; ".join(_text(kind, params) for kind, params in work.steps),
        "seed": work.seed,
        "skipped": 1,
        "notes": "",
    }
    try:
        image, notes = picture.read()
        mask = picture.read_mask(*image.shape[1:])
    except BadInput as damage:  # inside the file, where nobody looked before
        return row | {"reason": str(damage)}
    problem = "" if mask is None else fault(mask)
    if mask is None:
        mask, problem = editor.find(image, None)
    row |= {
        "rate_before": round(float(mask.double().mean()), 6),
        "complexity_before": round(complexity(image), 5),
        "reason": problem,
        "notes": notes,
    }
    if problem:
        return row
    others: Any = ()
    if work.background == "random":
        others = OtherScenes(pictures, picture, _scene)
    found = editor.edits(image, mask, work.steps, picture.key, picture.label, others)
    if found.skipped:
        return row | {"reason": found.reason}
    write_atomic(target / "masks" / picture.made, _png(found.mask.numpy().astype(np.uint8) * 255))
    write_atomic(target / "images" / picture.made, _png(_bytes(found.image)))
    return row | {
        "rate_after": round(found.rate, 6),
        "complexity_after": round(found.complexity, 5),
        "skipped": 0,
    }


def _scene(picture: Picture) -> Tensor | tuple[Tensor, Tensor | None]:
    try:
        image, _ = picture.read()
        mask = picture.read_mask(*image.shape[1:])
    except BadInput as damage:
        raise CannotMeet(f"no scene to be had of another picture: {damage}") from None
    if mask is not None and fault(mask):  # no object to take out, so that all of it is scene
        return image
    return image, mask


def _text(kind: str, params: Any) -> str:
    said = ", ".join(f"{name}={value}" for name, value in params.items() if name != "remove")
    return f"{kind}({said})"


def _bytes(image: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] in opencv's order of colours."""
    return (image.permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy())[..., ::-1]


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()


def _table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
