"""What a step of metric learning and of MDProp costs over bare loops with the same passes, and what the CBML loss costs.

Step: ResNet-20, 64 CIFAR-sized images, 8 of a class, Multi-Similarity. The bare loop of plain metric learning makes the
pass, the loss of pytorch-metric-learning, the backward pass and the optimiser's step; that of MDProp makes besides, for each
half of the batch, a pass for the targets and one pass with its gradient, and then a pass with all images, each through its
branch. Losses: a batch of 120 with 8 of a class, 512 dimensions, forward and backward: ours, Multi-Similarity with its miner
from pytorch-metric-learning, and CBML as a loop over anchors, as it is published. Medians of processor time in rounds that
alternate.

    python benchmarks/metric_learning.py [--quick]
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
from torch import Tensor

from withstand.attacks import PGD
from withstand.data.arrays import from_arrays
from withstand.files import write_json
from withstand.models.embedding import Embedder, headless
from withstand.models.layers import add_branches, route
from withstand.models.zoo.table import find
from withstand.random import Rows
from withstand.representation.losses import PML, CBMLLoss
from withstand.representation.mdprop import MDProp
from withstand.representation.metric import Metric
from withstand.threats import Linf
from withstand.training import Adam, Trainer
from withstand.training.feed import micro_batches
from withstand.training.loop import Loop

RESULTS = Path(__file__).parent / "results" / "metric_learning.json"
EPS, DIM = 8 / 255, 128


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """quick: small batches and two rounds; nothing is written."""
    found = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "step": step(16 if quick else 64, 2 if quick else 7),
        "loss": losses(32 if quick else 120, 64 if quick else 512, 2 if quick else 15),
    }
    print(found)
    if not quick:
        write_json(out, found)
    return found


def step(batch: int, rounds: int) -> dict[str, Any]:
    """Processor time of a step of each recipe and of its bare loop."""
    rows = Rows.count(0, 20 * batch)
    data = from_arrays(rows.uniform((3, 32, 32), "x").numpy(), (torch.arange(20 * batch) % 20).numpy(), classes=20)
    model = find("cifar_resnet20").build(20)
    attack = PGD(Linf(EPS), steps=1, step=1.0, random_start=5e-4)
    works: dict[str, Callable[[], object]] = {}
    for name, recipe in (("metric", Metric(dim=DIM)), ("mdprop", MDProp(dim=DIM, attack=attack))):
        trainer = Trainer(
            batch=batch, optimizer=Adam(1e-3), sampler="m_per_class(8)", schedule="constant", accelerator="cpu"
        )
        loop = Loop(trainer, recipe, model, data, None, None, None, 0, None, ())
        part = next(micro_batches(loop.data, 0, 0, batch, 1, 0, sampler=trainer.sampler))
        works[name] = lambda loop=loop, part=part: loop._step(0, [part])
        works[f"{name}_bare"] = bare(model, part.x, part.y, name == "mdprop")
    times = alternating(works, rounds)
    return {
        "batch": batch,
        **{f"{name}_ms": round(1000 * t, 1) for name, t in times.items()},
        **{f"{name}_ratio": round(times[name] / times[f"{name}_bare"], 3) for name in ("metric", "mdprop")},
        "mdprop_over_metric": round(times["mdprop"] / times["metric"], 2),
    }


def bare(model: torch.nn.Module, x: Tensor, y: Any, attacked: bool) -> Callable[[], object]:
    """The same passes, written down by hand."""
    net = Embedder(*headless(copy.deepcopy(model)), DIM).train()
    if attacked:
        add_branches(net, ["main", "single", "multi"])
    loss, optimizer = PML().build(), Adam(1e-3)(net.parameters())
    half = len(x) // 2

    def moved(part: Tensor, branch: str, targets: int) -> Tensor:
        net.eval().requires_grad_(False)
        with route(net, branch):
            with torch.no_grad():
                clean = net(part)
            aims = [clean[torch.randperm(len(part))] for _ in range(targets)]
            point = (part + torch.empty_like(part).uniform_(-5e-4, 5e-4)).requires_grad_(True)
            z = net(point)
            far = torch.stack([(z - aim).norm(dim=1).mean() for aim in aims]).mean()
            (gradient,) = torch.autograd.grad(far, point)
        net.train().requires_grad_(True)
        found = point.detach() - EPS * gradient.sign()
        return torch.minimum(torch.maximum(found, part - EPS), part + EPS).clamp(0, 1)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        if attacked:
            whole = torch.cat([x, moved(x[:half], "single", 1), moved(x[half:], "multi", 5)])
            ids = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([len(x), half, len(x) - half]))
            with route(net, ids):
                value = loss(net(whole), torch.cat([y, y]))
        else:
            value = loss(net(x), y)
        value.backward()
        optimizer.step()

    return work


def losses(n: int, dim: int, rounds: int) -> dict[str, Any]:
    """Processor time of a forward and backward pass of each loss."""
    e = F.normalize(Rows.count(0, n).normal((dim,), "e") + 0.3 * Rows.count(1, n // 8).normal((dim,), "c").repeat(8, 1))
    y = torch.arange(n // 8).repeat(8)

    def passed(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def work() -> None:
            point = e.clone().requires_grad_(True)
            loss(point, y).backward()

        return work

    times = alternating(
        {
            "cbml": passed(CBMLLoss().build()),
            "multi_similarity_pml": passed(PML().build()),
            "cbml_loop": passed(by_anchor),
        },
        rounds,
    )
    return {
        "batch": n,
        "dim": dim,
        **{f"{name}_ms": round(1000 * t, 2) for name, t in times.items()},
        **{f"ratio_to_{name}": round(times["cbml"] / t, 3) for name, t in times.items() if name != "cbml"},
    }


def by_anchor(e: Tensor, y: Tensor) -> Tensor:
    """CBML, one anchor after the other."""
    s, total = e @ e.T, e.sum() * 0
    for i in range(len(e)):
        positive = s[i][y == y[i]]
        positive, negative = positive[positive < 1 - 1e-5], s[i][y != y[i]]
        mu = 0.2 * positive.mean() + 0.8 * negative.mean()
        p = positive[positive - 0.1 < negative.max()]
        n = negative[negative + 0.1 > positive.min()]
        if len(p) and len(n):
            pairs = (1 + ((0.5 - p) / 0.5).exp().sum()).log() + (1 + ((n - 1) / 0.01).exp().sum()).log()
            total = total + pairs + (negative - mu).square().sum()
    return total / len(e)


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
