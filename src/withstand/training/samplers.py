"""Which examples make a batch, where that is not left to chance."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import PlainValidator
from torch import Tensor

from withstand.errors import bad
from withstand.registry import coerce, component


@component("sampler", "m_per_class")
class MPerClass:
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
            raise bad("data", "no class labels", "labelled examples, which m_per_class draws by class")
        classes, counts = np.unique(labels, return_counts=True)
        if single := classes[counts < 2].tolist():
            mend = "Leave such classes out: they give no pair."
            raise bad("data", f"class {single[0]} with one example", "at least two examples of each class", mend)
        if batch % self.images or batch // self.images > len(classes):
            most = self.images * len(classes)
            allowed = f"a multiple of images={self.images} up to {most}, for {len(classes)} classes"
            raise bad("batch", batch, allowed, "It is cut to the number of examples where that is smaller.")
        return [torch.from_numpy(np.flatnonzero(labels == c)) for c in classes]


@component("sampler", "labelled_and_not", systems=("maxmatch",))
class LabelledAndNot:
    """Batches of B labelled and mu * B unlabelled examples (y = -1), the labelled first, batch = (1 + mu) B.

    An epoch goes once through the unlabelled, in shuffled order; what is left over is passed over (other examples in each
    epoch). The labelled are gone through in shuffled order as often as that takes, so that few of them stand in a batch more
    than once. Every process gets its share of both where B is a multiple of the processes times the accumulated parts.

    mu: unlabelled examples for each labelled one.

    Raises: BadInput for data of one kind only, and a batch that is no multiple of 1 + mu.
    """

    mu: int = 7

    def __post_init__(self) -> None:
        if self.mu < 1:
            raise bad("mu", self.mu, "a whole number >= 1 of unlabelled examples for each labelled one")

    def __call__(self, labels: np.ndarray | None, n: int, batch: int, generator: torch.Generator) -> Tensor:
        """labels: int64 [n], -1 for unlabelled. Returns: int64 [steps * batch], the positions of an epoch."""
        known = np.ones(n, bool) if labels is None or labels.ndim != 1 else np.asarray(labels) >= 0
        if known.all() or not known.any():
            mend = "Recipes such as maxmatch make such a set; see withstand.data.few_labels."
            raise bad("data", f"{known.sum()} labelled of {n} examples", "labelled and unlabelled ones", mend)
        if batch % (1 + self.mu):
            near = max(1, batch // (1 + self.mu)) * (1 + self.mu)
            mend = f"Take {near}, for example; a batch is cut to the number of examples where that is smaller."
            raise bad("batch", batch, f"a multiple of 1 + mu = {1 + self.mu}", mend)
        few = batch // (1 + self.mu)
        steps = max(1, int((~known).sum()) // (few * self.mu))
        rows = [
            _rounds(np.flatnonzero(part), steps * size, generator).view(steps, size)
            for part, size in ((known, few), (~known, few * self.mu))
        ]
        return torch.cat(rows, 1).flatten()


def _rounds(members: np.ndarray, count: int, generator: torch.Generator) -> Tensor:
    """So many of the members: as often as needed through all of them, shuffled anew each time."""
    orders = [torch.randperm(len(members), generator=generator) for _ in range(-(-count // len(members)))]
    return torch.from_numpy(members)[torch.cat(orders)[:count]]


def _sampler(value: Any) -> Any:
    return None if value is None else coerce("sampler")(value)


SamplerField = Annotated[Any, PlainValidator(_sampler)]
"""The type of a field that holds a sampler, its text, or None."""
