"""Rows that are the negatives of others, within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_symmetry.matrices.candidates import Effort, find_candidates, find_candidates_within, sort_within
from lightning_symmetry.matrices.grouping import Grouping, Projected
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.matrices.question import NEAR_IN_KEYS, Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sieve import without_signs

_NUM_SIFTED = 3  # keys by which rows are dropped that are near no negative


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


def find_mirrors(question: Question, found: Grouping, suspected: Indices) -> list[Mirrored]:
    """Find rows that agree up to sign: ``|w_i + w_j| <= tolerance * max(|w_i|, |w_j|)`` in the L2 norm.

    A group of equal rows and the group of their negatives are united, judged by the first row of each. Rows of zeros,
    which are their own negatives, are in no set. Nor are rows in crowds, where too many pairs nearly agree up to sign.

    Args:
        question: the matrix and the tolerance.
        found: the result of :func:`find_groups_within_budget`.
        suspected: the result of :func:`suspects`.

    Returns:
        Disjoint sets, sorted by their first row.
    """
    is_head = np.zeros(question.rows.num_rows, dtype=np.bool_)
    is_head[suspected] = True
    is_head[[row for group in found.groups for row in group]] = False
    is_head[found.crowded] = False
    is_head[[group[0] for group in found.groups]] = True
    heads = np.flatnonzero(is_head & (question.sketch.norms > 0))
    if len(heads) < 2:
        return []
    pairs, left = heads[np.zeros((2, 0), dtype=np.intp)], heads
    if 2 * np.count_nonzero(np.isin(heads, found.projected.rows, assume_unique=True)) < len(heads):
        pairs, left = _pairs_among(question, heads, question.keys(heads))
    if len(left):
        keys, reach = question.further_keys(left, _products(question, left, found.projected))
        others, _ = _pairs_among(question, left, keys, reach)
        pairs = np.concatenate([pairs, others], axis=1)
    pairs = pairs[:, np.lexsort(pairs[::-1])]
    agree = question.agree(pairs[1], pairs[0], factors=np.full(pairs.shape[1], -1.0))
    class_of = {group[0]: group for group in found.groups}
    home: dict[int, int] = {}
    opposite: dict[int, list[int]] = {}
    for first, second in pairs[:, agree].T.tolist():
        if second in home or home.get(first, first) != first:
            continue
        home[first] = home[second] = first
        opposite.setdefault(first, []).append(second)
    return sorted(
        _mirrored(class_of.get(first, (first,)), [row for head in seconds for row in class_of.get(head, (head,))])
        for first, seconds in opposite.items()
    )


def _mirrored(rows: Sequence[int], others: Sequence[int]) -> Mirrored:
    first = min(*rows, *others)
    return Mirrored(tuple(sorted([*rows, *others])), tuple(sorted(others if first in rows else rows)))


def _products(question: Question, rows: Indices, projected: Projected) -> Floats:
    """Return the products of rows with the further random vectors, ``(k, m)``, reading only those not known."""
    is_known = np.isin(rows, projected.rows, assume_unique=True)
    products = np.empty((len(projected.products), len(rows)))
    products[:, is_known] = projected.products[:, np.searchsorted(projected.rows, rows[is_known])]
    if not is_known.all():
        products[:, ~is_known] = question.rows.project(rows[~is_known])
    return products


def _pairs_among(
    question: Question, rows: Indices, keys: Floats, reach: float | None = None
) -> tuple[Indices, Indices]:
    """Return pairs of rows that may be negatives, judged by their keys, and the rows with too many such pairs."""
    block = rows // max(1, question.rows.num_rows // question.blocks)
    # Most rows that nearly agree up to sign have the same sign, and need no comparison.
    for i in range(_NUM_SIFTED):
        is_left = _are_near_a_negative(keys[i], block)
        rows, keys, block = rows[is_left], keys[:, is_left], block[is_left]
        if not len(rows):
            return rows[np.zeros((2, 0), dtype=np.intp)], rows
    keys, owner, signs = without_signs(keys)
    if reach is None:
        candidates = find_candidates(keys, block[owner], question.rows.num_rows)
    else:
        # Pairs of one sign are not compared in full.
        num_rows = question.rows.num_rows
        effort = Effort.within_budget(num_rows)._replace(pairs=Effort.exhaustive(num_rows).pairs)
        candidates = find_candidates_within(keys, block[owner], reach, effort)
    first, second = candidates.pairs
    is_opposite = (signs[first] != signs[second]) & (owner[first] != owner[second])
    pairs = np.unique(np.sort(owner[candidates.pairs[:, is_opposite]], axis=0), axis=1)
    return rows[pairs], rows[np.unique(owner[candidates.is_crowded])]


def _are_near_a_negative(key: Floats, block: Indices) -> Mask:
    """Return which rows have a key within one of the negative of that of another row of their block, ``(m,)``."""
    size = np.abs(key)
    order = sort_within(size, block)
    size, block = size[order], block[order]
    sign = np.where(size <= NEAR_IN_KEYS, 0.0, np.sign(key[order]))  # 0: either
    place = np.arange(len(order))
    are_near = np.zeros(len(order), dtype=np.bool_)
    for other in (-1, 1):
        # The nearest rows before and behind each that may have this sign; -1 and m: none.
        may_have = sign * other >= 0
        before, behind = np.where(may_have, place, -1), np.where(may_have, place, len(order))
        before[1:] = np.maximum.accumulate(before)[:-1]
        behind[:-1] = np.minimum.accumulate(behind[::-1])[::-1][1:]
        before[0], behind[-1] = -1, len(order)
        for there in (before, behind):
            is_asked = (sign * other <= 0) & (there >= 0) & (there < len(order))
            nearest = there.clip(0, len(order) - 1)
            are_near |= is_asked & (block[nearest] == block) & (np.abs(size - size[nearest]) <= NEAR_IN_KEYS)
    in_order = np.empty_like(are_near)
    in_order[order] = are_near
    return in_order
