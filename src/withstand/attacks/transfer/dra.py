"""The distribution-relevant attack: a surrogate whose input gradient follows the data, so that its points transfer.

The paper's text was not at hand beyond its abstract, and its authors published the attack but not the training. The loss is
rebuilt from their aim (match grad_x log p(y|x) with the score of the data) and from the one public implementation by others.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from withstand.errors import bad
from withstand.models.state import evaluating
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import per_row
from withstand.training.recipe import Recipe, Step

Estimator = Literal["unit", "sliced", "exact", "norm", "dsm"]

MOST_EXACT = 4096
"""Input values up to which the trace is summed exactly: one pass each."""
NOTABLE = 0.02
"""A loss of accuracy within one epoch that is worth a warning where the DCG fell at the same time."""


@component("recipe", "dra", systems=("dra",))
class DRA(Recipe):
    """Fine-tune a surrogate until its input gradient follows the data distribution (DCG), so that attacks on it transfer.

    L = CE(z(x), y) + weight * mean DCG(x, y); see `dcg_loss` for the estimators, directions and noise. Everything runs in
    eval mode: batch statistics stay as they are and dropout is off, since an example's gradient must not hang on others.
    With weight 0 it is plain fine-tuning under the same conditions.

    weight >= 0: 6 is that of the public implementation, on ImageNet; it is not comparable between data sets, so let
    the accuracy choose it. Small CIFAR-10 networks took 0.5 to 2. max_accuracy_drop: the last epoch is kept whose clean
    accuracy on the validation examples lies no more than this below that of the surrogate given, in [0, 1]; training ends
    with the first beyond. None: no bound.

    DCG is unbounded below for ReLU networks: with "sliced" and "exact" it can be lowered at the classifier's expense, which
    is warned of. Small weights, noise and clipping (clip_norm=1.0, the default of fit-attack) hold it.

    Reference: Zhu, Chen, Li, Chen, He, Tian, Zheng, Chen, Huang, "Toward Understanding and Boosting Adversarial
    Transferability from a Distribution Perspective", 2022, arXiv 2210.04213. Estimator "unit", the weight and the trainer's
    settings follow an implementation by others (JerryMazeyu/DRA-BlackBoxAttack).
    """

    verb: ClassVar[str] = "fit-attack"
    learned: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 10,
        "optimizer": "sgd(0.001)",
        "schedule": "steps((0.7,), 0.1)",
        "clip_norm": 1.0,
    }

    weight: float = 6.0
    estimator: Estimator = "unit"
    directions: int = 1
    noise: float = 0.0
    max_accuracy_drop: float | None = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.weight < torch.inf:
            raise bad("weight", self.weight, "a finite number >= 0")
        _check(self.estimator, self.directions, self.noise)
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop <= 1:
            raise bad("max_accuracy_drop", self.max_accuracy_drop, "a share in [0, 1], or None")

    @property
    def may_lose(self) -> float | None:
        return self.max_accuracy_drop

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        x, y = batch.x, _labels(batch.y)
        with evaluating(system.model):
            if self.weight == 0:
                logits = system.model(x)
                made = None
            else:
                with torch.autocast(x.device.type, enabled=False), _twice_differentiable():
                    point, shift = _noisy(x, self.noise, step.rows)
                    logits = seen = system.model(point)
                    made = _dcg(seen, y, point, shift, self.estimator, self.directions, self.noise, step.rows).mean()
                if self.noise:
                    logits = system.model(x)
        loss = step.cross_entropy(logits, y)
        step.say("train_accuracy", (logits.detach().argmax(1) == y).float().mean())
        if made is None:
            return loss
        step.say("loss_clean", loss)
        step.say("dcg", made)
        return loss + self.weight * made

    def remark(self, history: Sequence[Mapping[str, Any]]) -> str:
        if len(history) < 2 or self.weight == 0 or self.estimator in ("norm", "dsm"):  # these are bounded below
            return ""
        before, now = history[-2:]
        accuracy = "accuracy" if "accuracy" in now and "accuracy" in before else "train_accuracy"
        if now["dcg"] >= before["dcg"] or before[accuracy] - now[accuracy] <= NOTABLE:
            return ""
        return (
            f"epoch {now['epoch']}: DCG fell from {before['dcg']:.4g} to {now['dcg']:.4g} while the accuracy fell from "
            f"{before[accuracy]:.3f} to {now[accuracy]:.3f}: the penalty is lowered at the classifier's expense. Take a "
            'smaller weight, noise (0.02 to 0.05), or estimator="norm".'
        )


def dcg_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    estimator: Estimator = "unit",
    directions: int = 1,
    noise: float = 0.0,
    rows: Rows | None = None,
) -> Tensor:
    """How far the model's gradient is from that of the data, for each example [N], with its graph; it can be below 0.

    With s(x) = grad_x log p(y|x) of the model, E ||s - score of the data||^2 is E [||s||^2 + 2 tr(ds/dx)] and a constant:

    "sliced": ||s||^2 + 2 v . d(s . v)/dx, the mean over `directions` v of independent signs, unbiased. "exact": all unit
    vectors in turn, for up to 4,096 input values. "unit": ||s|| + 2 v . d(s . v)/dx, v uniform on the unit sphere, so that
    the trace counts 1/d (d input values) and the length is not squared; this is what worked where it was tried. "norm":
    ||s||^2 alone, the control that leaves the trace out. "dsm" (experimental): ||s(x') + (x' - x) / noise^2||^2 at
    x' = x + noise * n, which estimates the same for smoothed data and is bounded below.

    x: in [0, 1], [N, ...]; gradients are per unit of it. y: classes [N]. noise: standard deviation in the same unit,
    at which the others are evaluated as well. rows: draws, default rows 0..N-1 of seed 0. The model runs in eval mode and
    is given back in its own.

    Raises:
        BadInput: x outside [0, 1], labels that are none, settings out of range, more than 4,096 input values for "exact", a
            model without a gradient or, where it is needed, a second derivative.
    """
    _check(estimator, directions, noise)
    if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
        raise bad("x", f"{x.dtype}, finite: {x.is_floating_point()}", "finite floats in [0, 1]")
    if float(x.min()) < 0 or float(x.max()) > 1:
        got = f"values from {float(x.min()):g} to {float(x.max()):g}"
        raise bad("x", got, "values in [0, 1]", "Normalise inside the model.")
    rows = rows or Rows.count(0, len(x), x.device)
    with evaluating(model), torch.enable_grad(), _twice_differentiable():
        point, shift = _noisy(x, noise, rows)
        return _dcg(model(point), _labels(y), point, shift, estimator, directions, noise, rows)


def _noisy(x: Tensor, noise: float, rows: Rows) -> tuple[Tensor, Tensor]:
    """The point at which the score is taken, a leaf, and how far it lies from x."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    shift = noise * rows.normal(tuple(x.shape[1:]), "dcg noise", 0, x.dtype) if noise else torch.zeros_like(x)
    return (x + shift).requires_grad_(True), shift


