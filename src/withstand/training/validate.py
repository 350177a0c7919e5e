"""Accuracy on a validation set, clean and under attack."""

from typing import Any

import torch
from torch import nn

from withstand.protocols import Dataset

BLOCK = 256


def validate(model: nn.Module, data: Dataset, attack: Any, device: torch.device | str, seed: int) -> dict[str, float]:
    """`accuracy`, and `robust_accuracy` where there is an attack: the share that it cannot move off the label.

    The same draws in every epoch, so that epochs differ by the model alone.
    """
    right = stands = 0
    for begin in range(0, len(data), BLOCK):
        batch = data.batch(range(begin, min(begin + BLOCK, len(data)))).to(device)
        with torch.no_grad():
            correct = model(batch.x).argmax(1) == batch.y
        right += int(correct.sum())
        if attack is not None:
            rows = correct.nonzero().flatten()
            if len(rows):
                held = batch.index(rows)
                found = attack.run(model, held.x, held.y, seed=seed, ids=held.ids)
                stands += int((~found.success).sum())
    means = {"accuracy": right / len(data)}
    return means if attack is None else means | {"robust_accuracy": stands / len(data)}
