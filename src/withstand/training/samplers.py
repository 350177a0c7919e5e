"""Which examples make a batch, where that is not left to chance."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import PlainValidator
from torch import Tensor

from withstand.errors import bad
from withstand.registry import coerce, component


@component("sampler", "per_class")
class PerClass:
    """Batches of P classes with K = `images` examples each, batch = P * K, in shuffled order within the batch.

    A step draws P different classes; a class is gone through in shuffled order and begins again when it is through.
    Only classes with fewer than K examples (but at least two) give some of them twice in a batch. An epoch has as many
    steps as whole batches fit into the data.

    Raises: BadInput for data without labels, a batch that is no multiple of K, fewer than P classes, and a class with a
    single example, which could never meet a positive.
    """

    images: int = 2

    def __post_init__(self) -> None:
        if self.images < 2:
            raise bad("images", self.images, "at least 2 of a class, a pair")

    def __call__(self, labels: np.ndarray | None, n: int, batch: int, generator: torch.Generator) -> Tensor:
        """labels: int64 [n]. Returns: int64 [steps * batch], the positions of an epoch."""
        members = self._members(labels, batch)
        coming: list[list[int]] = [[] for _ in members]
        chosen = []
        for _ in range(n // batch):
            rows = []
            for c in torch.randperm(len(members), generator=generator)[: batch // self.images].tolist():
                while len(coming[c]) < self.images:
                    again = members[c][torch.randperm(len(members[c]), generator=generator)].tolist()
                    coming[c] += sorted(again, key=coming[c].__contains__)  # those that wait already go last
                rows += coming[c][: self.images]
                del coming[c][: self.images]
            chosen.append(torch.tensor(rows)[torch.randperm(batch, generator=generator)])
        return torch.cat(chosen)

    def _members(self, labels: np.ndarray | None, batch: int) -> list[Tensor]:
        if labels is None or labels.ndim != 1:
            raise bad("data", "no class labels", "labelled examples, which per_class draws by class")
        classes, counts = np.unique(labels, return_counts=True)
        if single := classes[counts < 2].tolist():
            mend = "Leave such classes out: they give no pair."
            raise bad("data", f"class {single[0]} with one example", "at least two examples of each class", mend)
        if batch % self.images or batch // self.images > len(classes):
            most = self.images * len(classes)
            allowed = f"a multiple of images={self.images} up to {most}, for {len(classes)} classes"
            raise bad("batch", batch, allowed, "It is cut to the number of examples where that is smaller.")
        return [torch.from_numpy(np.flatnonzero(labels == c)) for c in classes]


def _sampler(value: Any) -> Any:
    return None if value is None else coerce("sampler")(value)


SamplerField = Annotated[Any, PlainValidator(_sampler)]
"""The type of a field that holds a sampler, its text, or None."""
