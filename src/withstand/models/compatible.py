"""Whether a model and a data set fit each other, found out with one small batch before any work."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from withstand.errors import BadInput
from withstand.models.state import frozen
from withstand.protocols import Dataset, Space, Target


def check_compatible(target: Target, data: Dataset, labels: bool = True, n: int = 4) -> Space:
    """Run the first n examples through the model and report everything that does not fit, in one error.

    labels: whether the set's labels will be used; False for sets that only serve as unfamiliar inputs.
    A retrieval engine is asked with one example, and labels play no part. Models that embed or hash need labels, of
    whatever classes. Returns the space of the two together: shape, box, and the class count of a classifier, or else of
    the data.
    Raises: BadInput for wrong channels, sizes or class counts, a model that fails on the batch, outputs of the wrong
    rank, NaN or Inf, and probabilities where logits are declared; Unavailable where an endpoint cannot be reached.
    """
    ranks = target.task == "retrieval"
    labels = labels and not ranks
    if not len(data):
        raise BadInput(f"{data.name}: an empty set; allowed: at least one example.")
    if problems := list(_declared(target, data, labels)):
        raise BadInput(_said(target, data, problems))
    x = data.batch(range(min(n, len(data)))).x
    if ranks:  # the engine refuses itself what it cannot work with; one question tells
        _answer(target, data, x[:1])
        return Space(tuple(x.shape[1:]), data.space.box)
    logits = _answer(target, data, x)
    if problems := list(_returned(target, data, logits, len(x), labels)):
        raise BadInput(_said(target, data, problems))
    classes = logits.shape[1] if target.task == "classification" else len(data.classes) or None
    return Space(tuple(x.shape[1:]), data.space.box, classes)


def _said(target: Target, data: Dataset, problems: list[str]) -> str:
    return f"{target.name} does not fit {data.name}: " + "; ".join(problems)


def _declared(target: Target, data: Dataset, labels: bool) -> Iterator[str]:
    """What is wrong before anything is run."""
    want, have = target.space.shape, data.space.shape
    if want is not None and have is not None:
        if len(want) != len(have):
            yield f"rank: the model takes {list(want)}, the data is {list(have)}"
        elif want[0] not in (None, have[0]):
            yield f"channels: the model takes {want[0]}, the data has {have[0]} (load the data with channels={want[0]})"
        elif any(w not in (None, h) for w, h in zip(want[1:], have[1:])):
            mend = f"load the data with size={want[-1]}, or the model with size={have[-1]} if it takes that"
            yield f"size: the model takes {_by(want[1:])}, the data is {_by(have[1:])} ({mend})"
    if labels and getattr(data, "multilabel", False) and target.task == "classification":
        yield "labels: several to an image, where a classifier tells one class (such sets serve hashing: --recipe hashing)"
    elif labels and not data.classes:
        yield "labels: the data has none (use class folders, or an .npz with y)"
    elif labels and target.space.classes is not None and target.task == "classification":
        yield from _classes(target.space.classes, data)


def _classes(k: int, data: Dataset) -> Iterator[str]:
    if len(data.classes) != k:
        mend = ' For folders named by WordNet ids, classes="imagenet" gives the 1,000 labels.' if k == 1000 else ""
        yield f"classes: the model has {k}, the data has {len(data.classes)} (classes=... when loading either).{mend}"


def _answer(target: Target, data: Dataset, x: Tensor) -> Any:
    module = target.module
    try:
        if module is None:
            return target(x)
        x = x.to(next(module.parameters(), x).device)
        with frozen(module), torch.no_grad():
            return target(x)
    except BadInput as error:
        raise BadInput(_said(target, data, [str(error)])) from None
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not type(error).__module__.startswith("builtins"):
            raise
        said = str(error).split("\n")[0]
        raise BadInput(_said(target, data, [f"the model fails on inputs {list(x.shape)}: {said}"])) from error


def _returned(target: Target, data: Dataset, logits: Tensor, n: int, labels: bool) -> Iterator[str]:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or not logits.is_floating_point():
        got = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        what = "logits" if target.task == "classification" else "vectors"
        yield f"output: got {got}; allowed: float {what} [{n}, K]"
        return
    if target.task != "classification":
        if not logits.isfinite().all():
            yield "output: NaN or Inf on clean data"
        elif target.task == "hashing" and float(logits.abs().max()) > 1:
            yield "output: numbers beyond -1 and 1, of which a code is the sign (end the model in a tanh)"
        return
    if labels and data.classes and target.space.classes is None:
        yield from _classes(logits.shape[1], data)
    if target.space.classes not in (None, logits.shape[1]):
        yield f"classes: the model declares {target.space.classes} and returns {logits.shape[1]}"
    if not logits.isfinite().all():
        yield "output: NaN or Inf logits on clean data"
    elif "scores" in target.access and _probabilities(logits):
        yield (
            "output: probabilities where logits are declared; attacks would stall on the flat ends of the softmax. "
            'Remove the last softmax, or declare outputs="probabilities" (their logarithm then stands for the logits)'
        )


def _probabilities(logits: Tensor) -> bool:
    """Rows that are non-negative and sum to 1. With one class nothing can be told."""
    sums = logits.double().sum(1)
    return logits.shape[1] > 1 and bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def _by(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if s is None else str(s) for s in shape)
