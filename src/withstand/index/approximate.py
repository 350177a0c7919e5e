"""An approximate index of float vectors: a graph of neighbours, walked by faiss."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad, missing_extra
from withstand.files import write_atomic

_LINKS, _BUILT, _WALKED = 32, 200, 128  # per vector; candidates looked at when one is added, and when one is sought


class HNSW:
    """The k nearest of M vectors by cosine distance, nearly: a hierarchical navigable small world graph.

    >>> index = HNSW(torch.eye(3))
    >>> index.search(torch.tensor([[0.1, 1.0, 0.2]]), k=2)[1]
    tensor([[1, 2]])

    A search walks a graph instead of looking at all vectors: its time grows with log M, and it may miss some neighbours
    (few with these settings: 32 links, 200 candidates when built, max(128, 2 k) when searched). vectors: float [M, D].

    Reference: Malkov, Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
    Small World graphs", 2018, arXiv 1603.09320.

    Raises: BadInput for no vectors, another rank, and values that are NaN or infinite; MissingExtra for faiss.
    """

    def __init__(self, vectors: Tensor) -> None:
        if vectors.dim() != 2 or not vectors.is_floating_point() or not vectors.numel():
            raise bad("vectors", f"{vectors.dtype} {list(vectors.shape)}", "float vectors [M, D], at least one")
        graph = _faiss().IndexHNSWFlat(vectors.shape[1], _LINKS, _faiss().METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = _BUILT
        graph.add(_unit("vectors", vectors))
        self._graph, self._owner = graph, graph

    def __len__(self) -> int:
        return self._graph.ntotal

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Distances float [N, k], rising, and positions int64 [N, k] of about the k nearest vectors to each query [N, D].

        Raises: BadInput for k > M, queries of another dimension, and values that are NaN or infinite.
        """
        if queries.dim() != 2 or queries.shape[1] != self._graph.d:
            raise bad("queries", f"shape {list(queries.shape)}", f"float vectors [N, {self._graph.d}]")
        if not 1 <= k <= len(self):
            raise bad("k", k, f"1 to {len(self)}, the vectors of the index", "Give more vectors or a smaller k.")
        self._graph.hnsw.efSearch = max(_WALKED, 2 * k)
        near, found = self._graph.search(_unit("queries", queries), k)
        return torch.from_numpy(1 - near).clamp(0, 2), torch.from_numpy(found)

    def fingerprint(self) -> str:
        """Changes with the vectors and the graph."""
        return hashlib.sha256(_faiss().serialize_index(self._graph).data).hexdigest()[:32]

    def save(self, folder: str | Path) -> None:
        """Write `hnsw.faiss` into a folder."""
        write_atomic(Path(folder) / "hnsw.faiss", _faiss().serialize_index(self._graph).tobytes())

    @classmethod
    def load(cls, folder: str | Path) -> "HNSW":
        """What `save` wrote. Raises: BadInput for a folder without it."""
        import numpy as np

        made = cls.__new__(cls)
        try:
            content = np.frombuffer((Path(folder) / "hnsw.faiss").read_bytes(), np.uint8)
            made._owner = _faiss().deserialize_index(content)  # the graph dies with it
            made._graph = _faiss().downcast_index(made._owner)
            made._graph.hnsw  # noqa: B018 (an index of another kind has none)
        except (OSError, RuntimeError, AttributeError) as error:
            raise bad("index", f"{folder} ({error})", "a folder that HNSW.save wrote") from None
        return made

    def __repr__(self) -> str:
        return f"HNSW({len(self)} x {self._graph.d})"


def _unit(argument: str, vectors: Tensor) -> Any:
    if not bool(vectors.isfinite().all()):
        raise bad(argument, "NaN or infinite values", "finite values", "Look at the model that they come from.")
    return F.normalize(vectors.detach().float().cpu(), dim=1).contiguous().numpy()


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise missing_extra("faiss", "metric", "an approximate index")
    import faiss

    return faiss
