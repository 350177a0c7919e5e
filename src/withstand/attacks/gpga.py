"""The guided attack: a second classifier shows the way where the gradients of the first are bent.

Reconstructed from the abstract of Naseer, Khan, Porikli, Khan, "Guidance Through Surrogate: Towards a Generic Diagnostic
Attack", 2022, arXiv 2212.14875. The paper's formula, surrogate and step counts could not be read: what is here satisfies
what the abstract says, and the paper's numbers are not to be expected of it.
"""

from contextlib import nullcontext
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor

from withstand.attacks.engine import Attack, Point, Problem
from withstand.attacks.pgd import PGD, needs_fixed_set
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.objectives import Misclassified, State, at
from withstand.protocols import Seen
from withstand.registry import component
from withstand.threats import Linf, ThreatField


def _guide(value: Any) -> Any:
    """A model, or the text of one that `load_model` reads, which is loaded when it is needed first."""
    from withstand.models.target import as_target

    return value if value is None or isinstance(value, str) else as_target(value)


Guide = Annotated[Any, PlainValidator(_guide)]


@component("objective", "match_deceive", systems=("gpga",))
class MatchDeceive:
    """Match and deceive: away from the label, towards what a guide makes of the same input.

    CE(z, y) - weight * CE(z, q), q = softmax of the guide's logits there, through which no gradient flows. With weight 1 the
    normalisers cancel: sum_{k != y} q_k (z_k - z_y), a margin towards the classes that the guide finds likely, which no
    saturated softmax flattens; there q is shared out anew among the other classes, a positive factor per example that
    normalised steps do not see.

    guide: a classifier of the same classes; best adversarially trained with hard labels, with another seed or architecture,
    never on the examples that are attacked. weight: from 0 (plain cross-entropy) to 1; above 1, agreement with a guide that
    is not fooled would be rewarded. Each value costs one forward pass of the guide.

    For a targeted attack the guide's answer is the target, and the objective is `targeted_difference`.
    """

    guide: Guide = None
    weight: float = 1.0

    reads = ("logits", "input")
    coupled = False
    criterion = Misclassified()

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise bad("weight", self.weight, "a number from 0 to 1")
        if self.guide is None and self.weight > 0:
            raise bad("guide", "none", "a model of the same classes, or its text", 'E.g. guide="artefact:runs/at".')

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        z = seen.logits
        if self.weight == 0:
            return F.cross_entropy(z, y, reduction="none")
        q = self.answer(seen.input.detach(), z.shape[1])
        if self.weight < 1:
            return F.cross_entropy(z, y, reduction="none") - self.weight * F.cross_entropy(z, q, reduction="none")
        others = (q + 1e-12).scatter(1, y[:, None], 0.0)
        return (others / others.sum(1, keepdim=True) * (z - at(z, y)[:, None])).sum(1)

    def answer(self, x: Tensor, classes: int) -> Tensor:
        """The guide's probabilities [N, K]. Raises: BadInput for another number of classes."""
        guide = loaded(self.guide, x.device)
        with torch.no_grad(), frozen(guide.module) if guide.module is not None else nullcontext():
            logits = guide(x)
        if logits.shape[1] != classes:
            raise bad("guide", f"{logits.shape[1]} classes", f"the {classes} classes of the attacked model")
        return logits.softmax(1)


@component("attack", "gpga", systems=("gpga",))
class GPGA(Attack):
    """Guided projected gradient attack: few sign steps from the clean point on `match_deceive`.

    z <- P(z + step * eps * steepest(grad [CE(z, y) - weight * CE(z, q)])), q what the guide says at z.

    guide, weight: see `match_deceive`. step: as a share of eps. guided_start: begin where 10 steps on the guide alone end.
    Passes of the guide are counted as the model's own. A tool for screening: it stays above AutoAttack, and its use is the
    difference from PGD, which tells of masked gradients (the check `guided`).

    Examples that withstand return the point of the largest objective.

    Reference: reconstructed from the abstract of Naseer, Khan, Porikli, Khan, "Guidance Through Surrogate: Towards a Generic
    Diagnostic Attack", 2022, arXiv 2212.14875.
    """

    threat: ThreatField = Linf(8 / 255)
    guide: Guide = None
    weight: float = 1.0
    steps: int = 10
    step: float = 0.25
    guided_start: bool = False

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        if self.steps < 1:
            raise bad("steps", self.steps, "a whole number >= 1")
        if not self.step > 0:
            raise bad("step", self.step, "a share of eps > 0")
        if not 0 <= self.weight <= 1:
            raise bad("weight", self.weight, "a number from 0 to 1")

    def refuse(self, model: Any, x: Tensor) -> None:
        classes = getattr(getattr(model, "space", None), "classes", None)
        if self.weight > 0 and classes:
            MatchDeceive(self.guide, self.weight).answer(x, classes)

    def problem(self, **settings: Any) -> Problem:
        return super().problem(**{"objective": MatchDeceive(self.guide, self.weight), **settings})

    def search(self, p: Problem) -> Point:
        z: Point = p.start(random=False)
        if self.guided_start:
            inner = PGD(p.threat, steps=10, step=0.25, random_start=False, keep="last", active=False)
            guide = loaded(self.guide, p.x.device)
            z = inner(guide, p.x_alive, p.y_alive, ids=p.rows.ids, block=len(p.x_alive), box=p.box)
            p.passes(10, 10)
        for _ in range(self.steps):
            gradient = p.gradient(z)
            p.passes(int(self.weight > 0))
            z, gradient = p.drop_done(z, gradient)
            if p.finished:
                return z
            z = p.step(z, gradient, self.step)
        if self.keep == "best" or self.active:
            p.look(z)
            p.passes(int(self.weight > 0))
        return z


_LOADED: dict[str, Any] = {}


def loaded(guide: Any, device: torch.device) -> Any:
    """The target of a guide; texts are loaded once, and follow the attacked examples to their device."""
    if not isinstance(guide, str):
        return guide
    if guide not in _LOADED:
        from withstand.models import load_model

        _LOADED[guide] = load_model(guide)
    found = _LOADED[guide]
    if found.module is not None and any(p.device != device for p in found.module.parameters()):
        found.module.to(device)
    return found
