"""Trained models as folders: what they are made of, and their weights beside it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from withstand import errors
from withstand.files import write_json
from withstand.models.record import TrainingRecord
from withstand.models.target import TorchTarget
from withstand.models.weights import load_weights, read_weights
from withstand.protocols import Space, Target
from withstand.registry import parse

FILE = "artefact.json"


def describe(target: Target, space: Space) -> dict[str, Any] | None:
    """How to build this target's architecture again; None where it was not built by `load_model`."""
    built = getattr(target, "built_by", None)
    if built is None:
        return None
    return {"kind": "model", **built, "classes": space.classes}


def keep_model(folder: str | Path, target: Target, space: Space, name: str, weights: str, recipe: Any = None) -> None:
    """Describe a trained model in its folder, where its architecture was built by `load_model`, as it is or inside what
    recipes shipped around it before (a probe on an encoder, say).

    weights: the file in that folder. recipe: the one that trained it, where it ships something around the architecture.
    """
    entry = describe(target, space)
    if entry is None:
        return
    entry |= {"name": name, "weights": weights}
    if recipe is not None:
        before = _wrappers(entry)
        wraps = [*before, repr(recipe)] if before else repr(recipe)
        entry |= {"wraps": wraps, "shape": space.shape, "task": recipe.task}
    write_json(Path(folder) / FILE, entry)


def keep_part(
    folder: str | Path, kind: str, space: Space, name: str, weights: str, recipe: Any, origin: dict[str, Any]
) -> None:
    """Describe something trained that is no model (a generator, say), which its recipe builds again from the space alone.

    origin: what it was made of, for the reader: fingerprints, seed, versions.
    """
    entry = {"kind": kind, "name": name, "weights": weights, "wraps": repr(recipe)}
    entry |= {"shape": space.shape, "box": space.box, "classes": space.classes, "origin": origin}
    write_json(Path(folder) / FILE, entry)


def load(folder: str, name: str | None = None) -> Target:
    """The model of an artefact folder, e.g. one that `withstand harden --out` wrote.

    What a recipe ships around the architecture (noise, another head) is built by the recipe's `deploy`.
    Raises: BadInput for a folder without a model, with a damaged description, or of a recipe that is not known here.
    """
    from withstand.models.load import load_model

    held, path = _read(folder, "model")
    with _damaged(path):
        spec, weights = held["spec"], path.parent / held["weights"]
    given = {key: held.get(key) for key in ("mean", "std", "classes", "outputs")} | held.get("options", {})
    name = name or held.get("name")
    if held.get("wraps"):
        fresh: dict[str, Any] = {"pretrained": False} if spec.startswith(("timm:", "torchvision:", "zoo:")) else {}
        base = load_model(spec, name=name, **given, **fresh)
        assert isinstance(base, TorchTarget)
        module, space = _deployed(held, weights, base.module, base.space)
        task = held.get("task", "classification")
        if task != "classification":
            space = replace(space, classes=None)
        target: Target = TorchTarget(module, base.name, space, task, notes=base.notes)
        built = ("spec", "mean", "std", "outputs", "options", "wraps", "shape", "task")
        target.built_by = {key: held[key] for key in built if key in held}
    else:
        target = load_model(spec, weights, name=name, **given)
        if "knn" in held:
            from withstand.models.neighbours import restore

            state = read_weights(path.parent / "knn.safetensors")
            with _damaged(path):
                target = restore(target, held["knn"], state, name)
    target.record = TrainingRecord.read(path.parent)  # type: ignore[attr-defined]
    return target


def load_part(folder: str, kind: str) -> tuple[nn.Module, Space]:
    """The trained part of this kind that a folder holds, in eval mode, and the space that it was trained for.

    Raises: BadInput as `load` does, and for a folder that holds something else.
    """
    held, path = _read(folder, kind)
    with _damaged(path):
        weights, box = path.parent / held["weights"], held["box"]
    return _deployed(held, weights, None, Space(box=None if box is None else (box[0], box[1])))


def _read(folder: str, kind: str) -> tuple[dict[str, Any], Path]:
    """The description of a folder, if it is of this kind."""
    path = Path(folder).expanduser() / FILE
    verb = "harden" if kind == "model" else "fit-attack"
    if not path.is_file():
        raise errors.bad(kind, f"artefact:{folder}", f"a folder with {FILE}", f"withstand {verb} --out writes one.")
    with _damaged(path):
        held = json.loads(path.read_text(encoding="utf-8"))
        found = held.get("kind", "model")
    if found != kind:
        mend = "Give it to an attack that takes one." if kind == "model" else f"withstand {verb} --out writes one."
        raise errors.bad(kind, f"artefact:{folder}, which holds a {found}", f"a folder that holds a {kind}", mend)
    return held, path


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise errors.BadInput(f"model: {path} is damaged ({error!r}). Write the artefact again.") from None


def _deployed(held: dict[str, Any], weights: Path, base: nn.Module | None, space: Space) -> tuple[nn.Module, Space]:
    """The recipe that trained it builds what it ships; then the weights are loaded."""
    try:
        recipes = [parse(text, "recipe") for text in _wrappers(held)]
    except errors.BadInput as error:
        mend = "Import the module that registers the recipe first (on the command line: give the model as file.py:factory)."
        raise errors.BadInput(f"model: the recipe of {weights.parent / FILE} cannot be built: {error} {mend}") from None
    space = replace(space, shape=held.get("shape") and tuple(held["shape"]), classes=held.get("classes"))
    with torch.random.fork_rng(devices=[]):  # weights are drawn, and then replaced
        module: Any = base
        for recipe in recipes:
            module = recipe.deploy(module, space)
    load_weights(module, read_weights(weights), f"weights {weights}")
    return module.eval(), space


def _wrappers(entry: dict[str, Any]) -> list[str]:
    """The recipes that shipped something around the architecture, innermost first."""
    wraps = entry.get("wraps") or []
    return [wraps] if isinstance(wraps, str) else wraps
