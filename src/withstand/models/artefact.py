"""Trained models as folders: what they are made of, and their weights beside it."""

import json
from pathlib import Path
from typing import Any

from withstand import errors
from withstand.models.record import TrainingRecord
from withstand.protocols import Space, Target

FILE = "artefact.json"


def describe(target: Target, space: Space) -> dict[str, Any] | None:
    """How to build this target's architecture again; None where it was not built by `load_model`."""
    built = getattr(target, "built_by", None)
    if built is None:
        return None
    return {"kind": "model", **built, "classes": space.classes}


def load(folder: str, name: str | None = None) -> Target:
    """The model of an artefact folder, e.g. one that `withstand harden --out` wrote.

    Raises: BadInput for a folder without a model, or with a damaged description.
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
    if held.get("wraps"):
        mend = f"Build the system with {held['wraps']}.setup(...), and load {weights.name} into its model."
        raise errors.bad("model", f"artefact:{folder}", "an artefact of the architecture that was given", mend)
    target = load_model(
        spec,
        weights,
        *(None if held.get(key) is None else held[key] for key in ("mean", "std")),
        classes=held.get("classes"),
        name=name or held.get("name"),
        outputs=held.get("outputs"),
        **held.get("options", {}),
    )
    target.record = TrainingRecord.read(path.parent)  # type: ignore[attr-defined]
    return target
