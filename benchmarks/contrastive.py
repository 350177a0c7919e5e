"""A step of SimCLR beside loops written by hand: processor time per step of the recipe `contrastive`.

"bare": ResNet-20, two views of each image by torchvision's transforms, one image after another, as data loaders do it;
NT-Xent, SGD. "bare, our views": the same loop with the views that withstand draws, so that the rest of a step shows.
"afnc" removes a tenth of the candidates as false negatives. "acl" and "advcl" attack in five steps; beside them stand the
bare passes that their definitions have, on images that lie ready: five of two views there, and two attacks, four views for
what stands still, and five views to learn from here. Rounds of the arms alternate; medians are kept.

    python benchmarks/contrastive.py [--quick]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from withstand.data.arrays import from_arrays
from withstand.models.embedding import headless
from withstand.models.zoo.table import find
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import parse
from withstand.representation.clusters import with_clusters
from withstand.training import SGD, Trainer
from withstand.training.recipe import Step

RESULTS = Path(__file__).parent / "results" / "contrastive.json"
NETWORK, BATCH, STEPS, ROUNDS, TAU = "cifar_resnet20", 128, 4, 3, 0.5


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Medians and ratios. quick: one round of smaller batches; nothing is written."""
    torch.set_num_threads(1)
    batch = 16 if quick else BATCH
    x = Rows.count(0, batch * STEPS).uniform((3, 32, 32), "x")
    arms: dict[str, Callable[[], None]] = {
        "withstand simclr": ours("contrastive", x, batch),
        "withstand afnc": ours("contrastive('fnc')", x, batch),
        "bare": bare(x, batch, singly),
        "bare, our views": bare(x, batch, together),
        "withstand acl": ours("acl", x, batch),
        "bare passes of acl": passes(x, batch, attacked=(2,), learned=(2, 2)),
        "withstand advcl": ours("advcl(clusters=(2, 10))", x, batch),
        "bare passes of advcl": passes(x, batch, still=4, attacked=(1, 1), learned=(1, 1, 1, 1, 1)),
    }
    for train in arms.values() if not quick else ():
        train()  # loads code, which is not what a step costs
    found: dict[str, list[float]] = {}
    for _ in range(1 if quick else ROUNDS):
        for name, train in arms.items():
            start = time.process_time()
            train()
            found.setdefault(name, []).append((time.process_time() - start) / STEPS)
    seconds = {name: round(statistics.median(values), 4) for name, values in found.items()}
    pairs = [
        ("withstand simclr", "bare"),
        ("withstand simclr", "bare, our views"),
        ("withstand afnc", "withstand simclr"),
        ("withstand acl", "bare passes of acl"),
        ("withstand advcl", "bare passes of advcl"),
    ]
    ratios = {f"{a} / {b}": round(seconds[a] / seconds[b], 3) for a, b in pairs}
    result = {"network": NETWORK, "batch": batch, "steps": STEPS, "seconds": seconds, "ratios": ratios}
    if not quick:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return result


def ours(recipe: str, x: Tensor, batch: int) -> Callable[[], None]:
    data, made = from_arrays(x.numpy(), None), parse(recipe, "recipe")
    if hasattr(made, "clusters"):  # made once, before the first step
        data = with_clusters(find(NETWORK).build(10), data, made.clusters, 0)
    trainer = Trainer(epochs=1, batch=batch, optimizer=SGD(0.01), schedule="constant", accelerator="cpu")
    return lambda: trainer.fit(made, find(NETWORK).build(10), data) and None


def bare(x: Tensor, batch: int, views: Callable[[Tensor, int], Tensor]) -> Callable[[], None]:
    """SimCLR as one would write it down for this network."""

    def train() -> None:
        backbone, width = headless(find(NETWORK).build(10))
        model = nn.Sequential(backbone, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128)).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for i, part in enumerate(x.split(batch)):
            z = F.normalize(model(torch.cat([views(part, 2 * i), views(part, 2 * i + 1)])), dim=1)
            s = (z @ z.T / TAU).fill_diagonal_(-torch.inf)
            loss = F.cross_entropy(s, (torch.arange(len(z)) + len(part)) % len(z))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return train


def passes(
    x: Tensor, batch: int, attacked: tuple[int, ...], learned: tuple[int, ...], still: int = 0
) -> Callable[[], None]:
    """Passes alone, of so many views each: forward, five with the gradient of the input, and those to learn from."""

    def train() -> None:
        model = find(NETWORK).build(10).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for part in x.split(batch):
            model.eval().requires_grad_(False)
            for _ in range(still):
                model(part)
            for views in attacked:
                point = torch.cat([part] * views)
                for _ in range(5):
                    point = point.detach().requires_grad_(True)
                    torch.autograd.grad(model(point).sum(), point)
            model.train().requires_grad_(True)
            torch.cat([model(torch.cat([part] * views)) for views in learned]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return train


def singly(x: Tensor, seed: int) -> Tensor:
    """Views by torchvision, image by image."""
    made = v2.Compose(
        [
            v2.RandomResizedCrop(32, (0.2, 1.0), antialias=False), v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2),
        ]
    )  # fmt: skip
    return torch.stack([made(image) for image in x])


def together(x: Tensor, seed: int) -> Tensor:
    """Views by withstand, the batch at once."""
    step = Step(0, 1, 0, 1, 0, Rows.count(seed, len(x)))
    batch = Batch(x)
    for augmentation in parse("contrastive", "recipe").views:
        batch = augmentation(batch, step, 0)
    return batch.x


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    main(quick=parser.parse_args().quick)
