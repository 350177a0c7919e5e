"""What a training step of each recipe costs over the passes that its definition needs, on a ResNet-18-size network.

Every forward pass of the network (and of a helper or teacher of its kind) within a step is counted by its kind: learning
(its backward pass reaches the weights), attacking (weights frozen, its backward pass ends at the input) and looking (no
backward pass). Each kind is timed bare, on the same batch, in rounds that alternate with the recipe's own steps. Overhead =
step / sum of the bare passes - 1, in processor time, which a busy machine disturbs least. Recipes on record are kept, unless
they are named or --fresh.

    WITHSTAND_DATA=... python benchmarks/recipes.py [--quick] [--fresh] [--recipe NAME]
"""

import argparse
import copy
import json
import statistics
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.data.arrays import from_arrays
from withstand.files import write_json
from withstand.models.zoo.table import find
from withstand.random import Rows
from withstand.registry import entries
from withstand.training import SGD, Trainer
from withstand.training.feed import micro_batches
from withstand.training.loop import Loop

RESULTS = Path(__file__).parent / "results" / "recipes.json"
ATTACK = "pgd(linf(8/255), steps=3)"
NOTES = {
    "jsigr": "the second backward pass, through the input gradient, is not among what is needed: the overhead holds it",
    "supervised": "what is unlabelled in a batch is read and passed over: the overhead holds it",
    "rse": "the noise before every convolution is not among what is needed: the overhead holds it",
}
NETWORKS = {"nofrost": "nf_resnet18"}
SETTINGS: dict[str, dict[str, Any]] = {"ask_def": {"ask_attack": ATTACK, "per_class": 1}}


def main(out: Path = RESULTS, quick: bool = False, only: str | None = None, fresh: bool = False) -> dict[str, Any]:
    """Measure the recipes that `out` lacks, or the one that is named, and write `out` after each.

    quick: a small network and two rounds, nothing is read or written.
    """
    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "recipes": {}}
    if out.exists() and not fresh and not quick:
        found["recipes"] = json.loads(out.read_text())["recipes"]
    for entry in entries("recipe"):
        if entry.load().verb != "harden" or (entry.name != only if only else entry.name in found["recipes"]):
            continue
        found["recipes"][entry.name] = measured(entry, quick)
        print(entry.name, found["recipes"][entry.name], flush=True)
        if not quick:
            write_json(out, found)
    return found


def measured(entry: Any, quick: bool) -> dict[str, Any]:
    """One recipe: its passes per step, and its overhead."""
    cls = entry.load()
    names = set(cls.__dataclass_fields__)
    network = "cifar_resnet20" if quick else NETWORKS.get(entry.name, "resnet18")
    settings: dict[str, Any] = {"helper": find(network).build(10)} if "helper" in names else {}
    settings |= {"attack": ATTACK} if "attack" in names else {}
    settings |= {"recipe": f"pgd_at(attack={ATTACK})"} if "recipe" in names else {}
    recipe = cls(**settings | SETTINGS.get(entry.name, {}))
    batch, rounds = (16, 2) if quick else (32, 3)
    rows = Rows.count(0, batch)
    x, y = rows.uniform((3, 32, 32), "x"), torch.arange(batch) % 4  # each class as often as samplers may want
    model = find(network).build(10)
    settings = {"epochs": 1000, "batch": batch, "optimizer": SGD(0.01), "schedule": "constant", "accelerator": "cpu"}
    trainer = Trainer(**{**recipe.defaults, **settings})
    data = from_arrays(x.numpy(), y.numpy(), classes=10)
    loop = Loop(trainer, recipe, model, data, None, None, None, 0, None, ())
    part = next(micro_batches(loop.data, 0, 0, batch, 1, 0, sampler=trainer.sampler))
    loop._step(0, [part])  # the first may look at all examples once, for a bank of outputs
    passes = counted(loop, type(model), part)
    bare = bare_passes(copy.deepcopy(model), x, y)
    times: dict[str, list[float]] = {"step": [], **{kind: [] for kind in bare}}
    for _ in range(rounds):
        times["step"].append(timed(lambda: loop._step(0, [part])))
        for kind, work in bare.items():
            times[kind].append(timed(work))
    middle = {kind: statistics.median(values) for kind, values in times.items()}
    needed = sum(passes[kind] / batch * middle[kind] for kind in bare)
    return {
        "network": network,
        "batch": batch,
        **{kind: passes[kind] / batch for kind in bare},
        "step_ms": round(1000 * middle["step"], 1),
        "needed_ms": round(1000 * needed, 1),
        "overhead": round(middle["step"] / needed - 1, 3),
        **({"note": NOTES[entry.name]} if entry.name in NOTES else {}),
    }


def counted(loop: Loop, network: type[nn.Module], part: Any) -> Counter[str]:
    """Examples that pass through networks of this kind in a step, by kind of pass."""
    passes: Counter[str] = Counter()

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        kind = "looking"
        if torch.is_grad_enabled():
            learns = any(p.requires_grad for p in module.parameters())
            kind = "learning" if learns else "attacking"
        passes[kind] += len(args[0])

    handles = [m.register_forward_pre_hook(note) for m in loop.system.modules() if type(m) is network]
    try:
        loop._step(0, [part])
    finally:
        for handle in handles:
            handle.remove()
    return passes


def bare_passes(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The three kinds of pass without anything around them."""

    def learning() -> None:
        model.train().zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    def attacking() -> None:
        point = x.clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(point), y), point)

    def frozen() -> None:
        model.eval().requires_grad_(False)
        attacking()
        model.requires_grad_(True)

    def looking() -> None:
        with torch.no_grad():
            model.eval()(x)

    return {"learning": learning, "attacking": frozen, "looking": looking}


def timed(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--fresh", action="store_true")
    options.add_argument("--recipe", help="this one only")
    given = options.parse_args()
    main(given.out, given.quick, given.recipe, given.fresh)
