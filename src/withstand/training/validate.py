"""Accuracy on a validation set, clean and under attack."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from withstand.protocols import Dataset

BLOCK = 256


def validate(
    model: nn.Module,
    data: Dataset,
    attack: Any,
    device: torch.device | str,
    seed: int,
    rank: int = 0,
    world: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda counts: counts,
) -> dict[str, float]:
    """`accuracy`, and `robust_accuracy` where there is an attack: the share that it cannot move off the label.

    The same draws in every epoch, so that epochs differ by the model alone. Each of `world` processes takes its share of
    the examples; `total` sums counts over them.
    """
    counts = torch.zeros(2, dtype=torch.float64)
    mine = range(rank, len(data), world)
    for begin in range(0, len(mine), BLOCK):
        batch = data.batch(mine[begin : begin + BLOCK]).to(device)
        with torch.no_grad():
            correct = model(batch.x).argmax(1) == batch.y
        counts[0] += int(correct.sum())
        rows = correct.nonzero().flatten()
        if attack is not None and len(rows):
            held = batch.index(rows)
            found = attack.run(model, held.x, held.y, seed=seed, ids=held.ids, box=data.space.box)
            counts[1] += int((~found.success).sum())
    accuracy, robust = (total(counts) / len(data)).tolist()
    return {"accuracy": accuracy} if attack is None else {"accuracy": accuracy, "robust_accuracy": robust}