def _dcg(
    logits: Tensor,
    y: Tensor,
    point: Tensor,
    shift: Tensor,
    estimator: Estimator,
    directions: int,
    noise: float,
    rows: Rows,
) -> Tensor:
    shape, size, dtype = tuple(point.shape[1:]), point[0].numel(), point.dtype
    log_p = F.log_softmax(logits, 1).gather(1, y[:, None])
    score = _derivative(log_p.sum(), point, "a gradient by the input")
    if not score.requires_grad:
        raise bad("model", "a gradient that has none itself", "a twice differentiable model", _BREAKS)
    if estimator == "dsm":
        return (score + shift / noise**2).flatten(1).square().sum(1)
    length = score.flatten(1).square().sum(1)
    if estimator == "norm":
        return length
    if estimator == "exact":
        if size > MOST_EXACT:
            mend = 'Take estimator="sliced", which estimates the same.'
            raise bad("estimator", f'"exact" for {size:,} input values', f"at most {MOST_EXACT:,}", mend)
        basis = (e.view(shape).expand_as(point) for e in torch.eye(size).to(point))
        return length + 2 * torch.stack([_curvature(score, point, v) for v in basis]).sum(0)
    if estimator == "sliced":
        drawn = (rows.signs(shape, "dcg", i, dtype) for i in range(directions))
    else:
        length = (length + 1e-20).sqrt()  # its slope at 0 would be infinite
        drawn = (_unit(rows.normal(shape, "dcg", i, dtype)) for i in range(directions))
    return length + 2 * torch.stack([_curvature(score, point, v) for v in drawn]).mean(0)


def _curvature(score: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v . d(s . v)/dx, [N]."""
    return (_derivative((score * v).sum(), x, "a second derivative") * v).flatten(1).sum(1)


def _unit(v: Tensor) -> Tensor:
    return v / per_row(v.flatten(1).norm(dim=1), v)


def _derivative(value: Tensor, x: Tensor, what: str) -> Tensor:
    found = None
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, x, create_graph=True, allow_unused=True)
    if found is None:
        raise bad("model", f"one without {what}", f"a model with {what}", _BREAKS)
    return found


_BREAKS = (
    "Parts that round, detach or bring a backward pass of their own stand in the way, and some that work in place."
)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention in the form that has second derivatives; and what autograd's errors about missing ones mean."""
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        what = str(error).splitlines()[0]
        signs = ("differentiate twice", "is not implemented", "inplace operation", "does not require grad")
        if not any(sign in what for sign in signs):
            raise
        raise bad("model", f"no second derivative ({what})", "a twice differentiable model", _BREAKS) from error


def _labels(y: Any) -> Tensor:
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
        got = "none" if y is None else f"{getattr(y, 'dtype', type(y).__name__)} of {getattr(y, 'shape', 'no shape')}"
        raise bad("y", got, "class indices, long [N]", "Augmentations that mix labels do not fit.")
    return y


def _check(estimator: str, directions: int, noise: float) -> None:
    known = ("unit", "sliced", "exact", "norm", "dsm")
    if estimator not in known:
        raise bad("estimator", repr(estimator), " or ".join(map(repr, known)))
    if directions < 1:
        raise bad("directions", directions, "a whole number >= 1")
    if not 0 <= noise < torch.inf:
        raise bad("noise", noise, "a standard deviation >= 0 in input units, e.g. 0.02")
    if estimator == "dsm" and noise == 0:
        raise bad("noise", noise, 'a standard deviation > 0 for estimator="dsm"', "E.g. 0.05.")
