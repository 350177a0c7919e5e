"""Adversarial training beside a bare loop and beside ART's trainers: processor time per step, and memory.

ART's trainer for fast_at leaves the network in eval mode, so that its batch norm never moves and costs less. "art fast_at"
keeps the network in train mode, as the bare loop and withstand do, so that all make the same step; "art fast_at as released"
is the other one.

Time: every arm trains one network on the same images in a process of its own: a step to warm up, then `STEPS` that are
timed. Rounds of the arms alternate. Memory: the most bytes that torch's tensors hold at once, from the building of the
network through two steps of a ResNet-18 with the trainer's default batch; withstand's hold the caller's model, which stays
as it is, beside the one that learns.

    python benchmarks/training.py [--quick]
"""

import argparse
import json
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
RELEASED = "art fast_at as released"
HELD = {"network": "resnet18", "batch": 128, "steps": 2}


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """All arms in turn, `ROUNDS` times; medians and ratios. Then the memory, which does not vary. quick: one round."""
    runs: dict[str, list[float]] = {}
    for _ in range(1 if quick else ROUNDS):
        for arm in (*ARMS, RELEASED):
            seconds = alone(arm, "--arm")
            if seconds is not None:
                runs.setdefault(arm, []).append(seconds)
                print(arm, seconds, flush=True)
    time = {arm: round(statistics.median(found), 4) for arm, found in runs.items()}
    memory: dict[str, float] = {}
    for arm in [] if quick else ARMS:
        mib = alone(arm, "--memory-of")
        if mib is not None:
            memory[arm] = round(mib, 1)
            print(arm, mib, "MiB", flush=True)
    pairs = [
        *((f"withstand {n}", f"bare {n}") for n in ("pgd_at", "fast_at")),
        *((f"art {n}", f"withstand {n}") for n in OURS),
        (RELEASED, "withstand fast_at"),
    ]
    result = {
        "time": {"network": NETWORK, "batch": BATCH, "steps": STEPS, "seconds": time, "ratios": ratios(time, pairs)},
        "memory": HELD | {"mib": memory, "ratios": ratios(memory, pairs)},
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps([result["time"]["ratios"], result["memory"]["ratios"]], indent=1))
    return result


def alone(arm: str, option: str) -> float | None:
    """The number that a process of its own prints; None where a peer is missing."""
    command = [sys.executable, __file__, option, arm]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return None if done.returncode else float(done.stdout.splitlines()[-1])


def ratios(found: dict[str, float], pairs: list[tuple[str, str]]) -> dict[str, float]:
    return {f"{a} / {b}": round(found[a] / found[b], 3) for a, b in pairs if a in found and b in found}


def seconds(arm: str) -> float:
    """Seconds of processor time per step."""
    x, y, train = begun(arm, NETWORK, BATCH, STEPS)
    train(x[:4], y[:4])  # loads code, which is not what a step costs
    train(x[:BATCH], y[:BATCH])
    start = time.process_time()
    train(x, y)
    return (time.process_time() - start) / STEPS


def mib(arm: str) -> float:
    """The most that tensors hold at once, in MiB, without the images that all arms are given."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        x, y, train = begun(arm, **HELD)
        train(x, y)
    changes = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        held += change.nbytes()  # type: ignore[attr-defined]
        most = max(most, held)
    return (most - x.nbytes - y.nbytes) / 2**20


def begun(arm: str, network: str, batch: int, steps: int) -> tuple[Any, Any, Callable[..., None]]:
    """Images, labels, and the training of a fresh network."""
    import torch

    from withstand.models.zoo.table import find

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = find(network).build(10)
    x, y = torch.rand(batch * steps, 3, 32, 32), torch.randint(0, 10, (batch * steps,))
    who, _, name = arm.partition(" ")
    return x, y, {"bare": bare, "withstand": ours, "art": art}[who](name, model, batch)


def bare(name: str, model: Any, batch: int) -> Callable[..., None]:
    """Adversarial training as one would write it down for the last time, weights frozen while attacking."""
    import torch
    import torch.nn.functional as F

    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    length = 1.25 * EPS if name == "fast_at" else EPS / 4

    def train(x: Any, y: Any) -> None:
        for xb, yb in zip(x.split(batch), y.split(batch)):
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


def ours(name: str, model: Any, batch: int) -> Callable[..., None]:
    from withstand.data.arrays import from_arrays
    from withstand.registry import parse
    from withstand.training import SGD, Trainer

    trainer = Trainer(epochs=1, batch=batch, optimizer=SGD(0.01), schedule="constant", accelerator="cpu")
    recipe = parse(OURS[name], "recipe")

    def train(x: Any, y: Any) -> None:
        trainer.fit(recipe, model, from_arrays(x.numpy(), y.numpy(), classes=10))

    return train


def art(name: str, model: Any, batch: int) -> Callable[..., None]:
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
    attack = ProjectedGradientDescent(classifier, **search, batch_size=batch, verbose=False)
    if name == "pgd_at":
        trainer: Any = AdversarialTrainerMadryPGD(classifier, nb_epochs=1, batch_size=batch, **search)
    elif name == "trades":
        trainer = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
    else:
        trainer = AdversarialTrainerFBFPyTorch(classifier, eps=EPS)
        if name == "fast_at":
            model.train().train = lambda mode=True: model

    def train(x: Any, y: Any) -> None:
        labels = y.numpy() if name == "pgd_at" else np.eye(10, dtype=np.float32)[y.numpy()]
        trainer.fit(x.numpy(), labels, batch_size=batch, nb_epochs=1)

    return train


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--arm", choices=(*ARMS, RELEASED), help="the time of this one only, in this process")
    options.add_argument("--memory-of", choices=ARMS, help="the memory of this one only, in this process")
    given = options.parse_args()
    if given.arm:
        print(seconds(given.arm))
    elif given.memory_of:
        print(mib(given.memory_of))
    else:
        main(given.out, given.quick)
