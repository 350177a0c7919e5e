"""The transfer attacks beside torchattacks', at equal settings and in one run: time, strength, passes, cost of a step.

    WITHSTAND_DATA=... python benchmarks/transfer.py [--quick] [--fresh]

Points are made on the CIFAR-10 ResNet-20 and judged on it and on ResNet-32 and ResNet-56, on images that all three get
right. Both sides take ten steps of a tenth of Linf 8/255 from the clean point with momentum 1. Rounds alternate between the
sides; ratios are of processor time, the median over rounds, and wall time is recorded beside them. torchattacks has SI only
with the look-ahead, so that this row is the same stack here. Images that its diversity makes larger are larger inputs to
its network: "di, larger" shows them so here as well, "di, grown" resizes them back.

"small network" holds times on two convolutions and two linear layers, whose pass over 32 images takes a few milliseconds:
there every call that is not the pass itself shows. "whole run" is our time in that of the bare passes, start and checks
included; "steps" is that of ten further steps. What is no pass there: checks of images, model and points, once a run; five
operations on tensors of the images' size in a step; for diversity, drawing and making two matrices for each image and four
products with them; for translation two convolutions, which cost as much on both sides.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pretrained
import torch
from torch import Tensor, nn

import withstand as ws
from withstand.files import write_json
from withstand.metrics import paired_difference

RESULTS = Path(__file__).parent / "results" / "transfer.json"
EPS, STEPS = 8 / 255, 10
SMALL = "cifar10_cnn_a_mix4"
SURROGATE, TARGETS = "cifar10_resnet20", ("cifar10_resnet32", "cifar10_resnet56")
Make = Callable[[Tensor, Tensor], Tensor]

_A = ws.attacks
_T = ws.Linf(EPS)
PAIRS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "mi": (_A.MI(_T), "MIFGSM", {}),
    "ni": (_A.NI(_T), "NIFGSM", {}),
    "di": (_A.DI(_T, views=(_A.Diversity(rate=0.9),)), "DIFGSM", {}),
    "di, grown": (_A.DI(_T, views=(_A.Diversity(rate=1.25),)), "DIFGSM", {"resize_rate": 1.25}),
    "di, larger": (_A.DI(_T, views=(_A.Diversity(rate=1.25, larger=True),)), "DIFGSM", {"resize_rate": 1.25}),
    "ti": (_A.TI(_T), "TIFGSM", {"len_kernel": 5, "diversity_prob": 0.0}),
    "ti-di": (_A.TI(_T, views=(_A.Diversity(rate=0.9),)), "TIFGSM", {"len_kernel": 5, "diversity_prob": 0.5}),
    "si-ni": (_A.SI(_T, views=(_A.Nesterov(), _A.Scale())), "SINIFGSM", {"m": 5}),
    "vmi": (_A.VMI(_T), "VMIFGSM", {"N": 20}),
    "vni": (_A.VNI(_T), "VNIFGSM", {"N": 20}),
}
"""Name: the attack, its class in torchattacks, and settings beyond eps, step, steps and decay."""
PASSES = {
    "mi": 1, "ni": 1, "di": 1, "ti": 1, "si": 5, "admix": 15, "vmi": 21, "vni": 21, "ssa": 20, "pgn": 40, "tpa": 21,
}  # fmt: skip
"""Forward and backward passes of one step by the papers' definitions."""


