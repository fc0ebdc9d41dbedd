"""The patterns by which users choose layers: ``include`` and ``exclude``, matched by :mod:`fnmatch`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

_MAX_SUGGESTIONS = 5


def is_chosen(names: Collection[str], include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    """Whether a layer that goes by any of these names is to be looked at; ``include=None`` stands for all."""
    if any(_matches(name, pattern) for pattern in exclude for name in names):
        return False
    return include is None or any(_matches(name, pattern) for pattern in include for name in names)


def unmatched_patterns(
    names: Collection[str], include: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The patterns that match none of the names, by argument; arguments without such patterns are left out."""
    unmatched: dict[str, tuple[str, ...]] = {}
    for argument, patterns in (("include", include or ()), ("exclude", exclude)):
        useless = tuple(pattern for pattern in patterns if not any(_matches(name, pattern) for name in names))
        if useless:
            unmatched[argument] = useless
    return unmatched


def unmatched_text(unmatched: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    """Tell the user of patterns that match nothing, one line each, with the closest of the names there are.

    >>> print(unmatched_text({"exclude": ("fc3",)}, ["fc1", "fc2", "head"]))
    `exclude` has the pattern 'fc3', which matches no layer. Closest names: 'fc1', 'fc2', 'head' (3 in all).
    """
    return "\n".join(
        f"`{argument}` has the pattern {pattern!r}, which matches no layer. {_suggestions(pattern, names)}"
        for argument, patterns in unmatched.items()
        for pattern in patterns
    )


def _matches(name: str, pattern: str) -> bool:
    # Names of slices hold brackets, which a pattern takes for a choice of characters.
    return name == pattern or fnmatchcase(name, pattern)


def _suggestions(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "This model has no layers."
    by_likeness = sorted(names, key=lambda name: SequenceMatcher(None, name, pattern).ratio(), reverse=True)
    closest = ", ".join(map(repr, by_likeness[:_MAX_SUGGESTIONS]))
    text = f"Closest names: {closest} ({len(names)} in all)."
    # Patterns match whole names, so that of a container does not match the layers inside.
    if any(name.startswith(f"{pattern}.") for name in names):
        text = f"For the layers inside {pattern!r} write {pattern + '.*'!r}. {text}"
    return text
