"""`fit_attack`: train what an attack needs first (a generator, a better surrogate), and keep it for new images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from withstand.errors import bad
from withstand.models import artefact, as_target, check_compatible
from withstand.models.record import TrainingRecord
from withstand.models.target import TorchTarget, read_as
from withstand.protocols import Dataset, Space, Target
from withstand.registry import coerce
from withstand.training.materials import materials, split
from withstand.training.trainer import Fitted, Moment, Trainer


@dataclass(frozen=True)
class FittedAttack:
    """What `fit_attack` made.

    kind: "model" for a surrogate, else the word for what it is, such as "generator". module: it, in eval mode. space: of
    its inputs. name: for tables. fitted: the history, the best epoch; see `Fitted`. Attacks take it as it is, or
    "artefact:FOLDER" for the folder that it was written to.
    """

    kind: str
    module: nn.Module
    space: Space
    name: str
    fitted: Fitted

    @property
    def target(self) -> Target:
        """A surrogate as a target that knows its training, ready to be attacked. Raises: BadInput for what is no model."""
        if self.kind != "model":
            raise bad("fitted", f"a {self.kind}", "a model", f"Attacks take a {self.kind} as it is.")
        module, outputs = read_as(self.module)
        target = TorchTarget(module, self.name, self.space, outputs=outputs)
        target.record = TrainingRecord(self.history)
        return target

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per epoch."""
        return self.fitted.history

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}, {len(self.history)} epochs>"


def fit_attack(
    recipe: Any,
    model: Any,
    data: Any,
    *,
    out: str | Path | None = None,
    validation: Dataset | float | None = 0.1,
    trainer: Trainer | None = None,
    seed: int = 0,
    progress: Callable[[Moment], None] | None = None,
    loggers: Sequence[Any] = (),
    name: str | None = None,
    scratch: bool = False,
    **settings: Any,
) -> FittedAttack:
    """Train what an attack needs before it can be used; the model and the data are what the attacker has.

    recipe: what is fitted, or its text (`withstand list recipes` tells which belong here). model: the attacker's own (a
    source classifier, a surrogate): what `load_model` reads, a target with gradients, or a module; it stays as it is.
    data: the attacker's examples, a data set or what `load_data` reads (its training part). out: a folder for
    checkpoints, history and weights; the same call with the same folder goes on where it stopped. validation: a data
    set, or a share of the examples to hold out, by whose clean accuracy the best epoch of a surrogate is chosen; None:
    the last counts. Where labels play no part, and for parts that are no classifiers, nothing is validated. trainer, or
    its settings one by one, which override the recipe's own (those of its paper); see `Trainer`. name: of the result in
    tables. scratch: begin with fresh weights.

    Raises:
        BadInput: before any work, where model, data and recipe do not fit, or the folder holds another training.
        Diverged: the loss is no number any more. Unavailable: a full disk or too little memory.
    """
    recipe = coerce("recipe")(recipe)
    if recipe.verb != "fit-attack":
        raise bad("recipe", recipe.component_name, "a recipe of fit-attack", f"withstand {recipe.verb} runs this one.")
    if isinstance(model, str):
        refuse_fresh(recipe, model, scratch)
    target, module, examples = materials(model, data, scratch)
    space = check_compatible(target, examples, recipe.labelled and target.task == "classification")
    if target.task != "classification":  # whose outputs are no classes
        space = replace(space, classes=len(examples.classes) or None)
    if trainer is not None and settings:
        raise bad("settings", ", ".join(settings), "none beside trainer=", "Put them into the trainer.")
    trainer = trainer or Trainer(**{**recipe.defaults, **settings})
    whole = recipe.ships == "model"
    learned, held = split(examples, validation if whole and recipe.labelled else None, seed)
    fitted = trainer.fit(recipe, module, learned, held, None, out, seed, progress, loggers)
    name = name or f"{target.name} + {recipe.component_name}"
    if out is not None and fitted.rank == 0:
        if whole:
            best = "last" if fitted.best_epoch is None else "best"
            artefact.keep_model(out, target, space, name, f"{best}.safetensors", recipe if recipe.wraps else None)
        else:
            origin = {
                "model": {"name": target.name, "fingerprint": target.fingerprint()},
                "data": {"name": learned.name, "fingerprint": learned.fingerprint()},
                "seed": seed,
                "versions": {package: metadata.version(package) for package in ("withstand", "torch")},
            }
            artefact.keep_part(out, recipe.ships, space, name, "last.safetensors", recipe, origin)
    return FittedAttack(recipe.ships, fitted.model, replace(target.space, **vars(space)), name, fitted)


def refuse_fresh(recipe: Any, model: str, scratch: bool) -> None:
    """Refuse fresh weights, which networks of the zoo have that are given none, for a recipe that needs trained ones."""
    if recipe.learned and (scratch or model.startswith("zoo:")):
        mend = "Name its --weights, or artefact:FOLDER of a training by withstand harden --recipe standard."
        raise bad("model", f"{model} with fresh weights", f"a trained model for {recipe.component_name}", mend)


_LOADED: dict[tuple[str, int], nn.Module] = {}


def load_fitted(given: Any, kind: str) -> nn.Module:
    """The module of something fitted before: what `fit_attack` returned, a module, a target, or "artefact:FOLDER".

    Folders are read once, and again when their description has changed.

    Raises: BadInput for a fitted thing or a folder of another kind.
    """
    if isinstance(given, FittedAttack):
        if given.kind != kind:
            raise bad(kind, repr(given), f"a {kind}")
        return given.module
    if not isinstance(given, str):
        module = given if isinstance(given, nn.Module) else as_target(given).module
        if module is None:
            raise bad(kind, repr(given), "a torch module")
        return module
    source, _, folder = given.partition(":")
    if source != "artefact" or not folder:
        raise bad(kind, repr(given), "artefact:FOLDER, a module, or what fit_attack returned")
    described = Path(folder).expanduser() / artefact.FILE
    key = (f"{kind} {described.resolve()}", described.stat().st_mtime_ns if described.is_file() else 0)
    if key not in _LOADED:
        if kind == "model":
            from withstand.models import load_model

            module = load_model(given).module
            assert module is not None
        else:
            module, _ = artefact.load_part(folder, kind)
        _LOADED[key] = module
    return _LOADED[key]
