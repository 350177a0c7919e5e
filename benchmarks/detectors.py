"""What detectors of unfamiliar inputs cost over the forward pass of the classifier that they share.

ResNet-20 for CIFAR with random weights, 256 images; fitted on 2,000. Arms: the bare forward pass; one detector; ten
that need no input gradient; the ten and ODIN, which adds a backward and a forward pass; the ten, each with BATS as
well, which adds one forward pass for all. Medians of processor time in rounds that alternate.

    python benchmarks/detectors.py [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from withstand.detection.ood import (
    ASH,
    BATS,
    DICE,
    GEN,
    KNN,
    MDS,
    MSP,
    ODIN,
    Bank,
    Energy,
    MaxLogit,
    ReAct,
    ViM,
)  # fmt: skip
from withstand.files import write_json
from withstand.models import as_target
from withstand.models.zoo.table import find
from withstand.random import Rows

RESULTS = Path(__file__).parent / "results" / "detectors.json"
TEN: tuple[Any, ...] = (MSP(), MaxLogit(), Energy(), GEN(), ReAct(), DICE(), ASH(), ViM(), MDS(), KNN(50))


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Medians and their ratios. quick: few images and two rounds; nothing is written."""
    images, fitted, rounds = (32, 200, 2) if quick else (256, 2000, 9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = find("cifar_resnet20").build(10).eval()
    x, train = (Rows.count(seed, n).uniform((3, 32, 32), "x") for seed, n in ((0, images), (1, fitted)))
    y = torch.arange(fitted) % 10
    arms: dict[str, Callable[[], object]] = {"forward": lambda: forward(model, x)}
    sets = {
        "one": (MSP(),),
        "ten": TEN,
        "ten_and_odin": (*TEN, ODIN()),
        "ten_and_ten_with_bats": (*TEN, *(BATS(d) for d in TEN)),
    }
    for name, detectors in sets.items():
        bank = Bank(as_target(model), detectors)
        kept = bank.fit(train.split(500), y)
        arms[name] = lambda bank=bank, kept=kept: bank.score(x, kept)
    times = alternating(arms, rounds)
    found = {
        "network": "cifar_resnet20",
        "images": images,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{f"{name}_ms": round(1000 * t, 2) for name, t in times.items()},
        **{f"{name}_over_forward": round(times[name] / times["forward"], 3) for name in sets},
        "ten_over_one": round(times["ten"] / times["one"], 3),
    }
    print(found)
    if not quick:
        write_json(out, found)
    return found


def forward(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The bare pass."""
    with torch.no_grad():
        return model(x)


def alternating(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of processor time of each, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            begin = time.process_time()
            work()
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    main(quick=parser.parse_args().quick)
