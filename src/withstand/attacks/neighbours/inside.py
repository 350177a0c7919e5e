"""The hidden layers of an attacked nearest-neighbour classifier."""

from typing import Any, cast

from torch import Tensor

from withstand.errors import bad
from withstand.index import Index
from withstand.models.neighbours import HiddenKNN, knn_of


class Layers:
    """Where an attack reads the features that a classifier compares, and the references among them.

    names: of the layers. reads: the submodules that return h_l [N, D], in the same order.
    Raises: BadInput for a model without a nearest-neighbour classifier.
    """

    def __init__(self, model: Any) -> None:
        self.knn: HiddenKNN = knn_of(model)
        self.names = self.knn.layers
        self.reads = tuple(f"features.{i}" for i in range(len(self.names)))

    def each(self, argument: str, values: tuple[float, ...]) -> tuple[float, ...]:
        """Values of which there is one for each layer."""
        if len(values) != len(self.names):
            raise bad(argument, values, f"{len(self.names)} values, one for each of the layers {', '.join(self.names)}")
        return values

    def taus(self) -> tuple[float, ...]:
        """A temperature for each layer that follows the nearest few references."""
        if self.knn.metric == "cosine":
            return (0.01,) * len(self.names)
        every = [self.vectors(i) for i in range(len(self.names))]
        return tuple(0.03 * float((v - v.mean(0)).square().sum(1).mean().sqrt()) for v in every)

    def vectors(self, layer: int) -> Tensor:
        """The references' features in the layer of this number, [M, D]."""
        return cast(Index, self.knn.indexes[layer]).vectors.detach()

    def own(self, x: Tensor) -> Tensor | None:
        """Where each example stands among the references, which are then none of its own; None where none does."""
        place = self.knn.positions(x)
        return place if bool((place >= 0).any()) else None
