"""What losses on pairs of embeddings share: what they refuse, and the shape of a loss as a component."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.errors import bad
from withstand.registry import coerce


class MetricLoss:
    """A loss on embeddings, as settings; `build` makes the module with whatever it learns itself.

    The module is called as module(embeddings [N, dim] of unit length, labels long [N], features [N, width]) and returns a
    scalar. features: what the embedding was made of; None where `needs_features` is False.
    """

    pairs: ClassVar[bool] = True
    """Whether it compares examples of a batch with each other, so that a batch without two of a class teaches nothing."""
    needs_features: ClassVar[bool] = False
    adds_maximum: ClassVar[bool] = False
    """Whether its features are the sum of mean and maximum of the last map, not the mean alone."""

    def build(self, classes: int, dim: int, width: int, seed: int) -> nn.Module:
        """The loss for so many classes, embeddings [N, dim] and features [N, width]; seed: of what it learns."""
        raise NotImplementedError(f"{type(self).__name__} defines no build")


def check_embeddings(embeddings: Tensor, labels: Tensor, unit: bool = True) -> None:
    """Refuse what no loss on embeddings can work with.

    Raises: BadInput for wrong shapes, labels that are no integers, values that are not finite, rows not of unit length.
    """
    if embeddings.dim() != 2 or len(embeddings) < 2:
        raise bad("embeddings", f"shape {tuple(embeddings.shape)}", "[N, d] with N >= 2")
    if labels.shape != (len(embeddings),) or labels.is_floating_point():
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise bad("labels", got, f"int64 [{len(embeddings)}], one for each embedding")
    length = embeddings.detach().norm(dim=1)
    if not bool(torch.isfinite(length).all()):
        mend = "If they came up in training, it has diverged: lower the learning rate."
        raise bad("embeddings", "NaN or infinite values", "finite values", mend)
    if unit and bool(((length - 1).abs() > 1e-3).any()):
        got = f"rows of length {float(length.min()):.4g} to {float(length.max()):.4g}"
        raise bad("embeddings", got, "rows of length 1", "Normalise them, or build the loss with normalize=True.")


def nothing(embeddings: Tensor) -> Tensor:
    """Zero, with a graph: the loss of a batch that has nothing to say."""
    return (embeddings * 0).sum()


def as_metric_loss(value: Any) -> Any:
    """A metric loss from a component, its text, or the name of one of those that `pml` knows."""
    from withstand.representation.losses.pml import PML, SHORT

    made = PML(value) if isinstance(value, str) and value in SHORT else coerce("metric_loss")(value)
    if not isinstance(made, MetricLoss):
        raise bad("loss", repr(value), f"a metric loss, such as cbml_loss() or one of {', '.join(SHORT)}")
    return made


MetricLossField = Annotated[Any, PlainValidator(as_metric_loss)]
"""The type of a component's field that holds a metric loss."""
