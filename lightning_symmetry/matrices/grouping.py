"""Groups the rows of a matrix that agree within a tolerance.

The straightforward way compares all ``n (n - 1) / 2`` pairs. Here every row is read once, for its sketch. By the
sketches, a sieve (:mod:`lightning_symmetry.matrices.sieve`) drops all rows that agree with no other one. Of those that
are left, the candidate pairs (:mod:`lightning_symmetry.matrices.candidates`) are compared in full, each row with one
representative of its group: ``n`` identical rows cost one more pass, not ``n^2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.arguments import check_tolerance
from lightning_symmetry.brief import brief
from lightning_symmetry.matrices.candidates import Effort, find_candidates, find_candidates_within, sort_within
from lightning_symmetry.matrices.dense import NEAR_ENOUGH, DenseRows
from lightning_symmetry.matrices.near import settle_by_distances
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask, exact_arithmetic
from lightning_symmetry.matrices.projections import NUM_FURTHER
from lightning_symmetry.matrices.question import TOLERANCES, Question
from lightning_symmetry.matrices.sieve import suspects
from lightning_symmetry.matrices.sketching import sketch_all

_CHANCE_BITS = 10.0
_SAMPLE = 16
_MAX_ROUNDS = 3
# Rows that agree are copies if their distance is so many times smaller, and their keys are ten times nearer still.
_COPIES = 1e3
_FEW_PAIRS = 64  # up to so many candidate pairs are compared in full without trying a sample
_ROWS_PER_FIRST = 8  # rows are read as differences from others only if there are so many for each of these
# Where the effort is bounded, so many products of numbers are spent on distances within crowds, or so many distances a
# row of a large matrix. Each crowd takes some calls besides, so no more than so many crowds get any.
_MAX_PRODUCTS = 1 << 25
_DISTANCES_PER_ROW = 8
_MAX_CROWDS = 8
_MAX_ELEMENTS = 1 << 26  # of a crowd, which is copied


def duplicate_groups(rows: Tensor, tolerance: float | None = None) -> list[tuple[int, ...]]:
    """Find the groups of rows that are equal within a relative tolerance.

    Rows ``i`` and ``j`` agree when ``|w_i - w_j| <= tolerance * max(|w_i|, |w_j|)`` in the L2 norm. Rows that hold NaN
    or infinity are in no group; rows of zeros form one.

    Args:
        rows: floating point matrix of shape ``(n, d)``, any strides, on any device.
        tolerance: relative L2 distance, ``0 <= tolerance < 1``. Default: by dtype (float64 1e-9, float32 1e-5,
            float16 and bfloat16 1e-4).

    Returns:
        The groups of two or more rows, each sorted, sorted by their first row.

    Raises:
        TypeError: if ``rows`` is no floating point tensor or ``tolerance`` no number.
        ValueError: if ``rows`` does not have two dimensions or ``tolerance`` is out of range.

    Example:
        >>> import torch
        >>> from lightning_symmetry import duplicate_groups
        >>> duplicate_groups(torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [3.0, 1.0], [0.0, 0.0]]))
        [(0, 2), (1, 4)]
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"Expected argument `rows` to be a torch.Tensor but got {brief(rows)}.")
    if rows.dtype not in TOLERANCES:
        raise TypeError(f"Expected argument `rows` to have one of the dtypes {list(TOLERANCES)} but got {rows.dtype}.")
    if rows.ndim != 2:
        raise ValueError(f"Expected argument `rows` to have shape (n, d) but got {tuple(rows.shape)}.")
    check_tolerance(tolerance)
    if len(rows) < 2:
        return []
    with exact_arithmetic(rows.device):
        matrix = DenseRows([rows.detach()])
        [sketch] = sketch_all([matrix])
        return find_groups(Question(matrix, sketch, TOLERANCES[rows.dtype] if tolerance is None else tolerance))


class Projected(NamedTuple):
    """Rows whose products with the further random vectors are known."""

    rows: Indices  # sorted, `(m,)`
    products: Floats  # `(NUM_FURTHER, m)`


NONE_PROJECTED = Projected(np.zeros(0, dtype=np.intp), np.zeros((NUM_FURTHER, 0)))


class Grouping(NamedTuple):
    """The groups of rows that agree, as far as they were found within the allowed effort."""

    groups: list[tuple[int, ...]]  # each sorted, sorted by their first row
    # rows that nearly agree with so many others that they were not all compared, sorted; they are in a group only with
    # rows that are equal to the last few bits
    crowded: Indices
    # the largest relative distance of any of them from the first of those that the sketch finds near to it
    radius: float
    projected: Projected  # the rows that the sketch did not settle


