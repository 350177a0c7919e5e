"""What the original AutoAttack (package `pyautoattack`) finds on the pretrained CIFAR-10 networks, recorded once.

One cell is (network, norm, eps): version "standard", seed 0, the first 200 test images in one batch. Each finished cell is
one line appended to `results/autoattack_original.jsonl`; a killed run loses the cell under way and nothing else. Cells
run in the order of their expected cost, which a short sign attack estimates.

The parameters of the networks are frozen, which spares the original some weight gradients and changes none of its results.
Rows that say "folded" were made on a copy whose batch norm is folded into its convolutions (equal to float precision, a
third cheaper); who withstood is judged on the network itself.

    WITHSTAND_DATA=... python benchmarks/peers_autoattack.py [--until 05:10] [--quick]
"""

import argparse
import json
import logging
import os
import re
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pretrained
import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.attacks.engine.prepare import prepared

RESULTS = Path(__file__).parent / "results" / "autoattack_original.jsonl"
IMAGES = 200


def main(out: Path = RESULTS, quick: bool = False, until: str | None = None) -> dict[str, Any]:
    """Compute the cells that `out` lacks, cheapest first; quick stops after one. Returns how many there are."""
    done = {key(row) for row in recorded(out)}
    todo = [c for c in cells() if c not in done]
    x, y = pretrained.images(IMAGES)
    order = sorted(todo, key=lambda c: expected_cost(*c, x, y))
    for name, norm, eps in order[:1] if quick else order:
        if until is not None and datetime.now(UTC).strftime("%H:%M") >= until:
            break
        row = original(name, norm, eps, x, y)
        append(out, row)
        print(f"{name} {norm} {eps:.5f}: {row['robust_accuracy']} in {row['seconds']:.0f} s", flush=True)
    return {"cells": len(recorded(out)), "of": len(cells())}


def cells() -> list[tuple[str, str, float]]:
    """Every (network, norm, eps) of the comparison."""
    radii = [("Linf", e) for e in pretrained.LINF] + [("L2", e) for e in pretrained.L2]
    return [(name, norm, eps) for name in pretrained.NETWORKS for norm, eps in radii]


def key(row: dict[str, Any]) -> tuple[str, str, float]:
    return row["model"], row["norm"], row["eps"]


def recorded(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows on record; a line that a kill cut short is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """One line, written in one call and forced to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with open(path, "a") as f:
        f.write(("\n" if cut else "") + json.dumps(row) + "\n")
        f.flush()
        os.fsync(f.fileno())


def original(name: str, norm: str, eps: float, x: Tensor, y: Tensor) -> dict[str, Any]:
    """One cell by the original code: who withstood, and the robust accuracy after each of its attacks."""
    import pyautoattack

    model = pretrained.network(name)
    said = _Messages()
    logger = logging.getLogger("auto-attack")
    logger.setLevel(logging.DEBUG)
    logger.handlers, logger.propagate = [said], False
    twin = prepared(model, model, x)
    attack = pyautoattack.AutoAttack(twin or model, norm=norm, eps=eps, version="standard", seed=0, device="cpu")
    start = time.perf_counter()
    x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        clean, stands = model(x).argmax(1) == y, model(x_adv).argmax(1) == y
    return {
        "model": name,
        "norm": norm,
        "eps": eps,
        "images": len(x),
        "folded": twin is not None,
        "clean_accuracy": float(clean.float().mean()),
        "robust_accuracy": float((clean & stands).float().mean()),
        "withstood": "".join("1" if s else "0" for s in (clean & stands).tolist()),
        "after": {a.lower(): round(float(v) / 100, 6) for a, v in said.found(r"accuracy after (\S+): ([\d.]+)%")},
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "package": f"pyautoattack {metadata.version('pyautoattack')}",
        "torch": torch.__version__,
    }


def expected_cost(name: str, norm: str, eps: float, x: Tensor, y: Tensor) -> float:
    """Seconds of one pass times the share of 50 images that survive seven sign steps (plus a little for the start)."""
    model, x, y = pretrained.network(name), x[:50], y[:50]
    start = time.perf_counter()
    z = x.clone()
    for _ in range(7):
        z.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        if norm == "Linf":
            z = torch.clamp(z.detach() + eps / 3 * gradient.sign(), x - eps, x + eps).clamp(0, 1)
        else:
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
            delta = z.detach() + eps / 3 * gradient / length - x
            z = (x + delta * (eps / delta.flatten(1).norm(dim=1).clamp_min(eps))[:, None, None, None]).clamp(0, 1)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return seconds * (0.02 + float((model(z).argmax(1) == y).float().mean()))


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def found(self, pattern: str) -> list[tuple[str, ...]]:
        return [m.groups() for line in self.lines if (m := re.search(pattern, line))]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--until", help="start no cell after this time of day (UTC), e.g. 05:10")
    options.add_argument("--quick", action="store_true", help="one cell only")
    given = options.parse_args()
    print(main(given.out, given.quick, given.until))
