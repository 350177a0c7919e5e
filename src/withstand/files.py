"""Writing files so that a reader, or a run that is killed and started again, sees all of a file or none of it; and the
lock that keeps two runs out of one folder."""

import contextlib
import fcntl
import io
import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from withstand.errors import Unavailable


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a file under a temporary name beside it, flush it to the disk, then rename it.

    Raises:
        Unavailable: the disk is full or may not be written; nothing is left behind and an older file stays as it was.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise Unavailable(
            f"cannot write {path}: {error.strerror or error}. Nothing was overwritten; free some space or choose another "
            "folder, then run the same command again: it continues where it stopped."
        ) from error
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write plain values as indented JSON, atomically; a list of numbers takes one line, and numbers that are not finite
    become null."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    return write_atomic(
        path, _NUMBERS.sub(lambda found: _LINE_END.sub(r"\1", found[0]).replace(",", ", "), text) + "\n"
    )


_NUMBERS = re.compile(r"\[\n\s*(?:(?:-?\d[-+.\deE]*|null),?\n\s*)+\]")  # strings hold no raw line ends
_LINE_END = re.compile(r"(,?)\n\s*")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    plain: Any = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def slug(name: str) -> str:
    """A name as a file name: letters, digits, dot, dash and underscore stay."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name).strip(".") or "unnamed"


def lock(folder: Path) -> io.TextIOWrapper:
    """Take the folder's lock, which goes when the returned file is closed or the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held open on purpose)
    except OSError as error:
        raise Unavailable(f"out: cannot write in {folder}: {error.strerror}. Choose another --out.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise Unavailable(
            f"out: another process (pid {holder}) is running in {folder}. Wait for it, or give this run another --out."
        ) from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle
