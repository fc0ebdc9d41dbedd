"""Values in messages: short descriptions, even of a whole model that is passed by mistake."""

from __future__ import annotations

import reprlib
from typing import Any

_MAX_LENGTH = 200


def brief(value: object) -> str:
    """Describe a value: short ones by ``repr``, others by type, and by shape or length where they have one.

    >>> brief("fc*"), brief([1.5, None]), brief(range(3, 1000)), brief({"weights": bytes(5000)})
    ("'fc*'", '[1.5, None]', '<range of length 997>', "{'weights': <bytes of length 5000>}")
    """
    return _BRIEF.repr(value)


class _Brief(reprlib.Repr):
    """Limits containers to their first items, and describes types that :mod:`reprlib` does not know."""

    def repr_instance(self, value: Any, level: int) -> str:
        size = "" if isinstance(value, type) else _size_of(value)
        try:
            text = "" if size else repr(value)
        except Exception:  # in code of users
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
    except Exception:  # in code of users
        return ""


def printable(text: str) -> str:
    r"""Escape characters that a terminal would obey or cannot show, such as control characters and line breaks.

    >>> print(printable("fc\x1b[2J\nname"))
    fc\x1b[2J\nname
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
