"""An exact index of binary codes, by Hamming distance."""

import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad

_PAIRS = 1 << 20  # distances held at once: they and what is made of them stay in the caches


class CodeIndex:
    """The k nearest of M binary codes, exactly.

    >>> index = CodeIndex(torch.tensor([[1, 1, -1], [-1, 1, 1], [1, 1, 1]]))
    >>> index.search(torch.tensor([[1, 1, 1]]), k=2)
    (tensor([[0, 1]]), tensor([[2, 0]]))

    codes: [M, K] of -1 and +1 (any type) or bool (True = +1), any K; or bits packed by `pack`, uint8 [M, ceil(K / 8)],
    with bits=K. Distances are numbers of different bits; among equal ones the smallest position wins.
    faiss searches where it is installed, else the bits of packed words are counted. Lies on the CPU, one bit for a bit.

    Raises: BadInput for no codes, and values that are no codes.
    """

    def __init__(self, codes: Tensor, bits: int | None = None) -> None:
        self.packed, self.bits = packed(codes, "codes", bits)
        if not len(self.packed):
            raise bad("codes", f"shape {list(codes.shape)}", "at least one code", "The index would be empty.")

    def __len__(self) -> int:
        return len(self.packed)

    def search(self, queries: Tensor, k: int, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances int64 [N, k], rising, and positions int64 [N, k] of the k nearest codes to each query [N, K].

        without: int64 [N], a position for each query that does not count (itself, say), or -1.
        Raises: BadInput for k > M (less the one that does not count), and queries that are no codes of K bits.
        """
        asked = self._queries(queries)
        most = len(self) - (without is not None)
        if not 1 <= k <= most:
            raise bad("k", k, f"1 to {most}, of {len(self)} codes", "Give more reference codes or a smaller k.")
        count = k + (without is not None)
        if importlib.util.find_spec("faiss") is not None:
            distance, position = self._faiss.search(asked, count)
        else:
            distance, position = self._counted(asked, count)
        if without is not None:
            own = position == without.cpu().numpy()[:, None]
            order = np.argsort(own, axis=1, kind="stable")[:, :k]  # the one that does not count goes last
            distance, position = np.take_along_axis(distance, order, 1), np.take_along_axis(position, order, 1)
        return torch.from_numpy(distance.astype(np.int64)), torch.from_numpy(position.astype(np.int64))

    def distances(self, queries: Tensor) -> Iterator[tuple[int, np.ndarray]]:
        """All distances, block by block: the first query of a block, and its distances uint8 or uint16 [n, M]."""
        asked, mine = _words(self._queries(queries)), _words(self.packed)
        kind = np.uint8 if self.bits < 256 else np.uint16
        step = max(1, _PAIRS // len(self))
        for start in range(0, len(asked), step):
            found = np.zeros((min(step, len(asked) - start), len(self)), kind)
            for word in range(mine.shape[1]):
                found += np.bitwise_count(asked[start : start + step, None, word] ^ mine[:, word])
            yield start, found

    def fingerprint(self) -> str:
        """Changes with any bit."""
        digest = hashlib.sha256(f"codes {self.bits} {len(self)}".encode())
        digest.update(self.packed.data)
        return digest.hexdigest()[:32]

    def save(self, folder: str | Path) -> None:
        """Write `codes.safetensors` into a folder."""
        from safetensors.torch import save

        from withstand.files import write_atomic

        tensors = {"packed": torch.from_numpy(self.packed), "bits": torch.tensor(self.bits)}
        write_atomic(Path(folder) / "codes.safetensors", save(tensors))

    @classmethod
    def load(cls, folder: str | Path) -> "CodeIndex":
        """What `save` wrote. Raises: BadInput for a folder without it."""
        from safetensors.torch import load

        try:
            held = load((Path(folder) / "codes.safetensors").read_bytes())
            return cls(held["packed"], int(held["bits"]))
        except Exception as error:  # safetensors has errors of its own
            raise bad("index", f"{folder} ({error})", "a folder that CodeIndex.save wrote") from None

    def __repr__(self) -> str:
        return f"CodeIndex({len(self)} x {self.bits} bits)"

    def _queries(self, queries: Tensor) -> np.ndarray:
        found, bits = packed(queries, "queries", self.bits if queries.dtype == torch.uint8 else None)
        if bits != self.bits:
            raise bad("queries", f"codes of {bits} bits", f"codes of {self.bits} bits, as the index holds")
        return found

    @cached_property
    def _faiss(self) -> Any:
        import faiss

        flat = faiss.IndexBinaryFlat(8 * self.packed.shape[1])
        flat.add(self.packed)  # type: ignore[call-arg]
        return flat  # whose heap keeps the smallest position among equal distances

    def _counted(self, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distance, position = np.empty((len(asked), k), np.int64), np.empty((len(asked), k), np.int64)
        for start, block in self.distances(torch.from_numpy(asked)):
            limit = np.partition(block, k - 1, axis=1)[:, k - 1]
            for row, near in enumerate(block):
                found = np.flatnonzero(near <= limit[row])  # in the order of positions
                chosen = found[np.argsort(near[found], kind="stable")[:k]]
                distance[start + row], position[start + row] = near[chosen], chosen
        return distance, position

    def __getstate__(self) -> dict[str, Any]:
        return {"packed": self.packed, "bits": self.bits}  # what faiss holds is built again in a copy


def pack(codes: Tensor) -> Tensor:
    """Codes [N, K] of -1 and +1, or bool, as uint8 [N, ceil(K / 8)], the first bit highest; the last byte is filled up
    with zeros, which changes no distance. Raises: BadInput for values that are no codes."""
    return torch.from_numpy(packed(codes, "codes")[0])


def unpack(codes: Tensor, bits: int) -> Tensor:
    """Codes of -1 and +1, float32 [N, K], of what `pack` made of them."""
    found = np.unpackbits(packed(codes, "codes", bits)[0], axis=1, count=bits)
    return torch.from_numpy(found).float().mul_(2).sub_(1)


def packed(codes: Tensor, argument: str, bits: int | None = None) -> tuple[np.ndarray, int]:
    """Packed bits uint8 [N, ceil(K / 8)] and K of codes in any of the forms that a `CodeIndex` takes."""
    allowed = "codes [N, K] of -1 and +1, bool [N, K], or packed uint8 with bits=K"
    if not isinstance(codes, Tensor) or codes.dim() != 2 or not codes.shape[1]:
        got = f"shape {list(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
        raise bad(argument, got, allowed)
    values = codes.detach().cpu()
    if bits is not None:
        if values.dtype != torch.uint8 or bits < 1 or values.shape[1] != -(-bits // 8):
            got = f"{values.dtype} {list(values.shape)} for {bits} bits"
            raise bad(argument, got, f"uint8 [N, {-(-bits // 8)}], bits packed by withstand.index.pack")
        found = values.contiguous().numpy()
        if len(found) and (found[:, -1] & (0xFF >> ((bits - 1) % 8 + 1))).any():
            raise bad(argument, f"ones beyond bit {bits}", "zeros there", "Pack the codes by withstand.index.pack.")
        return found, bits
    if values.dtype != torch.bool:
        if not bool(((values == 1) | (values == -1)).all()):
            wrong = values[(values != 1) & (values != -1)][0].item()
            mend = "Take the sign of real outputs (0 counts as +1): torch.where(u >= 0, 1, -1)."
            raise bad(argument, f"a value {wrong:g}", allowed, mend)
        values = values > 0
    return np.packbits(values.numpy(), axis=1), codes.shape[1]


def _words(codes: np.ndarray) -> np.ndarray:
    """Packed bytes as uint64 [N, W]."""
    missing = -codes.shape[1] % 8
    return np.ascontiguousarray(np.pad(codes, ((0, 0), (0, missing)))).view(np.uint64)