def find_groups(
    question: Question, *, among: Sequence[Sequence[int]] | None = None, suspected: Indices | None = None
) -> list[tuple[int, ...]]:
    """Group the rows that agree: ``|w_i - w_j| <= tolerance * max(|w_i|, |w_j|)`` in the L2 norm.

    Agreement is no equivalence, so representatives decide: in the order of their indices, each row joins the first
    representative with which it agrees, or becomes a representative itself. Rows that are not finite join nothing.

    Args:
        question: the matrix and the tolerance.
        among: compare only rows within each of these disjoint sets.
        suspected: the result of :func:`suspects` for the matrix, if known.

    Returns:
        The groups of two or more, each sorted, sorted by their first row.
    """
    return _find(question, among, suspected, is_bounded=False).groups


def find_groups_within_budget(
    question: Question, *, among: Sequence[Sequence[int]] | None = None, suspected: Indices | None = None
) -> Grouping:
    """Group the rows that agree, as :func:`find_groups` does, reading every row ten times at the most.

    Thousands of rows whose distances are a few tolerances take as many comparisons as they have pairs. They are
    returned as crowded instead. Only those that are equal to the last few bits are grouped.
    """
    return _find(question, among, suspected, is_bounded=True)


def _find(
    question: Question, among: Sequence[Sequence[int]] | None, suspected: Indices | None, *, is_bounded: bool
) -> Grouping:
    """Group the rows that agree: by the sketch, then by further projections, and at last by all distances."""
    rows = question.rows
    if among is None:
        members = suspects([question])[0] if suspected is None else suspected
        block = members // max(1, rows.num_rows // question.blocks)
    else:
        members = np.array([row for group in among for row in group], dtype=np.intp)
        block = np.repeat(np.arange(len(among)), [len(group) for group in among])
        members, block = members[order := members.argsort()], block[order]
    search = _Search(question, members, block)
    search.settle_zeros()
    crowded, radius = members[:0], 0.0
    if len(search.members):
        search.settle_by_sketch()
    if len(search.members):
        reach = search.project()
        copies = search.set_copies_aside()
        for _ in range(_MAX_ROUNDS):
            if not len(search.members) or not search.settle(reach, is_bounded=is_bounded):
                break
        crowded, radius = search.settle_crowds(is_bounded=is_bounded)
        search.restore_copies(copies)
    return Grouping(search.groups(), crowded, radius, search.projected)


