"""Objectives: what an attacker increases, one value for each example.

All take what the model was seen to do (`Seen`), labels y (long [N]) and the state made by `begin`, and return [N].
A plain function of (logits, y) is accepted wherever an objective is; see `as_objective`.

Notation in the formulas: z logits, z_y the logit of the label, z_(k) the k-th largest logit, t a target class.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import coerce, component, is_component
from withstand.threats import ThreatField

State = Mapping[str, Tensor]

_SOFT = 'Or judge nothing: keep="last", active=False.'

# Success
# ---------------------------------------------------------------------------------------------------------------


@component("criterion", "misclassified")
class Misclassified:
    """The model's class is no longer the label."""

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        if y.dim() != 1:
            raise bad("y", f"soft labels {tuple(y.shape)}", "class indices [N], which success is judged by", _SOFT)
        return seen.logits.argmax(1) != y


@component("criterion", "hits_target")
class HitsTarget:
    """The model's class is the target that the objective chose."""

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return seen.logits.argmax(1) == state["target"]


@component("criterion", "confident")
class Confident:
    """The objective's goal is reached with a margin of at least its kappa."""

    objective: Annotated[Any, PlainValidator(lambda value: with_goal(value))]

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        reached = self.objective.criterion(seen, y, state)
        return reached & (self.objective(seen, y, state) >= self.objective.kappa)


# The logits against the label
# ------------------------------------------------------------------------------------------


def best_other(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of a class other than y, [N]; needs two classes."""
    _need_classes("margin", logits, 2)
    values, classes = logits.topk(2, dim=1)
    return torch.where(classes[:, 0] == y, values[:, 1], values[:, 0])


def at(logits: Tensor, y: Tensor) -> Tensor:
    """The logit of class y, [N]."""
    return logits.gather(1, y[:, None]).squeeze(1)


class _Untargeted:
    reads = ("logits",)
    coupled = False
    criterion = Misclassified()


@component("objective", "cross_entropy")
class CrossEntropy(_Untargeted):
    """Cross-entropy of the label: -log softmax(z)_y. Soft labels [N, K] are accepted."""

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return F.cross_entropy(seen.logits, y, reduction="none")


@component("objective", "margin")
class Margin(_Untargeted):
    """Margin of the best other class over the label, capped at kappa: min(max_{i != y} z_i - z_y, kappa).

    Reference: Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, arXiv 1608.04644.
    """

    kappa: float = float("inf")

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return (best_other(seen.logits, y) - at(seen.logits, y)).clamp_max(self.kappa)


@component("objective", "label_logit", systems=("dra",))
class LabelLogit(_Untargeted):
    """Negated logit of the label: -z_y."""

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return -at(seen.logits, y)


@component("objective", "dlr")
class DLR(_Untargeted):
    """Difference of logits ratio: -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)); needs three classes.

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, arXiv 2003.01690.
    """

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        _need_classes("dlr", seen.logits, 3)
        top = seen.logits.topk(3, dim=1).values
        return (best_other(seen.logits, y) - at(seen.logits, y)) / (top[:, 0] - top[:, 2] + 1e-12)


@component("objective", "kl")
class KL(_Untargeted):
    """Divergence of the prediction from the clean one: KL(softmax z(x) || softmax z). Needs no labels.

    Reference: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019, arXiv 1901.08573.
    """

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        return {"clean": clean.logits.log_softmax(1)}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return F.kl_div(seen.logits.log_softmax(1), state["clean"], reduction="none", log_target=True).sum(1)


# The logits against a target
# -------------------------------------------------------------------------------------------


def _target(value: Any) -> Any:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    if isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point():
        return value
    raise bad("target", repr(value), "a class index >= 0, a long tensor [N], or None to aim by rank")


Target = Annotated[Any, PlainValidator(_target)]


class _Targeted:
    """Objectives that pull towards a class: `target` (a class, or one for each example), or else the class of rank
    `rank`
    by the clean logits (2 = the runner-up), the label left out.

    With `target` the attack succeeds when the model says that class; with `rank` when it says anything but the label.
    """

    reads = ("logits",)
    coupled = False
    target: Any
    rank: int

    @property
    def criterion(self) -> Any:
        return Misclassified() if self.target is None else HitsTarget()

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        logits = clean.logits
        if self.target is None:
            if not 2 <= self.rank <= logits.shape[1]:
                raise bad("rank", self.rank, f"2 to {logits.shape[1]}, the number of classes")
            others = logits.scatter(1, y[:, None], float("inf"))  # the label takes rank 1, whatever the model says
            return {"target": others.argsort(1, descending=True)[:, self.rank - 1]}
        chosen = torch.as_tensor(self.target, device=logits.device).expand(len(logits)).long()
        if int(chosen.max()) >= logits.shape[1]:
            raise bad("target", int(chosen.max()), f"a class below {logits.shape[1]}")
        return {"target": chosen}


@component("objective", "targeted_cross_entropy")
class TargetedCrossEntropy(_Targeted):
    """Log-probability of the target: log softmax(z)_t."""

    target: Target = None
    rank: int = 2

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return -F.cross_entropy(seen.logits, state["target"], reduction="none")


@component("objective", "targeted_margin")
class TargetedMargin(_Targeted):
    """Margin of the target over the best other class, capped at kappa: min(z_t - max_{i != t} z_i, kappa).

    Reference: Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, arXiv 1608.04644.
    """

    target: Target = None
    rank: int = 2
    kappa: float = float("inf")

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        t = state["target"]
        return (at(seen.logits, t) - best_other(seen.logits, t)).clamp_max(self.kappa)


@component("objective", "targeted_difference")
class TargetedDifference(_Targeted):
    """Logit of the target minus that of the label: z_t - z_y; above 0 the label has lost."""

    target: Target = None
    rank: int = 2

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return at(seen.logits, state["target"]) - at(seen.logits, y)


@component("objective", "targeted_logit", systems=("dra", "transfer_baselines"))
class TargetedLogit(_Targeted):
    """Logit of the target: z_t, which goes on growing where the cross-entropy is satisfied.

    Reference: Zhao, Liu, Larson, "On Success and Simplicity: A Second Look at Transferable Targeted Attacks", 2021, arXiv
    2012.11207.
    """

    target: Target = None
    rank: int = 2

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return at(seen.logits, state["target"])


@component("objective", "targeted_dlr")
class TargetedDLR(_Targeted):
    """Targeted difference of logits ratio: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2); needs four classes.

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, arXiv 2003.01690.
    """

    target: Target = None
    rank: int = 2

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        _need_classes("targeted_dlr", seen.logits, 4)
        top = seen.logits.topk(4, dim=1).values
        scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
        return (at(seen.logits, state["target"]) - at(seen.logits, y)) / scale


# Beside the goal, the cost
# ---------------------------------------------------------------------------------------------


@component("criterion", "within")
class Within:
    """The goal of an objective is reached at a point of a threat's set."""

    objective: Annotated[Any, PlainValidator(lambda value: with_goal(value))]
    threat: ThreatField

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return self.objective.criterion(seen, y, state) & self.threat.contains(state["clean_input"], seen.input)


