"""Every image towards every class but its own: the table by which targeted attacks are judged."""

import time
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.state import frozen
from withstand.registry import coerce, replace


@dataclass(frozen=True)
class Targeted:
    """What a targeted attack reached. K classes, N images; y: their labels, long [N].

    counted bool [N, K]: which pairs of image and target count: the model has the clean image right, and the target is not
    its label. hit bool [N, K]: the model says the target. l2 [N, K]: lengths of the changes, 0 where nothing was tried.
    seconds: all points together, without the judging.
    """

    y: Tensor
    counted: Tensor
    hit: Tensor
    l2: Tensor
    seconds: float

    @property
    def counts(self) -> Tensor:
        """Images behind each cell, int64 [K, K]: rows are labels, columns targets."""
        return self._by_label(self.counted).long()

    @property
    def matrix(self) -> Tensor:
        """Share of success in each cell, [K, K]; NaN where nothing counts, as on the diagonal."""
        return self._by_label(self.hit) / self.counts

    @property
    def mean(self) -> float:
        """Mean over the cells."""
        return float(self.matrix.nanmean())

    @property
    def by_target(self) -> Tensor:
        """Mean over the labels, for each target, [K]."""
        return self.matrix.nanmean(0)

    @property
    def worst(self) -> float:
        """The target that is reached least."""
        known = self.by_target[~self.by_target.isnan()]
        return float(known.min())

    def _by_label(self, values: Tensor) -> Tensor:
        classes = values.shape[1]
        return torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, self.y, values.double())


def all_targets(
    attack: Any, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, block: int | None = None
) -> Targeted:
    """Attack each image that the model has right towards each class that is not its label.

    attack: one with a `target` (targeted_generated), or whose objective has one (pgd(objective=targeted_margin(0))); the
    target that it names is replaced. model: images to logits [N, K]. x [N, ...], y long [N]. block: images per pass.

    Raises: BadInput for an attack that aims at nothing, labels that are no classes, or no image that the model has right.
    """
    attack = coerce("attack")(attack)
    with torch.no_grad(), frozen(model):
        logits = torch.cat([model(part) for part in x.split(500)])
    classes = logits.shape[1]
    if y.shape != (len(x),) or int(y.min()) < 0 or int(y.max()) >= classes:
        raise bad("y", f"labels from {int(y.min())} to {int(y.max())}", f"{len(x)} labels from 0 to {classes - 1}")
    right = logits.argmax(1) == y
    if not bool(right.any()):
        raise bad("x", "no image that the model has right", "at least one", "Success on others would mean nothing.")
    counted = right[:, None] & (y[:, None] != torch.arange(classes, device=y.device))
    hit, l2, seconds = torch.zeros_like(counted), torch.zeros(counted.shape, device=x.device), 0.0
    for target in range(classes):
        rows = counted[:, target].nonzero().flatten()
        if len(rows) == 0:
            continue
        begun = time.perf_counter()
        z = aimed(attack, target)(model, x[rows], y[rows], seed=seed, ids=rows, block=block)
        seconds += time.perf_counter() - begun
        with torch.no_grad(), frozen(model):
            said = torch.cat([model(part).argmax(1) for part in z.split(500)])
        hit[rows, target] = said == target
        l2[rows, target] = (z - x[rows]).flatten(1).norm(dim=1).to(l2)
    return Targeted(y.cpu(), counted.cpu(), hit.cpu(), l2.cpu(), seconds)


def aimed(attack: Any, target: int) -> Any:
    """The attack with this target. Raises: BadInput for one that takes none."""
    if "target" in {f.name for f in fields(attack)}:
        return replace(attack, target=target)
    if not hasattr(getattr(attack, "objective", None), "target"):
        raise bad("attack", repr(attack), "a targeted attack, e.g. pgd(objective=targeted_margin(0))")
    return replace(attack, objective=replace(attack.objective, target=target))
