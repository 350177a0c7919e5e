"""A generator at inference beside 20 steps of PGD, as ratios of time in one run.

Untrained generators, whose time is that of trained ones, on CIFAR-10 images, through the attack that a user calls; all
contestants get the same batch. PGD takes all its steps (and, beside it, as it is by default: images that are broken leave).
The generator of the recorded experiments has 8 to 16 channels and two blocks, that of the paper 64 and six. Rounds alternate
between contestants and each is judged by its median round; processor time stands beside wall time.

    WITHSTAND_DATA=... python benchmarks/generators.py [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretrained
import torch

import withstand as ws
from withstand.attacks import PGD, Generated
from withstand.attacks.generative import Generator
from withstand.files import write_json

RESULTS = Path(__file__).parent / "results" / "generators.json"
EPS, STEPS = 10 / 255, 20
SIZES = ((8, 2), (16, 2), (32, 4), (64, 6))
ASKED, RECORDED = 20.0, ((8, 2), (16, 2))
NETWORKS = ("cifar10_resnet20", "cifar10_resnet56", "cifar10_cnn_a_adv2")


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Time all contestants and write `out`. quick: 16 images, one round, ResNet-20 and small generators only."""
    n, rounds = (16, 1) if quick else (32, 3)
    x, y = pretrained.images(n)
    some = SIZES[:2] if quick else SIZES
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = {size: Generator(3, *size).eval() for size in some}
    models = {name: pretrained.network(name) for name in (NETWORKS[:1] if quick else NETWORKS)}
    works: dict[Any, Callable[[], Any]] = {}
    for size, net in nets.items():
        attack = Generated(ws.Linf(EPS), net)
        works[size] = lambda attack=attack: attack(models[NETWORKS[0]], x)
    for name, model in models.items():
        for kind, more in (("all steps", {"keep": "last", "active": False}), ("active set", {})):
            attack = PGD(ws.Linf(EPS), steps=STEPS, **more)
            works[name, kind] = lambda attack=attack, model=model: attack(model, x, y)
    took = clocked(works, rounds)
    rows = []
    for (name, kind), (wall, processor) in ((k, v) for k, v in took.items() if k[0] in models):
        for size, net in nets.items():
            rows.append({
                "network": name, "pgd": f"{STEPS} steps, {kind}", "ngf": size[0], "blocks": size[1],
                "weights": sum(p.numel() for p in net.parameters()),
                "pgd_ms_per_image": round(1000 * wall / n, 3),
                "generator_ms_per_image": round(1000 * took[size][0] / n, 3),
                "times_faster": round(wall / took[size][0], 1),
                "times_faster_in_processor_time": round(processor / took[size][1], 1),
            })  # fmt: skip
    asked = [
        r for r in rows if r["network"] == NETWORKS[0] and "all" in r["pgd"] and (r["ngf"], r["blocks"]) in RECORDED
    ]
    found = {
        "images": n,
        "eps": EPS,
        "asked": ASKED,
        "least_of_recorded_generators_on_resnet20": min(r["times_faster"] for r in asked),
        "met": all(r["times_faster"] >= ASKED for r in asked),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    write_json(out, found)
    return found


def clocked(works: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, tuple[float, float]]:
    """Median wall and processor seconds of each work; the first round warms up."""
    times: dict[Any, list[tuple[float, float]]] = {key: [] for key in works}
    for _ in range(rounds + 1):
        for key, work in works.items():
            start = time.perf_counter(), time.process_time()
            work()
            times[key].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {
        k: (statistics.median(w for w, _ in v[1:]), statistics.median(p for _, p in v[1:])) for k, v in times.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    result = main(arguments.out, arguments.quick)
    for row in result["rows"]:
        print(
            f"{row['network']}, {row['pgd']}: ngf {row['ngf']}, {row['blocks']} blocks: {row['times_faster']}x faster"
        )
    print(f"asked at least {ASKED:g}x: {'met' if result['met'] else 'missed'}")
