"""Terms that several losses share."""

import dataclasses
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad
from withstand.objectives import CrossEntropy
from withstand.protocols import Batch
from withstand.random import Rows, derive
from withstand.registry import replace
from withstand.training.recipe import Step


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p, p') = sum_k p_k log(p_k / p'_k) of two batches of logits, [N]; gradients flow through both."""
    ours, theirs = clean.float().log_softmax(1), adversarial.float().log_softmax(1)
    return (ours.exp() * (ours - theirs)).sum(1)


def say_accuracy(step: Step, y: Tensor | None, **logits: Tensor) -> None:
    """Log the share of the batch that each of the logits [N, K] gets right, as train_accuracy_NAME; soft labels count by
    their largest class."""
    if y is None:
        return
    classes = y if y.dim() == 1 else y.argmax(1)
    for name, z in logits.items():
        step.say(f"train_accuracy_{name}", (z.detach().argmax(1) == classes).float().mean())


def at_least_zero(**settings: float) -> None:
    """Refuse what is negative or not finite."""
    for name, value in settings.items():
        if not 0 <= value < torch.inf:
            raise bad(name, value, "a finite number >= 0")


def on_term(attack: Any, objective: Any) -> Any:
    """The attack on the term that its recipe minimises: `objective` takes the place of an attack's default.

    Raises: BadInput for an attack that was given another objective.
    """
    own = next((f for f in fields(attack) if f.name == "objective"), None)
    if own is None:
        return attack
    if attack.objective not in (CrossEntropy(), own.default, objective):
        raise bad("attack", f"the objective {attack.objective!r}", "none", "The recipe sets it; leave it out.")
    return replace(attack, objective=objective)


def towards(logits: Tensor, target: Tensor) -> Tensor:
    """The objective of an attack whose labels are targets: log softmax(z)_t, [N]. Needs no look at the clean example."""
    return -F.cross_entropy(logits, target, reduction="none")


def aimed(attack: Any) -> Any:
    """The attack with labels read as targets.

    Raises: BadInput for attacks that take no objective, or were given another one.
    """
    if "objective" not in {f.name for f in fields(attack)}:
        raise bad("attack", repr(attack), "one that takes an objective, e.g. pgd", "It has to aim at random classes.")
    return on_term(attack, towards)


def copies(augmentations: Any, batch: Batch, step: Step, classes: int, name: str) -> dict[str, Any]:
    """One copy of the batch by each augmentation, for `Batch.extra`: inputs as NAME_i, labels as NAME_i_labels. Each copy
    has draws of its own, whatever else is augmented in the same way."""
    made: dict[str, Any] = {}
    for i, augmentation in enumerate(augmentations):
        seeds = derive(step.seed, name, i), derive(step.rows.seed, name, i)
        copy = augmentation(
            batch, dataclasses.replace(step, seed=seeds[0], rows=Rows(seeds[1], step.rows.ids)), classes
        )
        made |= {f"{name}_{i}": copy.x, f"{name}_{i}_labels": copy.y}
    return made
