"""Rows that are the negatives of others, within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_symmetry.matrices.numerics import Floats, Indices
from lightning_symmetry.matrices.question import Question, keys_of
from lightning_symmetry.matrices.rows import Rows

# More candidate pairs than these are given up: thousands of rows that nearly agree. A late warning beats a long wait.
_MAX_PAIRS = 200_000


class Mirrored(NamedTuple):
    """Rows that agree up to sign.

    Attributes:
        rows: sorted indices.
        negative: those of them that are the negative of the first; sorted, and at least one.
    """

    rows: tuple[int, ...]
    negative: tuple[int, ...]

    @property
    def signs(self) -> Floats:
        """1 for rows that equal the first, -1 for its negatives, ``(len(rows),)``."""
        return np.where(np.isin(self.rows, self.negative), -1.0, 1.0)


class Parity(NamedTuple):
    """Rows by what becomes of them in the mirror image of a unit, which puts out the negative of its output.

    Attributes:
        odd: those that change sign, such as the weights of a cell gate.
        even: those that do not, such as the weights of an input gate, or the norms in ``weight_norm``; None: no others.
    """

    odd: Rows
    even: Rows | None


def spreads(question: Question, sets: Sequence[Mirrored], parity: Parity | None = None) -> Floats:
    """The largest distance, up to sign, of a row of each set from the first, ``(len(sets),)``; at least one set.

    It is relative to the larger of both norms, and NaN where both rows are zero, or one is not finite.

    Args:
        question: the matrix.
        sets: the sets.
        parity: the same rows by parity; None: all are odd.
    """
    others = np.concatenate([mirrored.rows[1:] for mirrored in sets])
    sizes = [len(mirrored.rows) - 1 for mirrored in sets]
    firsts = np.repeat([mirrored.rows[0] for mirrored in sets], sizes)
    signs = np.concatenate([mirrored.signs[1:] for mirrored in sets])
    with np.errstate(invalid="ignore", divide="ignore"):
        if parity is None:
            apart = question.distances(others, firsts, signs)
        else:
            scale = np.maximum(question.sketch.norms[others], question.sketch.norms[firsts])
            apart = parity.odd.distances(others, firsts, scale, signs)
            if parity.even is not None:
                apart = np.hypot(apart, parity.even.distances(others, firsts, scale))
    largest: Floats = np.maximum.reduceat(apart, np.cumsum([0, *sizes[:-1]]))
    return largest


def find_mirrors(question: Question, groups: Sequence[tuple[int, ...]], suspected: Indices) -> list[Mirrored]:
    """Find rows that agree up to sign: ``|w_i + w_j| <= tolerance * max(|w_i|, |w_j|)`` in the L2 norm.

    The negative of a group of equal rows joins it whole, judged by the first row of each. Rows of zeros, which are
    their own negatives, join nothing.

    Args:
        question: the matrix and the tolerance.
        groups: what :func:`find_groups` says of it.
        suspected: what :func:`suspects` says of it.

    Returns:
        Disjoint sets, sorted by their first row.
    """
    norms = question.sketch.norms
    rest = np.setdiff1d(suspected, [row for group in groups for row in group])
    heads = np.sort(np.concatenate([rest, np.array([group[0] for group in groups], dtype=np.intp)]))
    heads = heads[norms[heads] > 0]
    if len(heads) < 2:
        return []
    windows = np.array(question.rows.windows(question.tolerance))[:, None]
    keys = keys_of(norms[heads], question.sketch.projections[:, heads], windows)
    first, second = _opposite_pairs(keys[:-1])
    block = heads // max(1, question.rows.num_rows // question.blocks)
    is_near = (block[first] == block[second]) & (np.abs(keys[-1, first] - keys[-1, second]) <= 1)
    if not is_near.any():
        return []
    pairs = heads[np.stack([first[is_near], second[is_near]])]
    agree = question.agree(pairs[1], pairs[0], factors=np.full(pairs.shape[1], -1.0))
    class_of = {group[0]: group for group in groups}
    home: dict[int, int] = {}
    found: dict[int, list[int]] = {}
    for first, second in pairs[:, agree].T.tolist():
        if second in home or home.get(first, first) != first:
            continue
        home[first] = home[second] = first
        found.setdefault(first, []).append(second)
    return sorted(
        _mirrored(class_of.get(first, (first,)), [row for head in seconds for row in class_of.get(head, (head,))])
        for first, seconds in found.items()
    )


def _mirrored(rows: Sequence[int], others: Sequence[int]) -> Mirrored:
    first = min(*rows, *others)
    return Mirrored(tuple(sorted([*rows, *others])), tuple(sorted(others if first in rows else rows)))


def _opposite_pairs(keys: Floats) -> Indices:
    """The pairs of members whose keys add up to one at the most, ``(2, p)``, the smaller first, in ascending order.

    Args:
        keys: ``(k, m)``.

    Example:
        >>> _opposite_pairs(np.array([[0.0, 5.0, -4.5, 5.2]])).tolist()
        [[1, 2], [2, 3]]
    """
    best: tuple[int, Indices, Indices, Indices] | None = None  # by the key with the fewest pairs
    for key in keys:
        order = key.argsort()
        start = np.searchsorted(key[order], -key - 1, side="left")
        count = np.searchsorted(key[order], -key + 1, side="right") - start
        if best is None or count.sum() < best[0]:
            best = int(count.sum()), order, start, count
    assert best is not None
    total, order, start, count = best
    if total > 2 * _MAX_PAIRS:  # each pair comes twice
        return np.zeros((2, 0), dtype=np.intp)
    first = np.repeat(np.arange(len(order)), count)
    second = order[np.arange(total) - np.repeat(count.cumsum() - count - start, count)]
    is_pair = first < second
    first, second = first[is_pair], second[is_pair]
    for key in keys:
        is_near = np.abs(key[first] + key[second]) <= 1
        first, second = first[is_near], second[is_near]
    by_members = np.lexsort((second, first))
    return np.stack([first[by_members], second[by_members]])
