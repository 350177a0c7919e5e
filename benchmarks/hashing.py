"""Hashing: the centre-guided attack beside its bare passes, and centre codes beside the loop of the official form.

The attack: 20 steps on a hashing ResNet-20 for CIFAR, beside the forward and backward passes that they need and nothing
else. Centre codes: a batch of 32 against 10,000 training codes, beside a loop that weighs one query at a time;
both give the same codes (counted). Processor time of one thread; the median of alternating rounds counts.
What a step of the recipes costs: recipes.py. Run: python benchmarks/hashing.py [OUT.json]
"""

import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from withstand.attacks.hashing.centres import centres, sign
from withstand.attacks.hashing.cga import CgA
from withstand.attacks.hashing.database import Database
from withstand.models.embedding import headless
from withstand.models.hashing import Hasher
from withstand.models.zoo.table import find
from withstand.random import Rows
from withstand.threats import Linf

ROUNDS, STEPS, BATCH, ITEMS, BITS, CLASSES = 5, 20, 32, 10_000, 32, 20


def main(out: Path, network: str = "cifar_resnet20", rounds: int = ROUNDS) -> dict:
    """Measure, print, write to `out` as JSON and return it."""
    torch.set_num_threads(1)
    found = {
        "benchmark": "hashing",
        "versions": {p: version(p) for p in ("withstand", "torch")},
        "python": platform.python_version(),
        "threads": 1,
        "attack": _attack(network, rounds),
        "centre_codes": _centres(rounds),
    }
    print(json.dumps({k: found[k] for k in ("attack", "centre_codes")}, indent=1))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _items() -> Database:
    rows = Rows.count(0, ITEMS)
    y = (rows.uniform((CLASSES,), "y") < 0.1).float()
    y[torch.arange(ITEMS), torch.arange(ITEMS) % CLASSES] = 1
    return Database(sign(rows.normal((BITS,), "codes")), y)


def _attack(network: str, rounds: int) -> dict:
    base = _items()
    model = Hasher(*headless(find(network).build(10)), BITS).eval().requires_grad_(False)
    x, y = Rows.count(1, BATCH).uniform((3, 32, 32), "x"), base.labels[:BATCH]
    attack = CgA(Linf(8 / 255), steps=STEPS, database=base, keep="last", active=False)
    code, bare = centres(y, base.codes, base.labels, "jaccard"), copy.deepcopy(model)

    def passes() -> None:
        for _ in range(STEPS):
            z = x.clone().requires_grad_(True)
            torch.autograd.grad((bare(z) * code).sum(), z)

    ours, needed = _medians([lambda: attack(model, x, y), passes], rounds)
    return {"network": network, "steps": STEPS, "batch": BATCH, **_ratio("cga_ms", ours, "bare_ms", needed)}


def _centres(rounds: int) -> dict:
    base = _items()
    y = base.labels[torch.arange(BATCH) * 7]

    def loop() -> Tensor:
        found = []
        for row in y:
            repeated = row.repeat(ITEMS, 1)
            near = ((repeated * base.labels).sum(1) > 0).float().repeat(BITS, 1).T
            negatives = float((1 - near).sum()) / BITS
            found.append((negatives * near * base.codes - (ITEMS - negatives) * (1 - near) * base.codes).sum(0).sign())
        return torch.stack(found)

    def ours() -> Tensor:
        return centres(y, base.codes, base.labels, "published")

    same = float((loop() == ours()).float().mean())
    mine, theirs = _medians([ours, loop], rounds)
    row = _ratio("withstand_ms", mine, "loop_ms", theirs)
    return {"batch": BATCH, "items": ITEMS, "bits": BITS, "equal_bits": round(same, 5), **row}


def _ratio(name: str, seconds: float, peer: str, peers: float) -> dict:
    return {name: round(1e3 * seconds, 2), peer: round(1e3 * peers, 2), "ratio": round(seconds / peers, 3)}


def _medians(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    for side in sides:
        side()
    return [statistics.median(v) for v in zip(*([_seconds(side) for side in sides] for _ in range(rounds)))]


def _seconds(side: Callable[[], object]) -> float:
    begin = time.process_time()
    side()
    return time.process_time() - begin


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "hashing.json")
