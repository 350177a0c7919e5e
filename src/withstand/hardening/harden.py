"""`harden`: train a copy of a model by a recipe, and keep what comes out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from withstand.attacks import PGD
from withstand.errors import bad
from withstand.models import check_compatible
from withstand.models.artefact import keep_model
from withstand.models.record import TrainingRecord
from withstand.models.target import TorchTarget, read_as
from withstand.protocols import Dataset, Target
from withstand.registry import coerce
from withstand.threats import Threat
from withstand.training.materials import materials, split
from withstand.training.trainer import Fitted, Moment, Trainer


class Hardened(TorchTarget):
    """The model that came out of a training, ready to be audited, and how it got there.

    model, name, space: as of any target. fitted: the history, the best epoch, the last weights; see `Fitted`.
    before: the target that training began with, untouched. record: what an audit tells of the training.
    """

    def __init__(
        self,
        module: nn.Module,
        before: Target,
        name: str,
        fitted: Fitted,
        record: TrainingRecord,
        task: str = "classification",
    ) -> None:
        shipped, outputs = read_as(module)
        super().__init__(shipped, name, before.space, task, outputs=outputs)
        self.before, self.fitted, self.record = before, fitted, record

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per epoch."""
        return self.fitted.history


def harden(
    model: Any,
    data: Any,
    recipe: Any = "pgd_at",
    *,
    out: str | Path | None = None,
    validation: Dataset | float | None = 0.1,
    judge: Any = "auto",
    trainer: Trainer | None = None,
    seed: int = 0,
    progress: Callable[[Moment], None] | None = None,
    loggers: Sequence[Any] = (),
    name: str | None = None,
    scratch: bool = False,
    **settings: Any,
) -> Hardened:
    """Train a copy of a model by a recipe; returns the best one by validation, which can be audited as it is.

    >>> harden("zoo:digits_cnn", "digits", "pgd_at(attack=pgd(linf(0.15), steps=5))", epochs=10)
    <zoo:digits_cnn + pgd_at: classification, input (1, 8, 8), 10 classes>

    model: what `load_model` reads, a target with gradients, or a module; it stays as it is. scratch: for a text, begin with
    fresh weights (networks of the zoo, which have no published ones, always do). data: the training examples,
    a data set or what `load_data` reads (its training part). recipe: a recipe or its text (`withstand list recipes`).
    out: a folder for checkpoints, history and weights; the same call with the same folder goes on where it stopped.
    validation: a data set, or the share of the examples that is held out, of each class its part; None: no validation, the
    last weights count. judge: the attack by which the best epoch is chosen; "auto" takes PGD with ten steps in the threat
    of the recipe's attack, if it has one and ships a classifier or codes (against which the centre-guided attack takes its
    place); "none" the clean accuracy (of embeddings: the recall, of codes: MAP).
    trainer, or its settings one by one: epochs, batch, optimizer, schedule, averaging, ..., which override the recipe's
    own; see `Trainer`. name: of the result in tables.

    Raises:
        BadInput: before any work, where model, data and recipe do not fit, or the folder holds another training.
        Diverged: the loss is no number any more. Unavailable: a full disk or too little memory.
    """
    recipe = coerce("recipe")(recipe)
    if recipe.verb != "harden":
        raise bad("recipe", recipe.component_name, f"a recipe of harden; this one belongs to {recipe.verb}")
    target, module, examples = materials(model, data, scratch)
    if recipe.labelled and recipe.task == "classification" != target.task:
        mend = "The recipe linear_probe puts one on an encoder."
        raise bad("model", f"{target.name}, which does {target.task}", "a classifier", mend)
    space = check_compatible(target, examples, recipe.labelled and recipe.task == "classification")
    if trainer is not None and settings:
        raise bad("settings", ", ".join(settings), "none beside trainer=", "Put them into the trainer.")
    trainer = trainer or Trainer(**{**recipe.defaults, **settings})
    learned, held = split(examples, validation, seed)
    judge = judge_of(judge, recipe)
    fitted = trainer.fit(recipe, module, learned, held, judge, out, seed, progress, loggers)
    record = TrainingRecord(
        fitted.history, repr(recipe), "" if judge is None else repr(judge), len(learned), len(held or ())
    )
    name = name or f"{target.name} + {recipe.component_name}"
    after = Hardened(fitted.model, target, name, fitted, record, recipe.task)
    if out is not None and fitted.rank == 0:
        best = "last" if fitted.best_epoch is None else "best"
        keep_model(out, target, space, after.name, f"{best}.safetensors", recipe if ships_around(recipe) else None)
    return after


def ships_around(recipe: Any) -> bool:
    """Whether a recipe, or one that it wraps, ships another architecture than it was given."""
    return getattr(recipe, "wraps", False) or (hasattr(recipe, "recipe") and ships_around(recipe.recipe))


def judge_of(judge: Any, recipe: Any) -> Any:
    """The attack that tells which epoch is best, or None for the clean accuracy."""
    if judge is None or judge == "none":
        return None
    if judge != "auto":
        return coerce("attack")(judge)
    if recipe.task not in ("classification", "hashing"):
        return None
    inner = recipe
    while hasattr(inner, "recipe"):  # wrappers such as AWP
        inner = inner.recipe
    attack = getattr(inner, "attack", inner)
    threat = getattr(attack, "threat", None)
    if not isinstance(threat, Threat) or threat.eps is None:
        return None
    if not hasattr(threat, "project"):
        return attack
    return PGD(threat, steps=10)
