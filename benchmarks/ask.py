"""What a step of `ask` costs beside the bare pass of the attacked network, and what the vote that judges it costs.

Bare pass: a forward pass of the network and the gradient of its input. A step is (time of 22 steps - time of 2) / 20, so
that what is done once (finding the references) is left out, and told apart as `once`. The vote belongs to every forward pass
of the attacked classifier. Contestants take turns, and each is judged by its median round, in processor time.

    WITHSTAND_DATA=... python benchmarks/ask.py [--quick]
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import withstand as ws
from withstand.files import write_json
from withstand.models import knn_of
from withstand.models.zoo.table import find
from withstand.random import Rows

RESULTS = Path(__file__).parent / "results" / "ask.json"
FEW, MANY = 2, 22
LAYERS = {"cifar_resnet20": "layer3", "resnet18": "layers.7"}


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Measure and write `out`. quick: the small network, one round."""
    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "networks": {}}
    for name in ("cifar_resnet20",) if quick else LAYERS:
        found["networks"][name] = measured(name, 1 if quick else 3)
        print(name, found["networks"][name], flush=True)
        write_json(out, found)
    return found


def measured(name: str, rounds: int) -> dict[str, Any]:
    """One network with weights as they are drawn: 16 images, 1,000 references of 10 classes."""
    torch.manual_seed(0)
    network = find(name).build(10).eval().requires_grad_(False)
    rows = Rows.count(0, 1016)
    x, y = rows.uniform((3, 32, 32), "x"), rows.integers((), 0, 10, "y")
    votes = ws.knn_classifier(network, (x[16:], y[16:]), [LAYERS[name]])
    x, y = x[:16], y[:16]

    def bare() -> None:
        point = x.clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(network(point), y), point)

    def ask(steps: int) -> Callable[[], Any]:
        attack = ws.attacks.ASK(ws.Linf(8 / 255), steps=steps, keep="last", active=False)
        return lambda: attack(votes, x, y)

    def vote() -> None:
        with torch.no_grad():
            votes(x)

    def look() -> None:
        with torch.no_grad():
            network(x)

    works = {"bare": bare, "few": ask(FEW), "many": ask(MANY), "vote": vote, "look": look}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for kind, work in works.items():
            start = time.process_time()
            work()
            times[kind].append(time.process_time() - start)
    t = {kind: statistics.median(values[1:]) for kind, values in times.items()}
    step = (t["many"] - t["few"]) / (MANY - FEW)
    return {
        "features": int(knn_of(votes).sizes[0]),
        "references": 1000,
        "bare_ms": round(1000 * t["bare"], 1),
        "step_ms": round(1000 * step, 1),
        "overhead_of_a_step": round(step / t["bare"] - 1, 3),
        "overhead_beside_the_vote": round(step / (t["bare"] + t["vote"] - t["look"]) - 1, 3),
        "vote_in_bare_passes": round((t["vote"] - t["look"]) / t["bare"], 3),
        "once_in_bare_passes": round((t["few"] - FEW * step) / t["bare"], 3),
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    main(given.out, given.quick)
