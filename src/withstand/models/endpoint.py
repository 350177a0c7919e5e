"""Classifiers behind an HTTP address, and the log that spends no query twice."""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from os import PathLike
from typing import Any, get_args

import numpy as np

from withstand.errors import Unavailable, bad
from withstand.models.blackbox import BlackBox, Kind
from withstand.models.normalise import Pair
from withstand.models.query_log import QueryLog, key_of
from withstand.protocols import Space

_PASSING = {408, 425, 429}  # and 500 to 599: worth another try


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
        if not url.startswith(("http://", "https://")):
            raise bad("model", url, "an address that begins with http:// or https://")
        if outputs not in (None, *get_args(Kind)):
            raise bad("outputs", repr(outputs), " or ".join(map(repr, get_args(Kind))))
        if not timeout > 0 or retries < 0 or backoff < 0:
            raise bad("timeout, retries, backoff", (timeout, retries, backoff), "seconds > 0, times >= 0, seconds >= 0")
        super().__init__(name or url, Space(tuple(shape) if shape else None, (0.0, 1.0), classes), normalise, batch)
        self.url, self.sent = url, 0
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
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
        body = json.dumps({"inputs": x.tolist()}).encode()
        request = urllib.request.Request(self.url, body, self._headers, method="POST")
        tries = 0
        while not isinstance(got := self._once(request), bytes):
            problem, passing = got
            tries += 1
            if not passing or tries > self._retries:
                raise Unavailable(f"{self.url} {problem} (tries: {tries}).{self._resume()}")
            time.sleep(self._backoff * 2 ** (tries - 1))
        self.sent += len(x)
        try:
            return json.loads(got)
        except ValueError:
            raise self._garbage(f"{got[:80]!r}, which is no JSON") from None

    def _once(self, request: urllib.request.Request) -> bytes | tuple[str, bool]:
        """The body of the answer, or what went wrong and whether that may pass."""
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            said = error.read(300).decode("utf-8", "replace").strip()
            return f"answered {error.code} {error.reason}: {said}", error.code in _PASSING or error.code >= 500
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                return f"did not answer within {self._timeout:g} seconds", True
            return f"cannot be reached: {reason or type(error).__name__}", True

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
        wanted = f'{{"{kind}": ...}}' if kind else " or ".join(f'{{"{k}": ...}}' for k in get_args(Kind))
        return Unavailable(f"{self.url} returned {got}; allowed: {wanted}, one entry for each image.{self._resume()}")

    def _resume(self) -> str:
        kept = "Its answers so far are kept; run" if self._log is not None else "Run"
        return f" {kept} the same command again to go on from here."
