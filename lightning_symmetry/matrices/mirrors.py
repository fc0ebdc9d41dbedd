"""Rows that are the negatives of others, within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_symmetry.matrices.candidates import components_of, find_candidates
from lightning_symmetry.matrices.numerics import Floats, Indices
from lightning_symmetry.matrices.question import Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sieve import without_signs


class Mirrored(NamedTuple):
    """Rows that agree up to sign."""

    rows: tuple[int, ...]  # sorted indices
    negative: tuple[int, ...]  # those of them that are the negative of the first; sorted, and at least one

    @property
    def signs(self) -> Floats:
        """1 for rows that equal the first, -1 for its negatives, ``(len(rows),)``."""
        return np.where(np.isin(self.rows, self.negative), -1.0, 1.0)


class Parity(NamedTuple):
    """The weights of a layer, by whether they change sign in a unit's mirror image, which has the negative output."""

    odd: Rows  # those that change sign, such as the weights of a cell gate
    # those that do not, such as the weights of an input gate, or the norms in `weight_norm`; None: no others
    even: Rows | None


def spreads(question: Question, sets: Sequence[Mirrored], parity: Parity | None = None) -> Floats:
    """Return the largest distance, up to sign, of a row of each set from the first, ``(len(sets),)``.

    It is relative to the larger of both norms, and NaN where both rows are zero, or one is not finite.

    Args:
        question: the matrix.
        sets: rows that agree up to sign.
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

    A group of equal rows and the group of their negatives are united, judged by the first row of each. Rows of zeros,
    which are their own negatives, are in no set. Nor are rows in crowds, where too many pairs nearly agree up to sign.

    Args:
        question: the matrix and the tolerance.
        groups: the result of :func:`find_groups`.
        suspected: the result of :func:`suspects`.

    Returns:
        Disjoint sets, sorted by their first row.
    """
    norms = question.sketch.norms
    rest = np.setdiff1d(suspected, [row for group in groups for row in group])
    heads = np.sort(np.concatenate([rest, np.array([group[0] for group in groups], dtype=np.intp)]))
    heads = heads[norms[heads] > 0]
    if len(heads) < 2:
        return []
    pairs, left = _pairs_among(question, heads, question.keys(heads))
    if len(left):
        others, _ = _pairs_among(question, left, *question.further_keys(left))
        pairs = np.concatenate([pairs, others], axis=1)
    pairs = pairs[:, np.lexsort(pairs[::-1])]
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


def _pairs_among(
    question: Question, rows: Indices, keys: Floats, reach: float | None = None
) -> tuple[Indices, Indices]:
    """Return pairs of rows that may be negatives, judged by their keys, and the rows with too many such pairs."""
    keys, owner, signs = without_signs(keys)
    block = (rows // max(1, question.rows.num_rows // question.blocks))[owner]
    # Most rows that nearly agree up to sign have the same sign, and need no comparison.
    component = components_of(keys, block)
    num_signs = [np.bincount(component[signs == sign], minlength=len(signs)) > 0 for sign in (-1, 1)]
    is_mixed = (num_signs[0] & num_signs[1])[component]
    if not is_mixed.any():
        return rows[np.zeros((2, 0), dtype=np.intp)], rows[:0]
    keys, component, owner, signs = keys[:, is_mixed], component[is_mixed], owner[is_mixed], signs[is_mixed]
    candidates = find_candidates(keys, component, question.rows.num_rows, reach)
    first, second = candidates.pairs
    is_opposite = (signs[first] != signs[second]) & (owner[first] != owner[second])
    pairs = np.unique(np.sort(owner[candidates.pairs[:, is_opposite]], axis=0), axis=1)
    return rows[pairs], rows[np.unique(owner[candidates.is_crowded])]
