"""Trained models as folders: what they are made of, and their weights beside it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from withstand import errors
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


def load(folder: str, name: str | None = None) -> Target:
    """The model of an artefact folder, e.g. one that `withstand harden --out` wrote.

    What a recipe ships around the architecture (noise, another head) is built by the recipe's `deploy`.
    Raises: BadInput for a folder without a model, with a damaged description, or of a recipe that is not known here.
    """
    from withstand.models.load import load_model

    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise errors.bad("model", f"artefact:{folder}", f"a folder with {FILE}", "withstand harden --out writes one.")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        spec, weights = held["spec"], path.parent / held["weights"]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.BadInput(f"model: {path} is damaged ({error!r}). Write the artefact again.") from None
    given = {key: held.get(key) for key in ("mean", "std", "classes", "outputs")} | held.get("options", {})
    name = name or held.get("name")
    if held.get("wraps"):
        fresh: dict[str, Any] = {"pretrained": False} if spec.startswith(("timm:", "torchvision:", "zoo:")) else {}
        target = load_model(spec, name=name, **given, **fresh)
        assert isinstance(target, TorchTarget)
        target = _deployed(target, held, weights)
    else:
        target = load_model(spec, weights, name=name, **given)
        if held.get("kind") == "knn":
            target = _voting(target, held, path.parent, name)
    target.record = TrainingRecord.read(path.parent)  # type: ignore[attr-defined]
    return target


def _voting(base: Target, held: dict[str, Any], folder: Path, name: str | None) -> Target:
    """A kNN classifier around its backbone."""
    from withstand.models.neighbours import restore

    assert isinstance(base, TorchTarget)
    try:
        return restore(base, held, folder, name)
    except (KeyError, TypeError) as error:
        raise errors.BadInput(f"model: {folder} is damaged ({error!r}). Save the classifier again.") from None


def _deployed(base: TorchTarget, held: dict[str, Any], weights: Path) -> Target:
    """The recipe that trained it builds what it ships around the architecture; then the weights are loaded."""
    try:
        recipe = parse(held["wraps"], "recipe")
    except errors.BadInput as error:
        mend = "Import the module that registers the recipe first (on the command line: give the model as file.py:factory)."
        raise errors.BadInput(f"model: the recipe of {weights.parent / FILE} cannot be built: {error} {mend}") from None
    space = replace(base.space, shape=held.get("shape") and tuple(held["shape"]), classes=held.get("classes"))
    with torch.random.fork_rng(devices=[]):  # weights are drawn, and then replaced
        module = recipe.deploy(base.module, space)
    load_weights(module, read_weights(weights), f"weights {weights}")
    return TorchTarget(module.eval(), base.name, base.space, notes=base.notes)
