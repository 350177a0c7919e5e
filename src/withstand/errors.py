"""Errors that say what was got, what is allowed, and how to mend it."""

import difflib
from collections.abc import Iterable


class WithstandError(Exception):
    """Anything withstand refuses. The command line prints it without a traceback and exits with code 2."""


class BadInput(WithstandError, ValueError):
    """An argument, a file or a model that cannot be worked with."""


class MissingExtra(WithstandError, ImportError):
    """An optional dependency that is not installed."""


class Unavailable(WithstandError, RuntimeError):
    """Something outside this process failed: an endpoint, a disk, a run folder held by another process."""


class Diverged(WithstandError, ArithmeticError):
    """A training whose loss is no number any more; what was saved before stays."""


class NotMet(WithstandError, AssertionError):
    """A result that does not meet a requirement. The command line exits with code 1."""


def bad(argument: str, got: object, allowed: str, mend: str = "") -> BadInput:
    """The error for one bad argument.

    >>> raise bad("eps", -1, "a number >= 0", "Give the radius in pixel units, e.g. 8/255.")
    Traceback (most recent call last):
    withstand.errors.BadInput: eps: got -1; allowed: a number >= 0. Give the radius in pixel units, e.g. 8/255.
    """
    return BadInput(f"{argument}: got {got}; allowed: {allowed}." + (f" {mend}" if mend else ""))


def unknown(what: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that nobody registered, with the nearest names that exist."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Known: " + ", ".join(known)
    return BadInput(f"{what}: there is no {name!r}. {hint}")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtra:
    """The error for an optional dependency that is needed now."""
    return MissingExtra(f'{purpose} needs {package}, which is not installed: pip install "withstand[{extra}]"')
