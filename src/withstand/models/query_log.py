"""An append-only file of questions and answers, so that a resumed attack spends nothing twice."""

import gc
import hashlib
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from withstand.errors import BadInput, Unavailable, bad


def key_of(image: np.ndarray) -> str:
    """The identity of a question: a hash of its shape and float32 bytes."""
    text = np.ascontiguousarray(image, np.float32)
    return hashlib.blake2b(str(text.shape).encode() + text.tobytes(), digest_size=16).hexdigest()


class QueryLog:
    """One JSON line for the address, then one for each question: {"q": key, "logits": [...]}.

    Answers stay on disk; memory holds 16 bytes and a position for each. A line that was cut off by a kill is dropped.
    """

    def __init__(self, path: str | PathLike[str], endpoint: str) -> None:
        self.path = Path(path).expanduser()
        self._at: dict[bytes, int] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise bad("log", self.path, "a file that can be written", str(error)) from None
        self._lock()
        self._read(endpoint)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._at

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, key: str) -> tuple[Any, Any]:
        """The kind of the answer ("logits", ...) and the answer."""
        self._file.seek(self._at[bytes.fromhex(key)])
        held = json.loads(self._file.readline())
        del held["q"]
        return next(iter(held.items()))

    def add(self, keys: Sequence[str], kind: str, answers: Sequence[Any]) -> None:
        """Write down answers, all of them before it returns. Raises: Unavailable where the disk is full."""
        self._file.seek(0, 2)
        start = position = self._file.tell()
        lines = [(json.dumps({"q": key, kind: answer}) + "\n").encode() for key, answer in zip(keys, answers)]
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
        except OSError as error:
            self._file.truncate(start)
            raise Unavailable(
                f"query log {self.path}: {error}. Earlier answers are kept; make room and run again."
            ) from None
        for key, line in zip(keys, lines):
            self._at[bytes.fromhex(key)] = position
            position += len(line)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            gc.collect()  # it may be held by a target of this process that nobody refers to any more
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Unavailable(
                    f"query log {self.path}: another process is writing it. Wait for it, or name another log."
                ) from None

    def _read(self, endpoint: str) -> None:
        self._file.seek(0)
        position = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):  # cut off by a kill
                self._file.truncate(position)
                break
            try:
                held = json.loads(line)
                if number == 0:
                    if held["endpoint"] != endpoint:
                        raise bad(
                            "log", f"{self.path} of {held['endpoint']}", f"a log of {endpoint}", "Name another file."
                        )
                else:
                    self._at[bytes.fromhex(held["q"])] = position
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, BadInput):
                    raise
                raise bad(
                    "log", f"{self.path}, damaged in line {number + 1}", "a query log", "Name another file."
                ) from None
            position += len(line)
        if position == 0:
            self._file.write((json.dumps({"endpoint": endpoint}) + "\n").encode())
            self._file.flush()
