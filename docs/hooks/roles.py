"""Turns what docstrings say in the manner of Sphinx into what mkdocstrings reads.

Roles, such as ``:class:`Verdict```, become links or code, and a section that is called Example one of examples: else it
would be taken for a note, and its prompts for quotations.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

PACKAGE = "lightning_symmetry"
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):`~?(?P<name>[\w.]+)`")


class Roles(Extension):
    """Rewrites the docstrings of everything that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(lambda role: _link(role["name"], obj), text)


def _link(name: str, place: Object) -> str:
    """A link to a public name of the package or to a member of the class at hand; anything else is code."""
    short = name.removeprefix(f"{PACKAGE}.")
    head = short.split(".")[0]
    public = place.package.exports or []
    if head in {str(export) for export in public}:
        return f"[`{short}`][{PACKAGE}.{short}]"
    if name in {f"{PACKAGE}.metrics", f"{PACKAGE}.functional"}:
        return f"[`{name}`][{name}]"
    return f"`{name}`"
