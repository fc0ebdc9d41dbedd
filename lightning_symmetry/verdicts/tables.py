"""Tables, names and sets of units as text."""

from __future__ import annotations

import re
from collections.abc import Sequence


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text; columns of numbers are flush right.

    >>> print(plain_table(("layer", "units"), [("fc1", "5"), ("conv.12", "64")]))
    layer    units
    -------  -----
    fc1          5
    conv.12     64
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = zip(row, widths, strict=True)
        padded = [c.rjust(w) if is_number_column(rows, i) else c.ljust(w) for i, (c, w) in enumerate(cells)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def is_number_column(rows: Sequence[Sequence[str]], i: int) -> bool:
    """Whether column ``i`` of a table holds nothing but numbers."""
    return all(re.fullmatch(r"[\d./%]+", row[i]) for row in rows)


def describe_groups(groups: Sequence[tuple[int, ...]], num_units: int | None) -> str:
    """Groups of units in a few words.

    >>> describe_groups([(0, 1, 2, 3)], 4)
    'all 4 units'
    >>> describe_groups([(0, 4), (1, 5), (2, 6), (3, 7)], 8)
    'all 8 units in 4 groups, {0, 4}, {1, 5}, {2, 6}, ...'
    >>> describe_groups([tuple(range(20))], 64)
    '20 of 64 units, {0, 1, 2, 3, 4, 5, 6, 7, ...}'
    >>> describe_groups([(0, 1)], None)  # a layer that is no longer in the model
    '2 units, {0, 1}'
    """
    total = sum(map(len, groups))
    text = f"all {num_units} units" if total == num_units else f"{total} of {num_units} units"
    if num_units is None:
        text = f"{total} units"
    if total == num_units and len(groups) == 1:
        return text
    if len(groups) > 1:
        text += f" in {len(groups)} groups"
    shown = [_set_text(group) for group in groups[:3]] + ["..."] * (len(groups) > 3)
    return f"{text}, {', '.join(shown)}"


def _set_text(units: Sequence[int]) -> str:
    shown = [str(unit) for unit in units[:8]] + ["..."] * (len(units) > 8)
    return "{" + ", ".join(shown) + "}"


def shorten(name: str, length: int = 60) -> str:
    """A name that is cut at its beginning, which tells less than its end, if it is too long.

    Example:
        >>> shorten("encoder.layers.11.attention.output.dense", 28)
        '...attention.output.dense'
    """
    if len(name) <= length:
        return name
    tail = name[3 - length :]
    _, _, rest = tail.partition(".")
    # The rest of a step of a path can be taken for a whole one: 1.dense for 11.dense.
    return "..." + (rest if len(rest) > length // 2 else tail)
