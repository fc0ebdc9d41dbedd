"""Values in messages: a user who passes a whole model by mistake is told so in a few words."""

from __future__ import annotations

import reprlib
from typing import Any

_MAX_LENGTH = 200


def brief(value: object) -> str:
    """Describe a value: short ones as they are, others by type, and by shape or length where they have one.

    >>> brief("fc*"), brief([1.5, None]), brief(range(3, 1000)), brief({"weights": bytes(5000)})
    ("'fc*'", '[1.5, None]', '<range of length 997>', "{'weights': <bytes of length 5000>}")
    """
    return _BRIEF.repr(value)


class _Brief(reprlib.Repr):
    """Limits containers to their first items; :mod:`reprlib` knows those of Python, and hands all else on."""

    def repr_instance(self, value: Any, level: int) -> str:
        size = "" if isinstance(value, type) else _size_of(value)
        try:
            text = "" if size else repr(value)
        except Exception:  # of other people's code
            text = ""
        is_short = 0 < len(text) <= _MAX_LENGTH and "\n" not in text
        return text if is_short else f"<{type(value).__name__}{size}>"


_BRIEF = _Brief()
_BRIEF.maxlevel = 3
_BRIEF.maxstring = _MAX_LENGTH


def _size_of(value: Any) -> str:
    try:
        if hasattr(value, "shape"):
            return f" of shape {tuple(value.shape)}"
        return f" of length {len(value)}" if hasattr(value, "__len__") else ""
    except Exception:  # of other people's code
        return ""


def printable(text: str) -> str:
    r"""Escape what a terminal would obey or could not show: control characters, line breaks, text that runs backwards.

    >>> print(printable("fc\x1b[2J\nname"))
    fc\x1b[2J\nname
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
