"""What a step of DRA's fine-tuning costs over the bare passes of its loss, on a CIFAR ResNet-20.

Bare: cross-entropy and penalty written out by hand on one forward pass, its backward passes, and the optimiser's step;
beside it the plain fine-tuning step, to see what second derivatives cost at all. In processor time, which a busy machine
disturbs least; rounds alternate.

    python benchmarks/dra.py [--quick]
"""

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.data.arrays import from_arrays
from withstand.files import write_json
from withstand.models.zoo.table import find
from withstand.random import Rows
from withstand.registry import parse
from withstand.training import SGD, Trainer
from withstand.training.loop import Loop

RESULTS = Path(__file__).parent / "results" / "dra.json"
RECIPES = {
    "unit": "dra(0.1, max_accuracy_drop=None)",
    "sliced": "dra(0.001, 'sliced', max_accuracy_drop=None)",
    "norm": "dra(0.01, 'norm', max_accuracy_drop=None)",
    "plain": "dra(0.0, max_accuracy_drop=None)",
}


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Measure every estimator and write `out`. quick: a smaller batch and two rounds."""
    batch, rounds = (8, 2) if quick else (64, 5)
    rows = Rows.count(0, batch)
    x, y = rows.uniform((3, 32, 32), "x"), rows.integers((), 0, 10, "y")
    data = from_arrays(x.numpy(), y.numpy(), classes=10)
    torch.manual_seed(0)
    model = find("cifar_resnet20").build(10)
    works: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        trainer = Trainer(epochs=1000, batch=batch, optimizer=SGD(1e-4), schedule="constant", accelerator="cpu")
        loop = Loop(trainer, parse(recipe, "recipe"), model, data, None, None, None, 0, None, ())
        part = data.batch(range(batch))
        works[name] = lambda loop=loop, part=part: loop._step(0, [part])
        works[f"bare {name}"] = bare(copy.deepcopy(model), x, y, name)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    middle = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first warms up
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    found |= {"network": "cifar_resnet20", "batch": batch, "rounds": rounds, "estimators": {}}
    for name in RECIPES:
        step, needed = middle[name], middle[f"bare {name}"]
        row = {"step_ms": round(1000 * step, 1), "bare_ms": round(1000 * needed, 1)}
        found["estimators"][name] = row | {"overhead": round(step / needed - 1, 3)}
    write_json(out, found)
    return found


def bare(model: nn.Module, x: Tensor, y: Tensor, estimator: str) -> Any:
    """The step by hand."""
    optimizer = torch.optim.SGD(model.eval().parameters(), 1e-4, 0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        point = x.clone().requires_grad_(estimator != "plain")
        logits = model(point)
        loss = F.cross_entropy(logits, y)
        if estimator != "plain":
            log_p = logits.log_softmax(1).gather(1, y[:, None]).sum()
            (score,) = torch.autograd.grad(log_p, point, create_graph=True)
            squared = score.flatten(1).square().sum(1)
            term = squared.sqrt() if estimator == "unit" else squared
            if estimator != "norm":
                v = torch.randn_like(x)
                v = v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) if estimator == "unit" else v.sign()
                (curved,) = torch.autograd.grad((score * v).sum(), point, create_graph=True)
                term = term + 2 * (curved * v).flatten(1).sum(1)
            loss = loss + 0.001 * term.mean()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    print(main(given.out, given.quick))
