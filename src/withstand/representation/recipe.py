"""What recipes share that ship an embedding instead of a classifier."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.index import Index
from withstand.models.embedding import Embedder, headless
from withstand.protocols import Dataset, Space
from withstand.random import Rows
from withstand.training.recipe import Recipe, System

_BLOCK = 256


class EmbeddingRecipe(Recipe):
    """A recipe whose system's `model` is an `Embedder` of length `self.dim` around the given model.

    The best epoch is that of the highest Recall@1 on the validation examples, among themselves.
    """

    task: ClassVar[str] = "embedding"
    wraps: ClassVar[bool] = True
    selects_on: ClassVar[tuple[str, str] | None] = ("recall_at_1", "robust_recall_at_1")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        return System(self.deploy(model, data.space))

    def deploy(self, model: Any, space: Space) -> nn.Module:
        return Embedder(*headless(model), self.dim)  # type: ignore[attr-defined]

    def validate(
        self,
        model: nn.Module,
        data: Dataset,
        attack: Any,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world: int = 1,
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> dict[str, float]:
        """recall_at_1: the share of examples whose nearest other one is of their class; with an attack robust_recall_at_1,
        where the example is attacked and what it is compared with is not."""
        clean, attacked, labels = [], [], []
        for begin in range(0, len(data), _BLOCK):
            batch = data.batch(range(begin, min(begin + _BLOCK, len(data)))).to(device)
            if batch.y is None:
                raise bad("validation", "examples without labels", "labelled ones, or None for no validation")
            with torch.no_grad():
                clean.append(model(batch.x).float())
            labels.append(batch.y)
            if attack is not None:
                found = attack(model, batch.x, batch.y, seed=seed, ids=batch.ids, box=data.space.box)
                with torch.no_grad():
                    attacked.append(model(found).float())
        held, y = torch.cat(clean), torch.cat(labels)
        measured = {"recall_at_1": _recall_at_1(held, held, y)}
        if attack is not None:
            measured["robust_recall_at_1"] = _recall_at_1(torch.cat(attacked), held, y)
        return measured


def _recall_at_1(queries: Tensor, held: Tensor, y: Tensor) -> float:
    itself = torch.arange(len(y), device=y.device)
    nearest = Index(held).search(queries, 1, without=itself)[1][:, 0]
    return float((y[nearest] == y).float().mean())