@component("objective", "penalised", systems=("tsa_stat",))
class Penalised:
    """Another objective less a price for the distance: objective - weight * distance(x, z).

    For sets without a projection. The goal counts as reached only inside the threat's set. objective: what is wanted.
    threat: whose distance is paid for; it must be differentiable. weight: the price of a unit of distance.
    """

    objective: Annotated[Any, PlainValidator(lambda value: with_goal(value))]
    threat: ThreatField
    weight: float = 1.0

    coupled = False

    def __post_init__(self) -> None:
        if isinstance(getattr(self.objective, "target", None), Tensor) or isinstance(self.threat.eps, Tensor):
            raise bad("objective", "one target or radius for each example", "one for all examples")
        if not 0 <= self.weight < float("inf"):
            raise bad("weight", self.weight, "a number >= 0")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("input", *self.objective.reads)

    @property
    def criterion(self) -> Any:
        return Within(self.objective, self.threat)

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        begin = getattr(self.objective, "begin", None)
        return {**(begin(clean, y, rows) if begin else {}), "clean_input": clean.input}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        wanted = self.objective(seen, y, state)
        if self.weight == 0:
            return wanted
        return wanted - self.weight * self.threat.distance(state["clean_input"], seen.input)


# Any function
# ----------------------------------------------------------------------------------------------------------


class Plain:
    """An objective made of a function of (logits, y) that returns [N]."""

    reads = ("logits",)
    coupled = False
    criterion = Misclassified()

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function
        self.__qualname__ = getattr(function, "__qualname__", "objective")

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return self.function(seen.logits, y)


def as_objective(value: Any) -> Any:
    """An objective from a component, its text, or a plain function of (logits, y)."""
    value = coerce("objective")(value)
    if is_component(value) or hasattr(value, "reads"):
        return value
    if callable(value):
        return Plain(cast(Callable[[Tensor, Tensor], Tensor], value))
    raise bad("objective", repr(value), "an objective, its name, or a function of (logits, y) that returns [N]")


def with_goal(value: Any) -> Any:
    """An objective as `as_objective` takes it. Raises: BadInput for one that has no goal to be judged by."""
    objective = as_objective(value)
    if getattr(objective, "criterion", None) is None:
        raise bad("objective", repr(value), "an objective whose goal is reached or not, e.g. margin")
    return objective


ObjectiveField = Annotated[Any, PlainValidator(as_objective)]
"""The type of a component's field that holds an objective."""


def _need_classes(name: str, logits: Tensor, least: int) -> None:
    if logits.shape[1] < least:
        raise bad("model", f"{logits.shape[1]} classes", f"at least {least} for {name}", "Use margin or cross_entropy.")
