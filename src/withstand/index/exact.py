"""An exact index of float vectors, which torch or faiss searches with the same answer."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import BadInput, bad, missing_extra
from withstand.files import write_atomic, write_json

Metric = Literal["cosine", "l2"]
Backend = Literal["auto", "torch", "faiss"]

_PAIRS = 1 << 24  # distances held at once
_VALUES = 1 << 19  # values of gathered vectors at once on a CPU, whose caches are small
_AT_ONCE = 4096  # queries that faiss gets at once: it holds blocks of distances itself, and is slow with few queries
_SPARE = 4  # candidates beyond the k that are asked for: rounding may swap neighbours at the border


class Index(nn.Module):
    """The k nearest of M vectors, exactly.

    >>> index = Index(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> index.search(torch.tensor([[2.0, 1.9]]), k=2)[1]
    tensor([[2, 0]])

    vectors: [M, D] float. metric: "cosine", distance 1 - q.r / (|q| |r|) in [0, 2] (a zero vector is at 1 from everything);
    or "l2", |q - r|. backend: "torch"; "faiss" (a flat index, on the CPU); "auto" takes faiss where it is installed and the
    vectors lie on the CPU.

    A back end only proposes candidates, by a matrix product; their distances are then computed value by value, the same way
    for every pair, so that both give the same neighbours and equal vectors are equally far. Among equal distances the
    smallest position wins, also where more vectors are tied than are asked for. Only neighbours that differ by less than
    the rounding of a product may be mistaken for one another, and then only beyond the spare candidates.

    The vectors are a parameter that does not learn: they move with a module that holds the index, belong to its state
    dict, and are not copied when it is borrowed.

    Raises: BadInput for no vectors, another rank, and values that are NaN or infinite; MissingExtra for faiss.
    """

    def __init__(self, vectors: Tensor, metric: Metric = "cosine", backend: Backend = "auto") -> None:
        super().__init__()
        if metric not in ("cosine", "l2"):
            raise bad("metric", repr(metric), '"cosine" or "l2"')
        if backend not in ("auto", "torch", "faiss"):
            raise bad("backend", repr(backend), '"auto", "torch" or "faiss"')
        if backend == "faiss" and not _has_faiss():
            raise missing_extra("faiss", "metric", 'backend="faiss"')
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or not vectors.is_floating_point():
            raise bad("vectors", _described(vectors), "a float tensor [M, D]")
        if vectors.numel() == 0:
            raise bad("vectors", f"shape {list(vectors.shape)}", "at least one vector", "The index would be empty.")
        self.metric: Metric = metric
        self.backend: Backend = backend
        made = (
            F.normalize(_finite("vectors", vectors.detach()).float(), dim=1) if metric == "cosine" else vectors.float()
        )
        self.vectors = nn.Parameter(made.detach().clone(), requires_grad=False)
        self._flat: tuple[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, k: int, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances float [N, k], rising, and positions int64 [N, k] of the k nearest vectors to each query [N, D].

        without: int64 [N], a position for each query that does not count (itself, say), or -1.
        The full matrix of distances is never held. Raises: BadInput for k > M (less the one that does not count), queries
        of another dimension, and values that are NaN or infinite.
        """
        if not isinstance(queries, Tensor) or queries.dim() != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise bad("queries", _described(queries), f"float vectors [N, {self.vectors.shape[1]}]")
        most = len(self) - (without is not None)
        if not 1 <= k <= most:
            raise bad("k", k, f"1 to {most}, of {len(self)} vectors", "Give more reference vectors or a smaller k.")
        if without is not None and (
            len(without) != len(queries) or int(without.max()) >= len(self) or int(without.min()) < -1
        ):
            raise bad("without", list(without.shape), f"{len(queries)} positions from -1 to {len(self) - 1}")
        # products in half precision would be far coarser than the rounding that decides which candidates are sure
        with torch.no_grad(), torch.autocast(self.vectors.device.type, enabled=False):
            q = _finite("queries", queries.detach()).to(self.vectors)
            q = F.normalize(q, dim=1) if self.metric == "cosine" else q
            parts = [
                self._search(rows, k, None if without is None else without[i : i + len(rows)].to(q.device))
                for i, rows in _blocks(q, _AT_ONCE if self._uses_faiss() else _PAIRS // len(self))
            ]
            return torch.cat([d for d, _ in parts]), torch.cat([p for _, p in parts])

    def _search(self, q: Tensor, k: int, without: Tensor | None) -> tuple[Tensor, Tensor]:
        count = min(k + (without is not None) + _SPARE, len(self))
        near, found = self._candidates(q, count)
        distance, position = self._refined(q, found, without)
        if count < len(self):
            # as far as a product can tell, one more that was not proposed may be as near as the last that was taken
            unsure = near[:, -1] - near[:, count - 1 - _SPARE] <= self._rounding(q)
            for row in unsure.nonzero().flatten().tolist():
                everyone = torch.arange(len(self), device=q.device)[None]
                own = None if without is None else without[row : row + 1]
                d, p = self._refined(q[row : row + 1], everyone, own)
                distance[row], position[row] = d[0, : distance.shape[1]], p[0, : position.shape[1]]
        return self._said(distance[:, :k]), position[:, :k]

    def _candidates(self, q: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Scores that rise with the distance, [N, count], and positions of about the nearest."""
        if self._uses_faiss():
            near, found = self._faiss().search(q.cpu().numpy(), count)
            near = torch.from_numpy(near if self.metric == "l2" else 1 - near)
            return near.to(q), torch.from_numpy(found).to(q.device)
        product = q @ self.vectors.T
        if self.metric == "cosine":
            return (1 - product).topk(count, dim=1, largest=False)
        squared = self.vectors.square().sum(1)[None] + q.square().sum(1, keepdim=True) - 2 * product
        return squared.topk(count, dim=1, largest=False)

    def _refined(self, q: Tensor, found: Tensor, without: Tensor | None) -> tuple[Tensor, Tensor]:
        """The candidates with their distances (squared for l2), sorted by distance and then by position."""
        found = found.sort(dim=1).values
        size = (_PAIRS if q.is_cuda else _VALUES) // (found.shape[1] * q.shape[1])
        distance = torch.cat([self._pairs(rows, found[i : i + len(rows)]) for i, rows in _blocks(q, size)])
        if without is not None:
            distance = distance.masked_fill(found == without[:, None], torch.inf)
        distance, order = distance.sort(dim=1, stable=True)
        return distance, found.gather(1, order)

    def _pairs(self, q: Tensor, found: Tensor) -> Tensor:
        r = self.vectors.detach()[found]  # [N, candidates, D]
        if self.metric == "cosine":
            return 1 - r.mul_(q[:, None]).sum(2)
        return r.sub_(q[:, None]).square_().sum(2)

    def _rounding(self, q: Tensor) -> Tensor | float:
        step = 4 * torch.finfo(torch.float32).eps
        if self.metric == "cosine":
            return step
        return step * (q.square().sum(1) + self.vectors.square().sum(1).max())

    def _said(self, distance: Tensor) -> Tensor:
        return distance.clamp(0, 2) if self.metric == "cosine" else distance.sqrt()

    # faiss -----------------------------------------------------------------------------------------------------------

    def _uses_faiss(self) -> bool:
        return self.backend == "faiss" or (
            self.backend == "auto" and self.vectors.device.type == "cpu" and _has_faiss()
        )

    def _faiss(self) -> Any:
        """The flat index of the vectors as they are now."""
        now = (self.vectors.data_ptr(), self.vectors._version)
        if self._flat is None or self._flat[0] != now:
            import faiss

            flat = (faiss.IndexFlatIP if self.metric == "cosine" else faiss.IndexFlatL2)(self.vectors.shape[1])
            flat.add(self.vectors.detach().cpu().numpy())  # type: ignore[call-arg]
            self._flat = (now, flat)
        return self._flat[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_flat": None}  # what faiss holds is built again in a copy

    # Files -----------------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Changes with the metric and any value of the vectors; the back end does not count."""
        digest = hashlib.sha256(f"{self.metric} {tuple(self.vectors.shape)}".encode())
        digest.update(self.vectors.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()[:32]

    def save(self, folder: str | Path) -> None:
        """Write `index.json` and `index.safetensors` into a folder."""
        from safetensors.torch import save

        content = save({"vectors": self.vectors.detach().cpu().contiguous()})
        write_atomic(Path(folder) / "index.safetensors", content)
        write_json(Path(folder) / "index.json", {"metric": self.metric, "fingerprint": self.fingerprint()})

    @classmethod
    def load(cls, folder: str | Path, backend: Backend = "auto") -> "Index":
        """What `save` wrote. Raises: BadInput for a folder without it, or files that do not belong together."""
        from safetensors.torch import load

        try:
            said = json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))
            vectors = load((Path(folder) / "index.safetensors").read_bytes())["vectors"]
            made = cls(vectors, said["metric"], backend)
            made.vectors.copy_(vectors)  # unit vectors, made unit again, may differ in the last digit
        except BadInput:
            raise
        except Exception as error:  # safetensors has errors of its own
            raise bad("index", f"{folder} ({error})", "a folder that Index.save wrote") from None
        if made.fingerprint() != said["fingerprint"]:
            raise bad("index", f"{folder}, whose vectors are not those of index.json", "a folder that Index.save wrote")
        return made

    def extra_repr(self) -> str:
        return f"{len(self)} x {self.vectors.shape[1]}, {self.metric}"


def _blocks(q: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """Where each block of at most so many (at least one) queries begins, and the block."""
    size = max(1, size)
    return [(i, q[i : i + size]) for i in range(0, len(q), size)] or [(0, q)]


def _finite(argument: str, vectors: Tensor) -> Tensor:
    if not bool(torch.isfinite(vectors).all()):
        raise bad(argument, "NaN or infinite values", "finite values", "Look at the layer that they come from.")
    return vectors


def _described(value: Any) -> str:
    return f"a {value.dtype} tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None
