"""What an attack on a search engine costs apart from the engine: processor time for each question.

The engine is timed alone on as many images as the attack asks about, in questions of the same size. What is left of the
attack's own time is the search: random directions, projections, the bookkeeping of budgets, and (with a substitute) one
forward and backward pass of it at each step, which is recorded beside it. An engine that answers over a network takes
tens of milliseconds for a question.

    python benchmarks/retrieval.py [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import withstand as ws
from withstand.files import write_json
from withstand.models import ImageIndex, RetrievalTarget

RESULTS = Path(__file__).parent / "results" / "retrieval.json"


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Run all sizes and write `out`. quick: the smallest images, one round."""
    sizes, rounds = ((16,), 1) if quick else ((28, 64), 5)
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "queries": 100, "images": 16}
    write_json(out, found | {"groups": {f"{side}x{side}x3": measure(side, rounds) for side in sizes}})
    return found


def measure(side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time for each question, of images of this side; the median of the rounds."""
    gallery = ws.Rows.count(0, 1000).uniform((3, side, side), "gallery")
    x = ws.Rows.count(1, 16).uniform((3, side, side), "queries")
    engine = ImageIndex(network(0, side), gallery, k=10)
    substitute = network(1, side)
    found = {}
    for name, attack in {
        "without a prior": ws.attacks.QAIR(ws.Linf(1e-4), queries=100),
        "with a substitute": ws.attacks.QAIR(ws.Linf(1e-4), queries=100, substitute=substitute, first=False),
    }.items():
        asked: list[Tensor] = []
        listening = RetrievalTarget(lambda z: asked.append(z) or engine(z), k=10, image_of_id=lambda i: gallery[i])  # noqa: B023
        result = attack.run(listening, x)
        questions, steps = int(result.forwards.sum()), -(-100 // (attack.q + 1)) * len(x)
        whole = timed(lambda a=attack: a.run(engine, x), rounds)
        alone = timed(lambda z=tuple(asked): [engine(part) for part in z], rounds)
        row = {"engine": alone / questions, "attack": (whole - alone) / questions}
        if attack.substitute is not None:
            one = timed(lambda: passes(substitute, x), rounds) / len(x)
            row["of which passes of the substitute"] = one * steps / questions
        found[name] = {key: round(1000 * value, 4) for key, value in row.items()}
        print(f"{side}x{side}, {name}: " + ", ".join(f"{k} {v} ms a question" for k, v in found[name].items()))
    return found


def network(seed: int, side: int) -> nn.Module:
    """A small convolutional embedding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flat = 32 * (side // 4) ** 2
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(flat, 32),
        ).eval()  # fmt: skip


def passes(model: nn.Module, x: Tensor) -> None:
    """One forward and one backward pass to the input."""
    point = x.clone().requires_grad_(True)
    torch.autograd.grad(model(point).sum(), point)


def timed(work: Callable[[], Any], rounds: int) -> float:
    """Processor seconds, the median of the rounds after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(quick=parser.parse_args().quick)
