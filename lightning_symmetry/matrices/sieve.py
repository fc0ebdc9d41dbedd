"""The sieve: drops rows whose sketches show that they agree with no other row up to sign.

Rows that agree have nearby norms and projections; projections of a row and its negative are opposite. In a healthy
layer, as a rule, every row is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.matrices.question import NEAR_IN_KEYS, Question, keys_of

# The size of a cell, in windows: a row is looked up in a neighbouring cell only if it lies within a window of it.
_CELL = 16.0
# Rows that are sifted together: enough to share the overhead of numpy, few enough to stay in a cache.
_SIFTED_ROWS = 1 << 13
_MANY_ROWS = 1 << 11  # of one matrix
_FEW_ROWS = 64  # all pairs of which are quickly compared
_FEW_NEIGHBOURS = 64  # pairs of neighbours on a line; the rows in them are at most twice as many, and quickly compared
# On one line up to this length, the keys of all blocks lose at most a ten-thousandth of a window to rounding.
_LONGEST_LINE = 2.0**39
_HASH = np.uint64(0x5851F42D4C957F2D)  # multiplied modulo 2^64


def suspects(questions: Sequence[Question]) -> list[Indices]:
    """Return the rows of each matrix that may agree with another one up to sign, sorted.

    Zero rows are always among them, rows that are not finite never.
    """
    found: list[Indices] = []
    part: list[Question] = []
    num_rows = 0
    for question in questions:
        part.append(question)
        num_rows += question.rows.num_rows
        if num_rows >= _SIFTED_ROWS:
            found += _sift(part)
            part, num_rows = [], 0
    return found + (_sift(part) if part else [])


def suspects_among(question: Question, rows: Indices) -> Indices:
    """Return which of some nonzero rows may agree, up to sign, with another of them."""
    num_rows = question.rows.num_rows
    windows = np.repeat(np.array(question.rows.windows(question.tolerance))[:, None], num_rows, axis=1)
    block = np.arange(num_rows) // max(1, num_rows // question.blocks)
    return sift(question.sketch.norms, question.sketch.projections, windows, block, rows, len(rows))


def _sift(questions: Sequence[Question]) -> list[Indices]:
    """Sift matrices together; return the rows of each that are left, sorted."""
    sizes = [question.rows.num_rows for question in questions]
    bounds = [0, *accumulate(sizes)]
    matrix = np.repeat(np.arange(len(sizes)), sizes)
    norms = np.concatenate([question.sketch.norms for question in questions])
    projections = np.concatenate([question.sketch.projections for question in questions], axis=1)
    windows = np.array([question.rows.windows(question.tolerance) for question in questions]).T
    block = matrix
    if any(question.blocks > 1 for question in questions):
        block_sizes = np.array([max(1, size // q.blocks) for size, q in zip(sizes, questions, strict=True)])
        starts = np.array(bounds)[matrix]
        block = starts + (np.arange(bounds[-1]) - starts) // block_sizes[matrix]
    left = sift(norms, projections, windows[:, matrix], block, np.flatnonzero(norms > 0), max(sizes))
    found = np.sort(np.concatenate([left, np.flatnonzero(norms == 0)]))
    if not len(found):
        return [found] * len(questions)
    cuts = np.searchsorted(found, bounds).tolist()
    return [found[a:b] - start for (a, b), start in zip(pairwise(cuts), bounds[:-1], strict=True)]


def sift(norms: Floats, projections: Floats, windows: Floats, block: Indices, rows: Indices, longest: int) -> Indices:
    """Return which of some rows may agree, up to sign, with another of their block.

    Args:
        norms: the norms of all rows, ``(n,)``.
        projections: the projections of all rows, ``(k, n)``.
        windows: the results of :meth:`Rows.windows` for all rows, ``(2, n)``.
        block: the block of each row, ``(n,)``; rows of different blocks are never compared.
        rows: indices of rows whose norms are neither zero nor NaN.
        longest: the number of rows of the longest matrix.
    """
    if longest < _MANY_ROWS:
        # Of few rows, one key after the other drops all in most layers, at a lower cost than a grid over several keys.
        for projection in projections:
            if len(rows) <= _FEW_ROWS:  # few enough for all keys at once, below
                break
            line = _on_a_line(norms, projection, windows, block, rows)
            if line is None:
                continue
            order, near = line.order, line.near
            if len(near) <= _FEW_NEIGHBOURS:
                return _near_in_all_keys(norms, projections, windows, rows, line)
            is_near = np.zeros(len(rows), dtype=np.bool_)
            is_near[order[near]] = is_near[order[near + 1]] = True
            rows = rows[is_near]
    # Two projections and the norm distinguish nearly all rows; all keys are for those that are left.
    for some in (projections[:2], projections) if longest >= _MANY_ROWS else (projections,):
        if len(rows) <= _FEW_ROWS:
            break
        num_before = len(rows)
        keys = keys_of(norms[rows], some[:, rows], windows[:, rows])
        rows = rows[_share_a_cell(keys, block[rows])]
        if len(rows) > max(_FEW_ROWS, 0.9 * num_before):  # of many equal rows no key drops any
            return rows
    if 0 < len(rows) <= _FEW_ROWS:
        # Cells are wide: rows of nearly one direction, as gradients often are, would share one by chance.
        line = _on_a_line(norms, projections[0], windows, block, rows)
        if line is not None:
            return _near_in_all_keys(norms, projections, windows, rows, line)
        rows = rows[_share_a_cell(keys_of(norms[rows], projections[:, rows], windows[:, rows]), block[rows])]
    return rows


class _Line(NamedTuple):
    """Rows in the order of a key; those of different blocks are far from each other."""

    order: Indices  # of the rows, `(m,)`
    places: Floats  # on the line, in this order, `(m,)`
    near: Indices  # positions in this order of the rows whose next neighbour is near


def _on_a_line(norms: Floats, projection: Floats, windows: Floats, block: Indices, rows: Indices) -> _Line | None:
    """Put rows on a line by one projection up to sign; None if keys are too large. Arguments as in :func:`sift`."""
    key, block = np.abs(projection[rows]) / (norms[rows] * windows[0, rows]), block[rows]
    length = key.max(initial=0) + 2  # of the part of the line that belongs to a block
    if not length * (block.max(initial=0) + 1) < _LONGEST_LINE:
        return None
    places = key + block * length
    order = places.argsort(kind="stable")  # the faster one of rows that are sorted by block already
    places = places[order]
    return _Line(order, places, np.flatnonzero(places[1:] - places[:-1] <= NEAR_IN_KEYS))


def _near_in_all_keys(norms: Floats, projections: Floats, windows: Floats, rows: Indices, line: _Line) -> Indices:
    """Return which of some rows are near another one, or its negative, in all keys; arguments as in :func:`sift`."""
    if not len(line.near):
        return rows[:0]
    first, second = _near_pairs(line)
    both = rows[np.concatenate([first, second])]
    keys = keys_of(norms[both], projections[:, both], windows[:, both])
    if not np.abs(keys).max() < _LONGEST_LINE:  # too large to tell near ones from others
        return np.unique(both)
    one, other = keys[:, : len(first)], keys[:, len(first) :]
    apart = np.abs(one - other)
    is_near = np.minimum(apart[:-1].max(axis=0), np.abs(one[:-1] + other[:-1]).max(axis=0)) <= NEAR_IN_KEYS
    is_near &= apart[-1] <= NEAR_IN_KEYS
    agree: Indices = rows[np.union1d(first[is_near], second[is_near])]
    return agree


def _near_pairs(line: _Line) -> tuple[Indices, Indices]:
    """Return all pairs of rows that are near each other on a line, as two arrays ``(p,)``."""
    order, places, near = line
    firsts, seconds = [order[near]], [order[near + 1]]
    gap = 2
    while True:  # two rows are near each other only if both are near all rows between them
        near = near[near < len(order) - gap]
        near = near[places[near + gap] - places[near] <= NEAR_IN_KEYS]
        if not len(near):
            return np.concatenate(firsts), np.concatenate(seconds)
        firsts.append(order[near])
        seconds.append(order[near + gap])
        gap += 1


def _share_a_cell(keys: Floats, block: Indices) -> Mask:
    """Return which rows share a cell of a grid over their keys with another row of their block, as all that agree do.

    The keys ``(k, m)`` are projections, and the logarithms of norms in the last row. Those of rows that agree differ by
    one at the most; if a row agrees with the negative of another one, their projections add up to one at the most.
    """
    num_rows = keys.shape[1]
    keys, owner, _ = without_signs(keys)
    block = block[owner]
    cells = np.floor(keys / _CELL)
    # A row near the lower bound of its cell may agree with a row in the cell below, and counts there too.
    is_at_bound = keys - cells * _CELL <= NEAR_IN_KEYS
    # A hash of the cells: a collision only adds candidate rows; it never loses one.
    of_block, *multipliers = _HASH ** np.arange(1, len(keys) + 2, dtype=np.uint64)
    cell = block.astype(np.uint64) * of_block
    cell += (cells.astype(np.int64).view(np.uint64) * np.array(multipliers)[:, None]).sum(axis=0)
    member = np.arange(len(owner))
    for multiplier, is_low in zip(multipliers, is_at_bound, strict=True):
        low = np.flatnonzero(is_low[member])
        member = np.concatenate([member, member[low]])
        cell = np.concatenate([cell, cell[low] - multiplier])
    # Half of the hash sorts twice as fast, and collisions are still rare.
    cell = (cell >> np.uint64(32)).astype(np.uint32)
    shares = np.zeros(num_rows, dtype=np.bool_)
    if (np.diff(np.sort(cell)) == 0).any():
        order = cell.argsort()
        again = np.flatnonzero(np.diff(cell[order]) == 0)
        shares[owner[member[order[again]]]] = shares[owner[member[order[again + 1]]]] = True
    return shares


def without_signs(keys: Floats) -> tuple[Floats, Indices, Floats]:
    """Replace each row's keys by those of the row or its negative, whichever has a first projection above zero.

    A row whose first projection is near zero counts as both: a row that agrees may have one of the other sign.

    Args:
        keys: projections, and the logarithms of norms in the last row, ``(k, m)``; changed in place.

    Returns:
        Keys ``(k, c)``; the row that each column belongs to, and the sign that it was multiplied by, both ``(c,)``.
    """
    signs = np.where(keys[0] < 0, -1.0, 1.0)
    keys[:-1] *= signs
    both = np.flatnonzero(keys[0] <= NEAR_IN_KEYS)
    owner = np.arange(keys.shape[1])
    if not len(both):
        return keys, owner, signs
    negated = keys[:, both]
    negated[:-1] *= -1
    return (
        np.concatenate([keys, negated], axis=1),
        np.concatenate([owner, both]),
        np.concatenate([signs, -signs[both]]),
    )
