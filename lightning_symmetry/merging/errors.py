"""Errors of a merge."""

from __future__ import annotations


class MergeError(RuntimeError):
    """Raised if no merged network can be verified; the message says why."""


class NotMergedError(Exception):
    """Raised within this package if units of one layer cannot be merged; users read the message as the reason."""


def describe(error: Exception) -> str:
    r"""Return the type of an error and the first line of its message.

    Example:
        >>> describe(ValueError("too wide\nat line 3"))
        'ValueError: too wide'
    """
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
