"""What goes wrong with a merge."""

from __future__ import annotations


class MergeError(RuntimeError):
    """Raised if no merged network can be vouched for; the message says why."""


class NotMergedError(Exception):
    """Raised within this package if units of one layer cannot be merged; the message is the reason that users read."""


def describe(error: Exception) -> str:
    r"""What an error of somebody else's code is, in one line.

    Example:
        >>> describe(ValueError("too wide\nat line 3"))
        'ValueError: too wide'
    """
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
