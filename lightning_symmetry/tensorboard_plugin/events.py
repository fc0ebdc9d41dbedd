"""The events of the Symmetry tab as bytes: written during a training, read by TensorBoard.

There are two kinds of events, both compact:

- A *summary* is written at each check. It contains, for each layer, the values that have changed since the previous
  summary. The first summary of a training contains all values, as does any that cannot build on the previous one.
- A *matrix* contains the cosine similarities of the units of one layer, or of some of them if the layer is large.

Event files are untrusted: everything is checked when it is read.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

PLUGIN_NAME = "symmetry"
SUMMARY_TAG = "symmetry/tab"
MATRIX_TAG = "symmetry/tab/matrix/"
"""The tag of a layer's matrices, up to the layer's name."""

MAX_SIDE = 64
"""The largest number of units in a matrix."""
_MAX_RANGES = 400
_MAX_BYTES = 1 << 24  # of a decompressed payload: a small malicious payload may expand without limit
_RANGE = re.compile(r"(\d{1,15})(?:-(\d{1,15})(?::(\d{1,15}))?)?")


class PayloadError(ValueError):
    """The bytes are damaged, or this package did not write them; raised by all functions that decode."""


def pack_units(units: Sequence[int], limit: int = _MAX_RANGES) -> str:
    """Encode indices of units as a short text: as ranges of equal stride, in the order given, separated by commas.

    A range is a single index, ``first-last``, or ``first-last:stride``. An ellipsis replaces all units after the first
    ``limit`` ranges.

    Example:
        >>> pack_units([0, 1, 2, 3, 8, 40, 10, 12, 14])
        '0-3,8,40,10-14:2'
        >>> pack_units([5, 1, 3, 2], limit=2)
        '5,1,...'
    """
    ranges: list[str] = []
    start = 0
    while start < len(units):
        if len(ranges) == limit:
            ranges.append("...")
            break
        stride = units[start + 1] - units[start] if start + 1 < len(units) else 0
        end = start + 1
        while stride > 0 and end < len(units) and units[end] - units[end - 1] == stride:
            end += 1
        if end - start < 3:
            ranges.append(str(units[start]))
            start += 1
        else:
            ranges.append(f"{units[start]}-{units[end - 1]}" + (f":{stride}" if stride > 1 else ""))
            start = end
    return ",".join(ranges)


def unpack_units(text: str, limit: int = MAX_SIDE) -> list[int]:
    """Decode the indices that :func:`pack_units` encoded without an ellipsis; refuse more than ``limit``.

    Example:
        >>> unpack_units("0-3,8,40,10-14:2")
        [0, 1, 2, 3, 8, 40, 10, 12, 14]
    """
    units: list[int] = []
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        if match is None:
            raise PayloadError("an index is not a number")
        first = int(match[1])
        numbers = range(first, int(match[2] or first) + 1, int(match[3] or 1) or 1)
        if len(units) + len(numbers) > limit:
            raise PayloadError("too many units")
        units += numbers
    return units


def pack_summary(summary: dict[str, Any]) -> bytes:
    """Encode a summary as JSON, compressed if that makes it shorter."""
    plain = _to_json(summary)
    packed = zlib.compress(plain, 6)
    return min(plain, packed, key=len)


def unpack_summary(data: bytes) -> dict[str, Any]:
    """Decode a summary."""
    summary = _from_json(data if data.startswith(b"{") else _decompress(data))
    layers, findings = summary.get("layers"), summary.get("findings", {})
    if summary.get("version") != 1 or not isinstance(layers, dict) or not isinstance(findings, dict):
        raise PayloadError("not a summary of this version")
    if not all(isinstance(values, dict) for values in layers.values()):
        raise PayloadError("a layer is not an object")
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in findings.values()):
        raise PayloadError("a finding is not an object")
    return summary


def pack_matrix(units: Sequence[int], cells: bytes) -> bytes:
    """Encode a matrix, compressed: its ``n`` units in the order of the rows, and its ``n * n`` cells of one byte."""
    return zlib.compress(_to_json({"version": 1, "units": pack_units(units)}) + b"\n" + cells, 6)


def unpack_matrix(data: bytes) -> tuple[list[int], bytes]:
    """Decode a matrix. Return the indices of its ``n`` units, and its ``n * n`` cells of one byte."""
    head, newline, cells = _decompress(data).partition(b"\n")
    values = _from_json(head)
    if not newline or values.get("version") != 1 or not isinstance(values.get("units"), str):
        raise PayloadError("not a matrix of this version")
    units = unpack_units(values["units"])
    if len(cells) != len(units) ** 2:
        raise PayloadError("the matrix is of the wrong size")
    return units, cells


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``run2`` before ``run10``.

    Example:
        >>> sorted(["run10", "run2"], key=natural_order)
        ['run2', 'run10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def _to_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def _from_json(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data, parse_constant=int)  # `int` refuses NaN and Infinity
    except (ValueError, RecursionError) as error:
        raise PayloadError("not JSON") from error
    if not isinstance(values, dict):
        raise PayloadError("not an object")
    return values


def _decompress(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise PayloadError("damaged") from error
    if not unpacker.eof:
        raise PayloadError("damaged, or too large")
    return plain
