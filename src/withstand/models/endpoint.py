"""Classifiers behind an HTTP address, and the log that spends no query twice."""

import hashlib
from collections.abc import Mapping
from os import PathLike
from typing import Any, get_args

import numpy as np

from withstand.errors import Unavailable, bad
from withstand.models.blackbox import BlackBox, Kind
from withstand.models.http import Caller
from withstand.models.normalise import Pair
from withstand.models.query_log import QueryLog, key_of
from withstand.protocols import Space


class HttpTarget(BlackBox):
    """A classifier that is asked by POST: {"inputs": [[...]]} with images [n, C, H, W] as nested lists.

    It answers {"logits": [[...]]}, {"probabilities": [[...]]} or {"labels": [...]}, one entry for each image, in order.
    `access` follows what it returns: declare `outputs`, or let the first answer tell (until then: decisions only).
    `sent`: images that went over the wire; those answered from the log are not among them.
    """

    def __init__(
        self,
        url: str,
        classes: int | None = None,
        normalise: Pair | None = None,
        *,
        name: str | None = None,
        outputs: Kind | None = None,
        shape: tuple[int, ...] | None = None,
        batch: int = 32,
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 0.5,
        headers: Mapping[str, str] | None = None,
        log: str | PathLike[str] | None = None,
    ) -> None:
        """shape: (C, H, W), if known. batch: images in a request. timeout: seconds for one request. retries: further
        tries after a failure that may pass, each twice as long after the last, from `backoff` seconds on. headers: sent
        along, e.g. {"Authorization": "Bearer ..."}. log: an append-only file of questions and answers; what it holds is
        answered from it. Raises: BadInput; Unavailable for a log that another process holds."""
        self._caller = Caller(url, timeout, retries, backoff, headers, log is not None)
        if outputs not in (None, *get_args(Kind)):
            raise bad("outputs", repr(outputs), " or ".join(map(repr, get_args(Kind))))
        super().__init__(name or url, Space(tuple(shape) if shape else None, (0.0, 1.0), classes), normalise, batch)
        self.url, self.sent = url, 0
        self._log = None if log is None else QueryLog(log, url)
        self._kind: Kind | None = outputs
        self._declared = outputs

    @property
    def kind(self) -> Kind | None:
        return self._kind

    def fingerprint(self) -> str:
        """Of the address and the declarations; what stands behind the address may change without notice."""
        held = repr(
            (self.url, self._normalise, self._declared, self.space.classes if self._declared == "labels" else None)
        )
        return hashlib.sha256(held.encode()).hexdigest()[:32]

    def ask(self, x: np.ndarray) -> np.ndarray:
        if self._log is None:
            return self._checked(self._post(x), len(x))
        keys = [key_of(image) for image in x]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._log}
        if new:
            rows = sorted(new.values())
            answer = self._checked(self._post(x[rows]), len(rows))
            assert self._kind is not None
            self._log.add([keys[i] for i in rows], self._kind, answer.tolist())
        held = [self._log[key] for key in keys]
        if (kinds := {kind for kind, _ in held}) != {self._kind or held[0][0]}:
            raise bad("outputs", self._kind, f"{kinds.pop()!r}, as the query log holds", "Use another log.")
        return self._checked({held[0][0]: [answer for _, answer in held]}, len(x))

    def _post(self, x: np.ndarray) -> Any:
        answer = self._caller.post({"inputs": x.tolist()}, _allowed(self._kind))
        self.sent += len(x)
        return answer

    def _checked(self, answer: Any, n: int) -> np.ndarray:
        """The answer as an array; settles kind and class count at the first one."""
        if not isinstance(answer, dict):
            raise self._garbage(f"a {type(answer).__name__}")
        kind: Kind | None = self._kind or next((k for k in get_args(Kind) if k in answer), None)
        if kind is None or kind not in answer:
            raise self._garbage(f"the keys {sorted(map(str, answer))[:5]}", kind)
        try:
            values = np.array(answer[kind])
        except ValueError:
            raise self._garbage("rows of different lengths", kind) from None
        wanted = "iu" if kind == "labels" else "iuf"
        if values.dtype.kind not in wanted or values.shape[:1] != (n,) or values.ndim != (1 if kind == "labels" else 2):
            raise self._garbage(f"{kind} of shape {list(values.shape)} and type {values.dtype} for {n} images", kind)
        if kind != "labels" and not np.isfinite(values).all():
            raise self._garbage(f"{kind} with NaN or Inf", kind)
        classes = self.space.classes
        if kind == "labels":
            if classes is None:
                raise bad(
                    "classes", "nothing", f"their number, since {self.url} returns labels only", "Pass classes=K."
                )
            if n and not 0 <= values.min() <= values.max() < classes:
                raise self._garbage(f"labels from {values.min()} to {values.max()} of {classes} classes", kind)
        elif classes is None:
            self.space = Space(self.space.shape, self.space.box, values.shape[1])
        elif values.shape[1] != classes:
            raise self._garbage(f"{values.shape[1]} classes instead of {classes}", kind)
        self._kind = kind
        return values

    def _garbage(self, got: str, kind: Kind | None = None) -> Unavailable:
        return self._caller.garbage(got, _allowed(kind))


def _allowed(kind: Kind | None) -> str:
    said = f'{{"{kind}": ...}}' if kind else " or ".join(f'{{"{k}": ...}}' for k in get_args(Kind))
    return f"{said}, one entry for each image"
