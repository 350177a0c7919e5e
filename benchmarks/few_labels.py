"""What a MaxMatch step costs over a bare loop with the same passes, and RandAugment beside torchvision's.

Step: WideResNet-28-2, 4 labelled and 28 unlabelled CIFAR-sized images, three strong variants of each: 116 images in one
pass. The bare loop makes that pass, its loss, backward pass and optimiser step on images that lie ready. Measured without
augmentations, which is what the library itself adds, and with the default ones. RandAugment: two operations on every
image, ours on a batch, torchvision's one image after another (its way to draw for each image), on tensors of bytes and on
PIL images; and CTAugment, whose strengths are learned. Medians of processor time in rounds that alternate.

    python benchmarks/few_labels.py [--quick]
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from withstand.data.arrays import from_arrays
from withstand.files import write_json
from withstand.models.zoo.table import find
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.representation.maxmatch import MaxMatch
from withstand.training import SGD, Step, Trainer
from withstand.training.augment import CTAugment, RandAugment
from withstand.training.augment.ctaugment import Rates
from withstand.training.feed import micro_batches
from withstand.training.loop import Loop

RESULTS = Path(__file__).parent / "results" / "few_labels.json"
BATCH, MU = 32, 7
OPTIMIZER = SGD(0.03, weight_decay=5e-4, nesterov=True)


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """quick: small networks and two rounds; nothing is written."""
    found = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "maxmatch_step": step("cifar_resnet20" if quick else "wrn_28_2", 2 if quick else 5),
        "randaugment": randaugment(32 if quick else 256, 2 if quick else 7),
    }
    print(found)
    if not quick:
        write_json(out, found)
    return found


def step(network: str, rounds: int) -> dict[str, Any]:
    """Processor time of a step, bare, by the recipe without augmentations, and with the default ones."""
    rows = Rows.count(0, 10 * BATCH)
    data = from_arrays(rows.uniform((3, 32, 32), "x").numpy(), rows.integers((), 0, 10, "y").numpy(), classes=10)
    model = find(network).build(10)
    works: dict[str, Callable[[], object]] = {"bare": bare(copy.deepcopy(model))}
    for name, recipe in (("without_augmentations", MaxMatch(weak=(), strong=())), ("whole", MaxMatch())):
        trainer = Trainer(
            batch=BATCH, optimizer=OPTIMIZER, sampler=f"labelled_and_not({MU})", schedule="constant", accelerator="cpu"
        )
        loop = Loop(trainer, recipe, model, data, None, None, None, 0, None, ())
        part = next(micro_batches(loop.data, 0, 0, BATCH, 1, 0, sampler=trainer.sampler))
        works[name] = lambda loop=loop, part=part: loop._step(0, [part])
    times = alternating(works, rounds)
    return {
        "network": network,
        **{f"{name}_ms": round(1000 * t, 1) for name, t in times.items()},
        **{f"{name}_ratio": round(times[name] / times["bare"], 3) for name in list(works)[1:]},
    }


def bare(model: torch.nn.Module) -> Callable[[], object]:
    """The same pass, written down by hand."""
    few, many = BATCH // (1 + MU), BATCH * MU // (1 + MU)
    rows = Rows.count(1, few + 4 * many)
    x, y = rows.uniform((3, 32, 32), "x"), torch.arange(few) % 10
    optimizer = OPTIMIZER(model.train().parameters())

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        z = model(x)
        sure, pseudo = z[few : few + many].detach().softmax(1).max(1)
        each = F.cross_entropy(z[few + many :], pseudo.repeat(3), reduction="none").view(3, many)
        (F.cross_entropy(z[:few], y) + ((sure >= 0.95) * each.amax(0)).mean()).backward()
        optimizer.step()

    return work


def randaugment(images: int, rounds: int) -> dict[str, Any]:
    """Processor time for an image of 3x32x32."""
    x = Rows.count(0, images).uniform((3, 32, 32), "x")
    levels = (x * 255).byte()
    photos = [V.to_pil_image(image) for image in levels]
    theirs = v2.RandAugment(num_ops=2)
    made, at = RandAugment(share=1.0), Step(0, 1, 0, 1, 0, Rows.count(0, images))
    learning = CTAugment().bound(Rates())
    with torch.random.fork_rng():
        times = alternating(
            {
                "withstand": lambda: made(Batch(x), at, 10),
                "ctaugment": lambda: learning(Batch(x), at, 10),
                "torchvision_bytes": lambda: [theirs(image) for image in levels],
                "torchvision_pil": lambda: [theirs(photo) for photo in photos],
            },
            rounds,
        )
    ours = times["withstand"]
    return {
        "images": images,
        **{f"{name}_us_per_image": round(1e6 * t / images, 1) for name, t in times.items()},
        **{f"ratio_to_{name}": round(ours / t, 3) for name, t in times.items() if name.startswith("torchvision")},
    }


def alternating(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor time of each, after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for again in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if again:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    main(given.out, given.quick)