class _Search:
    """The rows of a matrix that are still to be settled, and the representatives of the others.

    Args:
        question: the matrix and the tolerance.
        members: the rows that may agree with another one, ``(m,)``, sorted.
        block: the block of each member, ``(m,)``; members of different blocks are never compared.

    Attributes:
        members: the members that are not settled yet.
        projected: the members that the sketch did not settle, once they have been projected.
        labels: for each row of a group, its representative, which may be the row itself; -1 for other rows, ``(n,)``.
    """

    def __init__(self, question: Question, members: Indices, block: Indices) -> None:
        self._question, self._block = question, block
        self.members = members
        self.projected = NONE_PROJECTED
        # Of each member: its keys, see `Question.keys`; its component, to which all members near to it belong, and its
        # component by the sketch; and its distance from the first row of that, relative to the larger norm, or NaN.
        self._keys: Floats = np.zeros((0, len(members)))
        self._component: Indices = np.zeros(len(members), dtype=np.intp)
        self._home: Indices = np.zeros(len(members), dtype=np.intp)
        self._apart: Floats = np.zeros(len(members))
        self.labels = np.full(question.rows.num_rows, -1)

    def groups(self) -> list[tuple[int, ...]]:
        """Return the groups of two or more rows, each sorted, sorted by their first row."""
        grouped = np.flatnonzero(self.labels >= 0)
        return sorted(tuple(group.tolist()) for group in _split_by(grouped, self.labels[grouped]))

    def settle_zeros(self) -> None:
        """Put the rows of zeros of each block into a group."""
        is_zero = self._question.sketch.norms[self.members] == 0
        for group in _split_by(self.members[is_zero], self._block[is_zero]):
            self.labels[group] = group[0] if len(group) > 1 else -1
        self._keep(self._question.sketch.norms[self.members] > 0)

    def settle_by_sketch(self) -> None:
        """Compare the candidate pairs by the sketch, and members of crowds with the first of their neighbourhood."""
        self._keys = self._question.keys(self.members)
        candidates = find_candidates(self._keys, self._block, self._question.rows.num_rows)
        self._component = self._home = candidates.component
        first, second = candidates.pairs
        is_left = candidates.is_crowded.copy()
        if len(first) <= _FEW_PAIRS or self._mostly_within(self._question.tolerance, first, second):
            self._join(compare_pairs(self._question.agree, self.members[candidates.pairs]))
        else:  # further projections tell most of them apart, at a lower cost than comparisons in full
            is_left[first] = is_left[second] = True
        self._keep(is_left)
        if len(self.members):
            self._join_leaders()

    def project(self) -> float:
        """Replace the keys of the sketch by further ones, and compare the members with the first of their component.

        Returns:
            The largest L2 distance, over all keys but the last, of members that agree.
        """
        question, members = self._question, self.members
        _, firsts, component = np.unique(self._component, return_index=True, return_inverse=True)
        first = firsts[component]
        is_left = np.ones(len(first), dtype=np.bool_)
        self._apart = np.full(len(first), math.nan)
        if len(firsts) * _ROWS_PER_FIRST > len(first) or not self._mostly_within(
            NEAR_ENOUGH, np.arange(len(first)), first
        ):
            products = question.rows.project(members)
        else:
            norms = question.sketch.norms
            size = np.maximum(norms[members], norms[members[first]])
            products, self._apart = question.rows.project_around(members, members[first], size)
        self._keys, reach = question.further_keys(members, products)
        self.projected = Projected(members, products)
        joins = np.flatnonzero((self._apart <= question.tolerance) & (first != np.arange(len(first))))
        # The distances of rows on several ranks may be estimates.
        apart = np.square(self._keys[:-1, joins] - self._keys[:-1, first[joins]]).sum(axis=0)
        joins = joins[apart <= reach**2]
        self._join_to(joins, first[joins])
        is_left[joins] = is_left[first[joins]] = False
        self._keep(is_left)
        return reach

    def settle(self, reach: float, *, is_bounded: bool) -> bool:
        """Compare the candidate pairs by the further keys, and crowds with the first of their neighbourhood.

        Args:
            reach: the result of :meth:`project`.
            is_bounded: whether to leave crowds where the keys would take too long to compare.

        Returns:
            Whether so many members of crowds have joined others that it is worth another try.
        """
        num_rows = self._question.rows.num_rows
        effort = Effort.within_budget(num_rows) if is_bounded else Effort.exhaustive(num_rows)
        candidates = find_candidates_within(self._keys, self._component, reach, effort)
        self._component = candidates.component
        self._join(compare_pairs(self._question.agree, self.members[candidates.pairs]))
        self._keep(candidates.is_crowded)
        num_before = len(self.members)
        if num_before:
            self._join_leaders()
        return len(self.members) < 0.9 * num_before

    def set_copies_aside(self) -> Indices:
        """Leave out all but the first of members that are equal to the last few bits.

        Returns:
            The copies, and the row that each of them equals, ``(2, c)``; for :meth:`restore_copies`.
        """
        # The sums of the keys put copies side by side.
        order = sort_within(self._keys.sum(axis=0), self._block)
        nearest = 0.1 / _COPIES
        is_new = np.ones(len(order), dtype=np.bool_)
        is_new[1:] = (np.abs(np.diff(self._keys[:, order], axis=1)) > nearest).any(axis=0)
        is_new[1:] |= np.diff(self._block[order]) != 0
        first = np.empty_like(order)
        first[order] = np.minimum.reduceat(order, np.flatnonzero(is_new))[is_new.cumsum() - 1]
        copies = np.flatnonzero(first != np.arange(len(first)))
        is_near = (np.abs(self._keys[:, copies] - self._keys[:, first[copies]]) <= nearest).all(axis=0)
        copies = copies[is_near]
        apart = self._question.distances(self.members[copies], self.members[first[copies]])
        copies = copies[apart <= self._question.tolerance / _COPIES]
        found = np.stack([self.members[copies], self.members[first[copies]]])
        is_left = np.ones(len(first), dtype=np.bool_)
        is_left[copies] = False
        self._keep(is_left)
        return found

    def restore_copies(self, copies: Indices) -> None:
        """Give each copy the representative of the row that it equals, or that row itself."""
        rows, firsts = copies
        self.labels[firsts] = np.where(self.labels[firsts] >= 0, self.labels[firsts], firsts)
        self.labels[rows] = self.labels[firsts]

    def settle_crowds(self, *, is_bounded: bool) -> tuple[Indices, float]:
        """Settle the remaining members by computing all of their distances.

        Args:
            is_bounded: whether to leave out crowds that would take too long.

        Returns:
            The members of the crowds left out, sorted, and the largest distance from the first one of a crowd.
        """
        rows = self._question.rows
        is_here = isinstance(rows, DenseRows)
        effort = math.inf
        if is_bounded:
            effort = max(_MAX_PRODUCTS / max(1, rows.width), _DISTANCES_PER_ROW * rows.num_rows) if is_here else 0.0
        least = effort / _MAX_CROWDS
        is_left_out = np.zeros(len(self.members), dtype=np.bool_)
        for crowd in sorted(_split_by(np.arange(len(self.members)), self._component), key=len):
            members = self.members[crowd]
            effort -= max(len(crowd) ** 2, least) if is_bounded else 0
            if effort < 0:
                is_left_out[crowd] = True
            elif is_here and len(members) * rows.width <= _MAX_ELEMENTS:
                self._join(settle_by_distances(self._question, members))
            else:
                self._join_one_by_one(members)
        self._keep(is_left_out)
        return self.members, self._radius()

    def _radius(self) -> float:
        """Return the largest distance of a member from the first one of its component by the sketch."""
        _, firsts, component = np.unique(self._home, return_index=True, return_inverse=True)
        first = firsts[component]
        is_unknown = self._apart[first] != 0  # the row from which the distances were taken is settled
        unknown = np.flatnonzero(is_unknown | np.isnan(self._apart))
        self._apart[unknown] = self._question.distances(self.members[unknown], self.members[first[unknown]])
        return float(self._apart.max(initial=0))

    def _keep(self, is_left: Mask) -> None:
        self.members, self._block, self._keys = self.members[is_left], self._block[is_left], self._keys[:, is_left]
        self._component, self._home = self._component[is_left], self._home[is_left]
        self._apart = self._apart[is_left]

    def _mostly_within(self, distance: float, members: Indices, others: Indices) -> bool:
        """Return whether more than half of a sample of members lie within a distance of others, one by one."""
        sample = slice(None, None, 1 + len(members) // _SAMPLE)
        apart = self._question.distances(self.members[members[sample]], self.members[others[sample]])
        return 2 * int(np.count_nonzero(apart <= distance)) > len(apart)

    def _join_to(self, members: Indices, firsts: Indices) -> None:
        """Let some members join others, which are representatives."""
        rows = self.members[firsts]
        self.labels[self.members[members]] = self.labels[rows] = rows

    def _join(self, representative: Mapping[int, int]) -> None:
        for row, first in representative.items():
            self.labels[row] = self.labels[first] = first

    def _join_leaders(self) -> None:
        """Compare the members of crowds with the first of their neighbourhood."""
        # Members that agree lie in the same cell or in adjacent ones. A leader is the smallest index of five cells, so
        # that no member that agrees with it can have an earlier representative.
        members, keys = self.members, self._keys
        num_members = len(members)
        cell = np.floor(keys[np.ptp(keys, axis=1).argmax()])
        order = sort_within(cell, self._block)
        is_new = np.ones(num_members, dtype=np.bool_)
        is_new[1:] = (np.diff(cell[order]) != 0) | (np.diff(self._block[order]) != 0)
        number = np.empty_like(order)
        number[order] = is_new.cumsum() - 1
        first = np.full(is_new.sum(), num_members)
        np.minimum.at(first, number, np.arange(num_members))
        cells, blocks = cell[order][is_new], self._block[order][is_new]
        is_leader_cell = first == _least_nearby(first, cells, blocks, 2)
        # Each member is compared with the first leader of its own and the adjacent cells.
        candidate = _least_nearby(np.where(is_leader_cell, first, num_members), cells, blocks, 1)
        leader = candidate[number]
        is_left = np.ones(num_members, dtype=np.bool_)
        is_left[first[is_leader_cell]] = False
        index = np.flatnonzero((leader < num_members) & is_left)
        index = index[(np.abs(keys[:, index] - keys[:, leader[index]]) <= 1).all(axis=0)]
        if not self._mostly_within(self._question.tolerance, index, leader[index]):
            return  # rows that differ, though not in these keys
        joins = index[self._question.agree(members[index], members[leader[index]])]
        self._join_to(joins, leader[joins])
        is_left[joins] = False
        self._keep(is_left)

    def _join_one_by_one(self, members: Indices) -> None:
        """Compare each member that has joined no other one with all that come after it."""
        while len(members) > 1:
            first, rest = members[0], members[1:]
            agree = self._question.agree(rest, np.full_like(rest, first))
            self._join(dict.fromkeys(rest[agree].tolist(), int(first)))
            members = rest[~agree]


def merge_overlapping(groups: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Unite groups that share a row.

    >>> merge_overlapping([(0, 1), (4, 5), (1, 2)])
    [(0, 1, 2), (4, 5)]
    """
    home: dict[int, set[int]] = {}
    for group in groups:
        union = set(group).union(*(home[row] for row in group if row in home))
        home.update(dict.fromkeys(union, union))
    return sorted({id(union): tuple(sorted(union)) for union in home.values()}.values())


@lru_cache(maxsize=1024)
def is_chance(size: int, num_rows: int, width: int, resolution: float) -> bool:
    """Return whether ``size`` of ``num_rows`` random rows of ``width`` numbers could agree by coincidence.

    One number of relative ``resolution`` carries ``-log2(resolution)`` bits; for ``size`` rows to agree, ``size - 1``
    of them must match in all of these bits, and there are at most ``num_rows ** size`` ways to choose them. A group
    counts as chance unless the resulting probability is below ``2 ** -10``. This matters for rows of one or two numbers
    and for bfloat16, which has so few numbers that independent ones often coincide.
    """
    bits = -math.log2(resolution) * width * (size - 1)
    return bits - size * math.log2(max(num_rows, 2)) < _CHANCE_BITS


def is_chance_group(question: Question, group: Sequence[int], width: int) -> bool:
    """Return whether the rows of a group may agree by coincidence, see :func:`is_chance`.

    Args:
        question: the matrix and the tolerance at which the rows agree.
        group: the rows.
        width: how many numbers of each row could have differed.
    """
    resolution = max(question.tolerance, torch.finfo(question.rows.dtype).eps)
    return is_chance(len(group), question.rows.num_rows // question.blocks, width, resolution)


def compare_pairs(agree: Callable[[Indices, Indices], Mask], pairs: Indices) -> dict[int, int]:
    """Map each row to the representative of its group. Pairs whose result follows from earlier ones are skipped.

    Args:
        agree: compares rows ``(m,)`` with others ``(m,)``, one by one.
        pairs: all pairs of rows that may agree, ``(2, p)``, the smaller first.
    """
    representative: dict[int, int] = {}
    pairs = pairs[:, np.lexsort(pairs)]  # by the second row, then by the first
    is_known = np.zeros(pairs.shape[1], dtype=np.bool_)  # whether the rows of a pair are known to agree
    while pairs.shape[1]:
        first, second = pairs
        # Compare every row with the smallest candidate that is left to it.
        is_next = np.ones(len(second), dtype=np.bool_)
        is_next[1:] = second[1:] != second[:-1]
        asked = np.flatnonzero(is_next & ~is_known)
        is_over = np.zeros(len(second), dtype=np.bool_)
        if len(asked):
            answers = agree(second[asked], first[asked])
            is_known[asked[answers]] = is_over[asked[~answers]] = True
        # A row without a smaller candidate is a representative.
        may_join, joins = np.zeros(second[-1] + 1, dtype=np.bool_), np.zeros(second[-1] + 1, dtype=np.bool_)
        may_join[second] = True
        found = is_next & is_known & ~may_join[first]
        representative.update(zip(second[found].tolist(), first[found].tolist(), strict=True))
        joins[second[found]] = True
        is_over |= joins[first] | joins[second]
        pairs, is_known = pairs[:, ~is_over], is_known[~is_over]
    return representative


def _least_nearby(values: Indices, cells: Floats, blocks: Indices, reach: int) -> Indices:
    """Return the minimum over each cell and those up to ``reach`` cells away, ``(c,)``; cells are sorted."""
    least = values.copy()
    for shift in range(1, min(reach + 1, len(values))):
        is_near = (cells[shift:] - cells[:-shift] <= reach) & (blocks[shift:] == blocks[:-shift])
        least[shift:] = np.minimum(least[shift:], np.where(is_near, values[:-shift], values[shift:]))
        least[:-shift] = np.minimum(least[:-shift], np.where(is_near, values[shift:], values[:-shift]))
    return least


def _split_by(index: Indices, label: Indices) -> list[Indices]:
    """Split ``index`` by ``label``; order within a label is kept."""
    if not len(index):
        return []
    order = label.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(label[order])) + 1
    return [index[order[a:b]] for a, b in pairwise([0, *starts.tolist(), len(index)])]
