"""AutoAttack of withstand against the original code: robust accuracy on the same cells, and wall time in bare passes.

A bare pass is the forward pass and the input gradient of the whole batch of 200 images, parameters frozen. Bare passes are
timed between the attacks of the same run, so that a busy machine slows both alike.

Parity reads the original's rows from `results/autoattack_original.jsonl` (see `peers_autoattack.py`). Cells on record in
the output are kept; `--fresh` computes them anew.

    WITHSTAND_DATA=... python benchmarks/autoattack.py [--quick] [--fresh] [--until 05:10]
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peers_autoattack
import pretrained
import torch
from torch import Tensor, nn

import withstand as ws
from withstand.files import write_json

RESULTS = Path(__file__).parent / "results" / "autoattack.json"
SPEED_CELL = ("cifar10_cnn_a_adv2", "Linf", 2 / 255)


def main(out: Path = RESULTS, quick: bool = False, fresh: bool = False, until: str | None = None) -> dict[str, Any]:
    """Compare with every row of the original on record, and measure the speed; writes `out` after each cell.

    quick: the speed of withstand alone, and the two cheapest cells.
    """
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() and not fresh else {"cells": []}
    x, y = pretrained.images(peers_autoattack.IMAGES)
    done = {peers_autoattack.key(row) for row in found["cells"]}
    rows = sorted(peers_autoattack.recorded(), key=lambda row: row["seconds"])
    for row in rows[:2] if quick else rows:
        if until is not None and datetime.now(UTC).strftime("%H:%M") >= until:
            break
        if peers_autoattack.key(row) not in done:
            found["cells"].append(cell(row, x, y))
            save(out, found)
            print({k: v for k, v in found["cells"][-1].items() if k != "attacks"}, flush=True)
    else:
        found["speed"] = speed(*SPEED_CELL, x, y, original=not quick)
        save(out, found)
    return found


def cell(row: dict[str, Any], x: Tensor, y: Tensor) -> dict[str, Any]:
    """One cell by withstand beside the original's row."""
    model = pretrained.network(row["model"])
    start = time.perf_counter()
    r = ws.attacks.AutoAttack(threat(row["norm"], row["eps"])).run(model, x, y)
    accuracy = r.notes["robust_accuracy"]
    ours = [*accuracy.values()][-1]
    theirs = torch.tensor([c == "1" for c in row["withstood"]])
    return {
        **{k: row[k] for k in ("model", "norm", "eps")},
        "ours": round(ours, 6),
        "original": round(row["robust_accuracy"], 6),
        "points_above": round(100 * (ours - row["robust_accuracy"]), 4) + 0.0,
        "only_ours_withstood": int((~r.success & ~theirs).sum()),
        "only_original_withstood": int((r.success & theirs).sum()),
        "attacks": {"ours": accuracy, "original": row["after"]},
        "forward_passes": round(float(r.forwards.sum()) / len(x), 1),
        "backward_passes": round(float(r.backwards.sum()) / len(x), 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def speed(name: str, norm: str, eps: float, x: Tensor, y: Tensor, original: bool) -> dict[str, Any]:
    """Wall and processor time of one run, in bare passes timed in between."""
    model = pretrained.network(name)
    attack = ws.attacks.AutoAttack(threat(norm, eps))
    r, cost = in_bare_passes(lambda pause: attack.run(model, x, y, progress=pause), model, x, y)
    found: dict[str, Any] = {
        "cell": [name, norm, eps],
        "withstand": {"robust_accuracy": [*r.notes["robust_accuracy"].values()][-1], **cost},
        "forward_passes": round(float(r.forwards.sum()) / len(x), 1),
        "backward_passes": round(float(r.backwards.sum()) / len(x), 1),
        "threads": torch.get_num_threads(),
    }
    if original:
        row, cost = in_bare_passes(lambda _: peers_autoattack.original(name, norm, eps, x, y), model, x, y)
        found["original"] = {"robust_accuracy": row["robust_accuracy"], **cost}
    return found


def in_bare_passes(
    work: Callable[[Callable[[int], None]], Any], model: nn.Module, x: Tensor, y: Tensor, passes: int = 20
) -> tuple[Any, dict[str, float]]:
    """What work(pause) returns, and its time in bare passes; it calls pause between its parts, and the time of the bare
    passes that are made then does not count."""
    bare = [0.0, 0.0]
    rounds = 0

    def pause(_: int = 0) -> None:
        nonlocal rounds
        start = time.perf_counter(), time.process_time()
        for _ in range(passes):
            pretrained.one_pass(model, x, y)
        bare[0] += time.perf_counter() - start[0]
        bare[1] += time.process_time() - start[1]
        rounds += passes

    pretrained.one_pass(model, x, y)
    start = time.perf_counter(), time.process_time()
    pause()
    result = work(pause)
    pause()
    wall = time.perf_counter() - start[0] - bare[0]
    processor = time.process_time() - start[1] - bare[1]
    return result, {
        "seconds": round(wall, 2),
        "bare_pass_ms": round(1000 * bare[0] / rounds, 3),
        "bare_passes": round(wall / bare[0] * rounds),
        "bare_passes_of_processor_time": round(processor / bare[1] * rounds),
    }


def threat(norm: str, eps: float) -> ws.Linf | ws.L2:
    return ws.Linf(eps) if norm == "Linf" else ws.L2(eps)


def save(out: Path, found: dict[str, Any]) -> None:
    """The file, and a summary of its cells."""
    cells = found["cells"]
    if cells:
        found["summary"] = {
            "cells": len(cells),
            "of": len(peers_autoattack.cells()),
            "most_points_above": max(c["points_above"] for c in cells),
            "mean_points_above": round(sum(c["points_above"] for c in cells) / len(cells), 4),
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--until", help="start no cell after this time of day (UTC), e.g. 05:10")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--fresh", action="store_true", help="compute every cell anew")
    given = options.parse_args()
    print(json.dumps(main(given.out, given.quick, given.fresh, given.until).get("summary"), indent=1))
