"""Adversarial training beside a bare loop and beside ART's trainers: processor time per step, and peak memory.

ART's trainer for fast_at leaves the network in eval mode, so that its batch norm never moves and costs less: the bare loop
says what the method costs.

Every arm trains one network on the same images in a process of its own: a step to warm up, then `STEPS` that are timed.
Memory is the peak of the process beyond what it held after a step of four images. Rounds of the arms alternate.

    python benchmarks/training.py [--quick]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "training.json"
EPS, ITERATIONS = 8 / 255, 5
NETWORK, BATCH, STEPS, ROUNDS = "cifar_resnet20", 64, 12, 2
PGD = f"pgd(linf(8/255), steps={ITERATIONS}, step=1/4)"
OURS = {"pgd_at": f"pgd_at(attack={PGD})", "trades": f"trades(attack={PGD})", "fast_at": "fast_at(linf(8/255))"}
ARMS = ["bare pgd_at", "bare fast_at", *(f"{who} {name}" for name in OURS for who in ("withstand", "art"))]


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """All arms in turn, `ROUNDS` times; medians and ratios."""
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(1 if quick else ROUNDS):
        for arm in ARMS:
            done = subprocess.run(
                [sys.executable, __file__, "--arm", arm],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if done.returncode == 0:
                runs[arm].append(json.loads(done.stdout.splitlines()[-1]))
                print(arm, runs[arm][-1], flush=True)
    middle = {
        arm: {k: round(statistics.median(r[k] for r in found), 4) for k in found[0]}
        for arm, found in runs.items()
        if found
    }
    ratios = {
        f"{a} / {b}": {k: round(middle[a][k] / middle[b][k], 3) for k in middle[a] if middle[b][k]}
        for a, b in [
            *((f"withstand {n}", f"bare {n}") for n in ("pgd_at", "fast_at")),
            *((f"art {n}", f"withstand {n}") for n in OURS),
        ]
        if a in middle and b in middle
    }
    result = {"network": NETWORK, "batch": BATCH, "steps": STEPS, "arms": middle, "ratios": ratios}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(ratios, indent=1))
    return result


def one(arm: str) -> dict[str, float]:
    """Seconds of processor time per step, and MiB beyond the start."""
    import torch

    from withstand.models.zoo.table import find

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = find(NETWORK).build(10)
    x, y = torch.rand(BATCH * STEPS, 3, 32, 32), torch.randint(0, 10, (BATCH * STEPS,))
    who, name = arm.split()
    train = {"bare": bare, "withstand": ours, "art": art}[who](name, model)
    train(x[:4], y[:4])  # loads code, which is not what a step holds
    before = peak()
    train(x[:BATCH], y[:BATCH])
    start = time.process_time()
    train(x, y)
    return {"seconds": (time.process_time() - start) / STEPS, "mib": peak() - before}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare(name: str, model: Any) -> Callable[..., None]:
    """Adversarial training as one would write it down for the last time, weights frozen while attacking."""
    import torch
    import torch.nn.functional as F

    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    length = 1.25 * EPS if name == "fast_at" else EPS / 4

    def train(x: Any, y: Any) -> None:
        for xb, yb in zip(x.split(BATCH), y.split(BATCH)):
            model.train(name == "fast_at").requires_grad_(False)
            z = (xb + EPS * (2 * torch.rand_like(xb) - 1)).clamp_(0, 1)
            for _ in range(1 if name == "fast_at" else ITERATIONS):
                z.requires_grad_(True)
                (g,) = torch.autograd.grad(F.cross_entropy(model(z), yb), z)
                z = torch.clamp(z.detach() + length * g.sign(), xb - EPS, xb + EPS).clamp_(0, 1)
            model.train().requires_grad_(True)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(z), yb).backward()
            optimizer.step()

    return train


def ours(name: str, model: Any) -> Callable[..., None]:
    from withstand.data.arrays import from_arrays
    from withstand.registry import parse
    from withstand.training import SGD, Trainer

    trainer = Trainer(epochs=1, batch=BATCH, optimizer=SGD(0.01), schedule="constant", accelerator="cpu")
    recipe = parse(OURS[name], "recipe")

    def train(x: Any, y: Any) -> None:
        trainer.fit(recipe, model, from_arrays(x.numpy(), y.numpy(), classes=10))

    return train


def art(name: str, model: Any) -> Callable[..., None]:
    import numpy as np
    import torch
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import (
        AdversarialTrainerFBFPyTorch,
        AdversarialTrainerMadryPGD,
        AdversarialTrainerTRADESPyTorch,
    )
    from art.estimators.classification import PyTorchClassifier

    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), (3, 32, 32), 10, optimizer, clip_values=(0.0, 1.0), device_type="cpu"
    )
    search: dict[str, Any] = {"eps": EPS, "eps_step": EPS / 4, "max_iter": ITERATIONS, "num_random_init": 1}
    attack = ProjectedGradientDescent(classifier, **search, batch_size=BATCH, verbose=False)
    if name == "pgd_at":
        trainer: Any = AdversarialTrainerMadryPGD(classifier, nb_epochs=1, batch_size=BATCH, **search)
    elif name == "trades":
        trainer = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
    else:
        trainer = AdversarialTrainerFBFPyTorch(classifier, eps=EPS)

    def train(x: Any, y: Any) -> None:
        labels = y.numpy() if name == "pgd_at" else np.eye(10, dtype=np.float32)[y.numpy()]
        trainer.fit(x.numpy(), labels, batch_size=BATCH, nb_epochs=1)

    return train


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--arm", choices=ARMS, help="this one only, in this process")
    given = options.parse_args()
    if given.arm:
        print(json.dumps(one(given.arm)))
    else:
        main(given.out, given.quick)
