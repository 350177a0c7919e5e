"""Training of small models on tensors, plain or adversarial: as much as the demo and the reproductions need.

The trainer for real work (recipes, checkpoints, resume, devices) is another part of the library and takes this one's
place where it exists.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.random import derive
from withstand.registry import coerce, replace


def fit(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    attack: Any = None,
    smoothing: float = 0.0,
    seed: int = 0,
    *,
    batch: int = 64,
    lr: float = 1e-3,
    progress: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train the model in place with Adam on the cross-entropy, and return it in eval mode.

    With an attack every batch is replaced by the attack's last iterates on it: adversarial training (Madry et al.,
    "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, arXiv 1706.06083). The same seed, data
    and model give the same weights on the same machine.

    data: x float [N, ...] in the model's range, y long [N]. epochs: passes over the data. attack: an attack or its
    text, e.g. "pgd(linf(0.15), steps=7)". smoothing: the share of a label that is spread over all classes, in [0, 1].
    batch: examples per step (the last steps of an epoch share what is left evenly). lr: Adam's learning rate.
    progress: called with the number of epochs done.

    Raises: BadInput for settings out of range and for lengths that differ.
    """
    x, y = data
    if len(x) != len(y) or len(x) == 0:
        raise bad("data", f"{len(x)} inputs and {len(y)} labels", "as many labels as inputs, at least one")
    for name, value in (("epochs", epochs), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise bad(name, value, "a whole number >= 1")
    if not 0 <= smoothing <= 1:
        raise bad("smoothing", smoothing, "a share from 0 to 1")
    if not lr > 0:
        raise bad("lr", lr, "a number > 0")
    if attack is not None:
        attack = replace(coerce("attack")(attack), keep="last", active=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with torch.random.fork_rng(devices=[x.device.index or 0] if x.is_cuda else []):
        torch.manual_seed(derive(seed, "fit"))  # for dropout, which knows no other source
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))
            for rows in order.tensor_split(-(-len(x) // batch)):
                rows = rows.to(x.device)
                xb, yb = x[rows], y[rows]
                if attack is not None:
                    xb = attack(model, xb, yb, seed=derive(seed, "attack", epoch), ids=rows)
                model.train()
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(xb), yb, label_smoothing=smoothing).backward()
                optimizer.step()
            if progress is not None:
                progress(epoch + 1)
    return model.eval()
