"""Asking an HTTP address by POST and JSON, with retries for what may pass."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from withstand.errors import Unavailable, bad

_PASSING = {408, 425, 429}  # and 500 to 599: worth another try


class Caller:
    """An address that is sent JSON and answers JSON.

    timeout: seconds for one request. retries: further tries after a failure that may pass, each twice as long after the
    last, from `backoff` seconds on. headers: sent along, e.g. {"Authorization": "Bearer ..."}. logged: whether the answers
    so far are kept, which errors then say.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 0.5,
        headers: Mapping[str, str] | None = None,
        logged: bool = False,
    ) -> None:
        """Raises: BadInput."""
        if not url.startswith(("http://", "https://")):
            raise bad("model", url, "an address that begins with http:// or https://")
        if not timeout > 0 or retries < 0 or backoff < 0:
            raise bad("timeout, retries, backoff", (timeout, retries, backoff), "seconds > 0, times >= 0, seconds >= 0")
        self.url = url
        self._timeout, self._retries, self._backoff, self._logged = timeout, retries, backoff, logged
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}

    def post(self, question: Mapping[str, Any], allowed: str) -> Any:
        """What the address answers, read from JSON. allowed: what it should be, in words. Raises: Unavailable."""
        got = self._tried(urllib.request.Request(self.url, json.dumps(question).encode(), self._headers, method="POST"))
        try:
            return json.loads(got)
        except ValueError:
            raise self.garbage(f"{got[:80]!r}, which is no JSON", allowed) from None

    def get(self) -> bytes:
        """The bytes behind the address. Raises: Unavailable."""
        return self._tried(urllib.request.Request(self.url, headers=self._headers))

    def garbage(self, got: str, allowed: str) -> Unavailable:
        """The error for an answer that means nothing."""
        return Unavailable(f"{self.url} returned {got}; allowed: {allowed}.{self._resume}")

    @property
    def _resume(self) -> str:
        kept = "Its answers so far are kept; run" if self._logged else "Run"
        return f" {kept} the same command again to go on from here."

    def _tried(self, request: urllib.request.Request) -> bytes:
        tries = 0
        while not isinstance(got := self._once(request), bytes):
            problem, passing = got
            tries += 1
            if not passing or tries > self._retries:
                raise Unavailable(f"{self.url} {problem} (tries: {tries}).{self._resume}")
            time.sleep(self._backoff * 2 ** (tries - 1))
        return got

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
