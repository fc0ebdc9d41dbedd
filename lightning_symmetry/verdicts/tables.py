"""Tables, names and sets of units as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_symmetry.brief import printable

ONLY_UNIT = "its only unit"
"""The description of all units of a layer that has only one."""

_MAX_SHOWN = 3  # groups, or runs of them
_MAX_LISTED = 8  # members of a group


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, with numbers flush right and control characters escaped.

    >>> print(plain_table(("layer", "units"), [("fc1", "5"), ("conv.12", "64")]))
    layer    units
    -------  -----
    fc1          5
    conv.12     64
    """
    head, *rows = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = zip(row, widths, strict=True)
        padded = [c.rjust(w) if is_number_column(rows, i) else c.ljust(w) for i, (c, w) in enumerate(cells)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def is_number_column(rows: Sequence[Sequence[str]], i: int) -> bool:
    """Return whether column ``i`` of a table holds numbers only."""
    return all(re.fullmatch(r"[\d./%]+", row[i]) for row in rows)


def describe_groups(groups: Sequence[tuple[int, ...]], num_units: int | None, which: str = "") -> str:
    """Describe groups of units in a few words.

    Args:
        groups: the groups.
        num_units: number of units of the layer; None: unknown.
        which: a description of the units to use in place of their numbers.

    >>> describe_groups([(0, 1, 2, 3)], 4)
    'all 4 units'
    >>> describe_groups([(0,)], 1)
    'its only unit'
    >>> describe_groups([(0, 4), (1, 5), (2, 6), (3, 7)], 8)
    'all 8 units in 4 groups (units 4-7 match units 0-3, one by one)'
    >>> describe_groups([(0, 4), (1, 3), (2, 6), (5, 7)], 8)
    'all 8 units in 4 groups, {0, 4}, {1, 3}, {2, 6}, ...'
    >>> describe_groups([tuple(range(20))], 64)
    '20 of 64 units, {0, 1, 2, 3, 4, 5, 6, 7, ...}'
    >>> describe_groups([(0, 1)], None)  # a layer that is no longer in the model
    '2 units, {0, 1}'
    """
    total = sum(map(len, groups))
    if total == num_units == 1:
        return ONLY_UNIT
    text = f"all {num_units} units" if total == num_units else f"{total} of {num_units} units"
    if num_units is None:
        text = f"{total} units"
    if total == num_units and len(groups) == 1:
        return text
    if len(groups) > 1:
        text += f" in {len(groups)} groups"
    if not which and len(groups) > _MAX_SHOWN and 2 * len(runs_of(groups)) <= len(groups):
        which = ", ".join([*match_texts(groups, "unit"), "one by one"])
    if which:
        return f"{text} ({which})"
    sets = [f"{{{first_of(group, _MAX_LISTED)}}}" for group in groups[: _MAX_SHOWN + 1]]
    return f"{text}, {first_of(sets, _MAX_SHOWN)}"


def match_texts(
    groups: Sequence[tuple[int, ...]], kind: str, verbs: Sequence[str] = ("matches", "match"), of_runs: str = ""
) -> list[str]:
    """Return a text per run of groups that says which members match the first one.

    ``kind`` is the noun for a member, ``verbs`` are the verb for one member and for several. The text of a run of
    several groups ends with ``of_runs``.

    Example:
        >>> match_texts([(1, 3)], "head"), match_texts([(0, 4, 8), (1, 5, 9)], "unit", of_runs=", one by one")
        (['head 3 matches head 1'], ['units 4-5 and 8-9 match units 0-1, one by one'])
    """
    runs = runs_of(groups)
    texts = []
    for first, length in runs[:_MAX_SHOWN]:
        one, *others = [str(unit) if length == 1 else f"{unit}-{unit + length - 1}" for unit in first]
        is_several = length > 1 or len(others) > 1
        subject = f"{kind}{'s' if is_several else ''} {listed(others)}"
        texts.append(f"{subject} {verbs[is_several]} {f'{kind}s {one}{of_runs}' if length > 1 else f'{kind} {one}'}")
    return [*texts, *["..."] * (len(runs) > _MAX_SHOWN)]


def runs_of(groups: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], int]]:
    """Combine groups into runs, in which each group is the one before, with 1 added to every member.

    Return the first group of each run and the number of its groups.

    Example:
        >>> runs_of([(0, 4), (1, 5), (2, 6), (8, 9)])
        [((0, 4), 3), ((8, 9), 1)]
    """
    runs: list[tuple[tuple[int, ...], int]] = []
    for group in sorted(groups):
        first, length = runs[-1] if runs else ((), 0)
        if runs and group == tuple(unit + length for unit in first):
            runs[-1] = first, length + 1
        else:
            runs.append((group, 1))
    return runs


def abbreviate(names: Sequence[str]) -> str:
    """Join names; of more than three only the first two and the last one.

    >>> abbreviate(["a", "b", "c", "d"])
    'a, b, ..., d'
    """
    return ", ".join(names if len(names) <= 3 else (*names[:2], "...", names[-1]))


def first_of(items: Sequence[object], number: int) -> str:
    """Join the first items, with dots for the others."""
    return ", ".join([*map(str, items[:number]), *["..."] * (len(items) > number)])


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence, at most eight of them.

    >>> listed(["1", "2", "3"])
    '1, 2 and 3'
    """
    if len(names) > _MAX_LISTED:
        return first_of(names, _MAX_LISTED)
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def shorten(name: str, length: int = 60) -> str:
    """Cut the beginning of a name that is too long; its end is more specific.

    Example:
        >>> shorten("encoder.layers.11.attention.output.dense", 28)
        '...attention.output.dense'
    """
    if len(name) <= length:
        return name
    tail = name[3 - length :]
    _, _, rest = tail.partition(".")
    # Cut at a dot: half a name looks like a whole one, such as 1.dense for 11.dense.
    return "..." + (rest if len(rest) > length // 2 else tail)
