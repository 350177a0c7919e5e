"""Exact nearest neighbours: the time of withstand's index beside faiss' own flat index and scikit-learn, in one run.

All find the same neighbours (counted); withstand also orders ties by position and computes the distances anew, so that both
of its back ends give the same answer. Processor time of one thread; the best of several alternating rounds counts.
Run: python benchmarks/neighbours.py [OUT.json]
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from withstand.index import Index

ROUNDS = 5
SIZES = [(1297, 128, 75), (10_000, 512, 5), (10_000, 512, 75), (2_000, 6272, 75)]  # vectors, dimensions, k
QUERIES = 250


def main(out: Path) -> dict:
    """Measure, print the table, write it to `out` as JSON and return it."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows = []
    with threadpool_limits(1):
        for m, d, k in SIZES:
            for metric in ("cosine", "l2"):
                rows.append(_compare(m, d, k, metric))
                print(rows[-1], flush=True)
    found = {
        "benchmark": "neighbours",
        "versions": {p: version(p) for p in ("withstand", "faiss-cpu", "scikit-learn", "torch", "numpy")},
        "python": platform.python_version(),
        "threads": 1,
        "queries": QUERIES,
        "rounds": ROUNDS,
        "searches": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _compare(m: int, d: int, k: int, metric: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    vectors, queries = (torch.randn(n, d, generator=generator) for n in (m, QUERIES))
    flat = faiss.IndexFlatIP(d) if metric == "cosine" else faiss.IndexFlatL2(d)
    unit = torch.nn.functional.normalize if metric == "cosine" else (lambda x, dim: x)
    flat.add(unit(vectors, dim=1).numpy())
    peer = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(vectors.numpy())
    ours = {name: Index(vectors, metric, name) for name in ("torch", "faiss")}  # type: ignore[arg-type]
    sides: dict[str, Callable[[], np.ndarray]] = {
        "withstand, torch": lambda: ours["torch"].search(queries, k)[1].numpy(),
        "withstand, faiss": lambda: ours["faiss"].search(queries, k)[1].numpy(),
        "faiss": lambda: flat.search(unit(queries, dim=1).numpy(), k)[1],
        "scikit-learn": lambda: peer.kneighbors(queries.numpy(), return_distance=True)[1],
    }
    first = {name: side() for name, side in sides.items()}  # also warms up
    rounds = [[_seconds(side) for side in sides.values()] for _ in range(ROUNDS)]
    seconds = dict(zip(sides, np.min(rounds, 0).tolist()))
    expected = np.sort(first["scikit-learn"])
    return {
        "vectors": m,
        "dimensions": d,
        "k": k,
        "metric": metric,
        "milliseconds": {name: round(1e3 * s, 1) for name, s in seconds.items()},
        "neighbours_as_scikit_learn": {
            name: round(float((np.sort(found) == expected).mean()), 5) for name, found in first.items()
        },
    }


def _seconds(side: Callable[[], np.ndarray]) -> float:
    begin = time.process_time()
    side()
    return time.process_time() - begin


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "neighbours.json")
