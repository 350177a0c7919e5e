"""Evaluating retrieval: the time of withstand's measures beside faiss' own search for the neighbours they need.

100,000 vectors of 128 dimensions in classes of 20 (synthetic), each query left out of its own list: Recall@K, MAP@K,
R-precision and MAP@R, beside a flat faiss index asked for as many neighbours and one more. And 1,000 queries among
100,000 codes of 64 bits: MAP over whole lists and lookups within radius 2, in the order of the database and averaged over
ties; beside a flat binary index asked for whole lists, which says nothing of relevance. Processor time of one thread, the
best of alternating rounds; the memory is what a fresh process needs at its peak beyond the vectors or codes.
Run: python benchmarks/evaluation.py [OUT.json]
"""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from withstand.index import CodeIndex, Index, pack
from withstand.representation.metrics import code_scores, retrieval_scores

ITEMS, DIMENSIONS, CLASS = 100_000, 128, 20
BITS, CODE_QUERIES, LABELS = 64, 1000, 100
QUERIES = 10_000  # of the items: both take a time proportional to them
KS = (1, 10)
ROUNDS = 3


def main(out: Path) -> dict:
    """Measure, print the table, write it to `out` as JSON and return it."""
    found = {
        "benchmark": "evaluation",
        "versions": {p: version(p) for p in ("withstand", "faiss-cpu", "torch", "numpy")},
        "python": platform.python_version(),
        "threads": 1,
        "rounds": ROUNDS,
        "vectors": _vectors() | {"peak_MiB": _peak("vectors")},
        "codes": _codes() | {"peak_MiB": _peak("codes")},
    }
    print(json.dumps(found, indent=1))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _vectors() -> dict:
    e, y = _embeddings()
    rows = torch.arange(0, ITEMS, ITEMS // QUERIES)
    unit = F.normalize(e, dim=1).numpy()
    depth = max(CLASS - 1, *KS)

    def search() -> np.ndarray:
        flat = faiss.IndexFlatIP(DIMENSIONS)
        flat.add(unit)
        return flat.search(unit[rows], depth + 1)[1]

    def evaluate() -> dict:
        return retrieval_scores(e[rows], y[rows], Index(e), y, ks=KS, without=rows)

    theirs, ours = _compared(search, evaluate)
    said = {name: round(float(values.mean()), 4) for name, values in evaluate().items()}
    sizes = {"items": ITEMS, "dimensions": DIMENSIONS, "queries": len(rows), "neighbours": depth}
    return sizes | {
        "seconds": {"faiss, search alone": theirs, "withstand, all measures": ours},
        "ratio": round(ours / theirs, 3),
        "found": said,
    }


def _codes() -> dict:
    index, y, queries, asked = _codes_of()
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(index.packed)

    def search() -> np.ndarray:
        return flat.search(queries.numpy(), ITEMS)[1]

    def in_order() -> dict:
        return code_scores(queries, asked, index, y)

    def averaged() -> dict:
        return code_scores(queries, asked, index, y, ties="average")

    theirs, ours, mean = _compared(search, in_order, averaged)
    names = ("faiss, whole lists alone", "withstand, all measures", "withstand, averaged over ties")
    return {
        "items": ITEMS,
        "bits": BITS,
        "queries": CODE_QUERIES,
        "seconds": dict(zip(names, (theirs, ours, mean))),
        "map": round(float(in_order()["map"].mean()), 4),
        "map_averaged": round(float(averaged()["map"].mean()), 4),
    }


def _embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors around the middles of their classes, far enough apart that some neighbours are of other classes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(ITEMS) // CLASS
    middle = torch.randn(ITEMS // CLASS, DIMENSIONS, generator=generator)
    return middle[y] + 1.6 * torch.randn(ITEMS, DIMENSIONS, generator=generator), y


def _codes_of() -> tuple[CodeIndex, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes that are those of their classes but for a third of the bits; the queries are codes of their own."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.rand(LABELS, BITS, generator=generator) < 0.5
    y = torch.randint(0, LABELS, (ITEMS + CODE_QUERIES,), generator=generator)
    codes = pack(middle[y] ^ (torch.rand(len(y), BITS, generator=generator) < 0.33))
    return CodeIndex(codes[:ITEMS], BITS), y[:ITEMS], codes[ITEMS:], y[ITEMS:]


def _compared(*sides) -> list[float]:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rounds = [[_seconds(side) for side in sides] for _ in range(ROUNDS)]
    return [round(s, 2) for s in np.min(rounds, 0).tolist()]


def _seconds(side) -> float:
    begin = time.process_time()
    side()
    return time.process_time() - begin


def _peak(what: str) -> int:
    """MiB that the measures need at their peak beyond what they are given, in a process of their own."""
    done = subprocess.run([sys.executable, __file__, f"--peak={what}"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def _measure_peak(what: str) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if what == "vectors":
        e, y = _embeddings()
        rows = torch.arange(0, ITEMS, ITEMS // QUERIES)
        index = Index(e)
        retrieval_scores(e[:8], y[:8], index, y, ks=KS, without=torch.arange(8))  # what faiss holds is built
        before = _from_here()
        retrieval_scores(e[rows], y[rows], index, y, ks=KS, without=rows)
    else:
        held, y, queries, asked = _codes_of()
        code_scores(queries[:1], asked[:1], held, y)
        before = _from_here()
        code_scores(queries, asked, held, y)
    print((_status("VmHWM") - before) // 1024)


def _from_here() -> int:
    """KiB that the process holds now; its peak is counted anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    said = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in said.splitlines() if line.startswith(f"{name}:")))


if __name__ == "__main__":
    argument = sys.argv[1] if len(sys.argv) > 1 else ""
    if argument.startswith("--peak="):
        _measure_peak(argument.removeprefix("--peak="))
    else:
        main(Path(argument) if argument else Path(__file__).parent / "results" / "evaluation.json")