def main(out: Path = RESULTS, quick: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Run all groups and write `out` after each row; rows that it holds are not measured again unless fresh.

    quick: 10 images, one round, the attacks of one pass per step only.
    """
    n, timed, rounds = (10, 10, 1) if quick else (200, 32, 4)
    surrogate, targets = pretrained.network(SURROGATE), {t: pretrained.network(t) for t in TARGETS}
    x, y = kept([surrogate, *targets.values()], n)
    peer = _peer()
    found = {
        "eps": EPS,
        "steps": STEPS,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchattacks": None if peer is None else metadata.version("torchattacks"),
    }
    before = json.loads(out.read_text()) if out.is_file() and not fresh else {}
    same = {k: before.get(k) for k in found} == found
    beside, steps = (before[k] if same else {} for k in ("beside torchattacks", "one more step"))
    small = before.get("small network", {}) if same else {}
    found |= {"beside torchattacks": beside, "one more step": steps, "small network": small}
    for name, (ours, cls, settings) in PAIRS.items():
        if name in beside or (quick and looks(ours) > 1):
            continue
        row: dict[str, Any] = {"passes per step": looks(ours), "class": cls, **settings}
        if peer is None:
            row["missing"] = "torchattacks is not installed"
        else:
            long = looks(ours) > 1
            own: Make = lambda x, y, ours=ours: ours(surrogate, x, y)  # noqa: E731
            theirs = _theirs(peer, surrogate, cls, settings)
            row["time"] = race(own, theirs, x[: timed // 4 if long else timed], y, 2 if long else rounds)
            judges = {SURROGATE: surrogate, **targets}
            row["strength"] = strength(own, theirs, judges, x[: n // 4 if long else n], y)
        beside[name] = row
        write_json(out, found)
        print(name, row, flush=True)
    for name, needed in PASSES.items():
        if name not in steps and not (quick and needed > 1):
            steps[name] = one_more_step(surrogate, name, x, y, rounds)
            write_json(out, found)
            print(name, steps[name], flush=True)
    for name in ("mi", "ni", "di", "ti"):
        for images in (8,) if quick else (8, 32, 128):
            what = f"{name}, {images} images"
            if what not in small and peer is not None:
                small[what] = on_a_small_network(peer, name, images, rounds if quick else 4 + 1200 // images)
                write_json(out, found)
                print(what, small[what], flush=True)
    return found


def on_a_small_network(peer: Any, name: str, images: int, rounds: int) -> dict[str, float]:
    """Times on the small network, in those of the bare passes and of torchattacks; medians over rounds."""
    model, (x, y) = pretrained.network(SMALL), pretrained.images(images)
    ours, cls, settings = PAIRS[name]
    theirs = _theirs(peer, model, cls, settings)
    works = {
        "bare": lambda: [pretrained.one_pass(model, x, y) for _ in range(STEPS)],
        "ours": lambda: ours(model, x, y),
        "longer": lambda: replace(ours, steps=2 * STEPS, step=1 / STEPS)(model, x, y),
        "theirs": lambda: theirs(x, y),
    }
    times = [{k: clocked(work)[1] for k, work in works.items()} for _ in range(rounds + 1)][1:]

    def middle(ratio: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(ratio(t) for t in times), 3)

    return {
        "ratio": middle(lambda t: t["ours"] / t["theirs"]),
        "whole run": middle(lambda t: t["ours"] / t["bare"]),
        "steps": middle(lambda t: (t["longer"] - t["ours"]) / t["bare"]),
        "whole run of torchattacks": middle(lambda t: t["theirs"] / t["bare"]),
        "milliseconds of a bare pass": round(1e3 * statistics.median(t["bare"] for t in times) / STEPS, 3),
    }


def kept(models: list[nn.Module], n: int) -> tuple[Tensor, Tensor]:
    """The first n test images that all models get right."""
    x, y = pretrained.images(n + n // 3)
    right = torch.stack([torch.cat([m(part).argmax(1) for part in x.split(100)]) == y for m in models]).all(0)
    return x[right][:n], y[right][:n]


def looks(attack: Any) -> int:
    """Passes per step as the attack's views say."""
    return int(torch.tensor([getattr(v, "looks", getattr(v, "samples", 1)) for v in attack.views or (1,)]).prod())


def race(ours: Make, theirs: Make, x: Tensor, y: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of both, and our time in theirs: the median over rounds in which both take turns."""
    y = y[: len(x)]
    times: list[list[tuple[float, float]]] = []
    for round_ in range(rounds + 1):
        order = (ours, theirs) if round_ % 2 else (theirs, ours)
        spent = {make: clocked(lambda make=make: make(x, y)) for make in order}
        times.append([spent[ours], spent[theirs]])
    times = times[1:]  # the first round warms up
    return {
        "images": len(x),
        "ratio": round(statistics.median(a[1] / b[1] for a, b in times), 3),
        "ratio of wall time": round(statistics.median(a[0] / b[0] for a, b in times), 3),
        "seconds": round(statistics.median(a[1] for a, _ in times), 3),
        "seconds of torchattacks": round(statistics.median(b[1] for _, b in times), 3),
    }


def strength(ours: Make, theirs: Make, judges: dict[str, nn.Module], x: Tensor, y: Tensor) -> dict[str, Any]:
    """Success on each model for both, and the difference (ours minus theirs) with its 95 % interval, paired by image."""
    y = y[: len(x)]
    points = [torch.cat([make(a, b).detach() for a, b in zip(x.split(100), y.split(100))]) for make in (ours, theirs)]
    found: dict[str, Any] = {"images": len(x)}
    for name, judge in judges.items():
        a, b = (torch.cat([judge(part).argmax(1) for part in z.split(100)]).ne(y).numpy() for z in points)
        difference, low, high, _ = paired_difference(b, a)
        found[name] = {"ours": a.mean(), "theirs": b.mean(), "difference": difference, "low": low, "high": high}
        found[name] = {k: round(float(v), 4) for k, v in found[name].items()}
    return found


def one_more_step(model: nn.Module, name: str, x: Tensor, y: Tensor, rounds: int) -> dict[str, float]:
    """What further steps cost beside as many bare passes as their definition needs, and how many passes they make."""
    attack, needed = getattr(_A, "Admix" if name == "admix" else name.upper()), PASSES[name]
    few, more = (2, 2 + max(2, 16 // needed))
    x, y = (x[:32], y[:32]) if needed < 10 else (x[:8], y[:8])
    short, long = attack(_T, steps=few), attack(_T, steps=more)
    counted = [a.run(model, x[:2], y[:2]) for a in (short, long)]
    made = [int((r.forwards + r.backwards).max()) for r in counted]
    ratios = []
    for _ in range(rounds + 1):
        bare = clocked(lambda: [pretrained.one_pass(model, x, y) for _ in range((more - few) * needed)])
        a, b = clocked(lambda: short(model, x, y)), clocked(lambda: long(model, x, y))
        ratios.append([(b[i] - a[i]) / bare[i] for i in (0, 1)])
    wall, processor = (round(statistics.median(r[i] for r in ratios[1:]), 3) for i in (0, 1))
    passes = (made[1] - made[0]) / 2 / (more - few)
    return {"ratio": processor, "ratio of wall time": wall, "passes": passes, "passes by definition": needed}


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _peer() -> Any:
    try:
        import torchattacks
    except ImportError:
        return None
    return torchattacks


def _theirs(peer: Any, model: nn.Module, cls: str, settings: dict[str, Any]) -> Make:
    return getattr(peer, cls)(model, eps=EPS, alpha=EPS / STEPS, steps=STEPS, decay=1.0, **settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    main(**vars(parser.parse_args()))
