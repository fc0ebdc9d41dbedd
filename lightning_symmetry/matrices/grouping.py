"""Rows to groups: which rows of a matrix agree within a tolerance.

The straightforward way compares all ``n (n - 1) / 2`` pairs. Here every row is read once, for its sketch. By the
sketches, a sieve (:mod:`lightning_symmetry.matrices.sieve`) drops all rows that agree with no other one. Of those that
are left, the candidate pairs (:mod:`lightning_symmetry.matrices.candidates`) are compared in full, each row with one
representative of its group: ``n`` identical rows cost one more pass, not ``n^2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.arguments import check_tolerance
from lightning_symmetry.brief import brief
from lightning_symmetry.matrices.candidates import find_candidates, find_neighbours, sort_within
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.near import settle_crowds
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask, exact_arithmetic
from lightning_symmetry.matrices.question import TOLERANCES, Question, keys_of
from lightning_symmetry.matrices.sieve import suspects
from lightning_symmetry.matrices.sketching import sketch_all

_FEW_MEMBERS = 64
_FEW_PAIRS = 16
_MAX_PAIRS = 200_000
_CHANCE_BITS = 10.0
# Where rounds are limited, all distances are computed of crowds up to this size, which costs about fifty reads of them.
_MAX_NEAR_ROWS = 1 << 10


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


def find_groups(
    question: Question,
    *,
    among: Sequence[Sequence[int]] | None = None,
    suspected: Indices | None = None,
    max_rounds: int | None = None,
) -> list[tuple[int, ...]]:
    """Group the rows that agree: ``|w_i - w_j| <= tolerance * max(|w_i|, |w_j|)`` in the L2 norm.

    Agreement is no equivalence, so representatives decide: in the order of their indices, each row joins the first
    representative with which it agrees, or becomes a representative itself. Rows that are not finite join nothing.

    Args:
        question: the matrix and the tolerance.
        among: compare only rows within each of these disjoint sets.
        suspected: what :func:`suspects` says of the matrix, if it is at hand.
        max_rounds: give up on rows that so many rounds, or 200,000 comparisons, cannot settle: thousands that nearly
            agree; None: never.

    Returns:
        The groups of two or more, each sorted, sorted by their first row.
    """
    rows, norms, tolerance = question.rows, question.sketch.norms, question.tolerance
    if among is None:
        members = suspects([question])[0] if suspected is None else suspected
        block = members // max(1, rows.num_rows // question.blocks)
    else:
        members = np.array([row for group in among for row in group], dtype=np.intp)
        block = np.repeat(np.arange(len(among)), [len(group) for group in among])
        members, block = members[order := members.argsort()], block[order]
    if len(members) < 2:
        return []
    labels = np.full(rows.num_rows, -1)
    is_zero = norms[members] == 0
    for group in _split_by(members[is_zero], block[is_zero]):
        labels[group] = group[0] if len(group) > 1 else -1

    is_usable = norms[members] > 0
    members, block = members[is_usable], block[is_usable]
    windows = np.array(rows.windows(tolerance))[:, None]
    keys = keys_of(norms[members], question.sketch.projections[:, members], windows)
    round_number, has_further_keys = 0, False

    def further_keys() -> Floats:
        return rows.project(members) / (norms[members] * rows.further_window(tolerance))

    if len(members) > _FEW_MEMBERS and not _mostly_agree(question, members[find_neighbours(keys, block)]):
        # Rows that differ, but not in these keys, as rows with a single number in the same chunk.
        keys, has_further_keys = np.concatenate([keys, further_keys()]), True
    while len(members) > 1 and (max_rounds is None or round_number < max_rounds):
        candidates = find_candidates(keys, block)
        pairs, is_crowded = candidates.pairs, candidates.is_crowded
        if max_rounds is not None and pairs.shape[1] > _MAX_PAIRS:
            break
        for row, first in compare_pairs(question.agree, members[pairs]).items():
            labels[row] = labels[first] = first
        members, block, keys = members[is_crowded], block[is_crowded], keys[:, is_crowded]
        if not len(members):
            break
        rest = _compare_crowds(question, labels, members, block, keys, candidates.best_key)
        num_joined = len(members) - int(rest.sum())
        members, block, keys = members[rest], block[rest], keys[:, rest]
        if len(members) > max(_FEW_MEMBERS, num_joined):  # most rows differ, though by little
            settled, rest = settle_crowds(
                question,
                members,
                block,
                lambda pairs: compare_pairs(question.agree, pairs),
                _MAX_NEAR_ROWS if max_rounds is not None else math.inf,
            )
            for row, first in settled.items():
                labels[row] = labels[first] = first
            members, block, keys = members[rest], block[rest], keys[:, rest]
        if not has_further_keys and len(members) > 1:
            # Few get here, so more keys are cheap, and they save comparing in full rows that differ.
            keys, has_further_keys = np.concatenate([keys, further_keys()]), True
        round_number += 1
    grouped = np.flatnonzero(labels >= 0)
    return sorted(tuple(group.tolist()) for group in _split_by(grouped, labels[grouped]))


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
    """Whether a group of ``size`` among ``num_rows`` random rows of ``width`` numbers could be mere coincidence.

    One number of relative ``resolution`` carries ``-log2(resolution)`` bits; for ``size`` rows to agree, ``size - 1``
    of them must match in all of theirs, and there are at most ``num_rows ** size`` ways to choose them. A group counts
    as chance unless that leaves a probability below ``2 ** -10``. This matters for rows of one or two numbers and for
    bfloat16, which tells so few numbers apart that independent ones often coincide.
    """
    bits = -math.log2(resolution) * width * (size - 1)
    return bits - size * math.log2(max(num_rows, 2)) < _CHANCE_BITS


def is_chance_group(question: Question, group: Sequence[int], width: int) -> bool:
    """Whether the rows of a group may agree by mere coincidence, see :func:`is_chance`.

    Args:
        question: the matrix and the tolerance at which the rows agree.
        group: the rows.
        width: how many numbers of each row could have differed.
    """
    resolution = max(question.tolerance, torch.finfo(question.rows.dtype).eps)
    return is_chance(len(group), question.rows.num_rows // question.blocks, width, resolution)


def _compare_crowds(
    question: Question, labels: Indices, members: Indices, block: Indices, keys: Floats, best_key: int
) -> Mask:
    """Compare the members of crowds with the first of their neighbourhood, and label those that agree.

    Args:
        question: the matrix and the tolerance.
        labels: the representative of every row, ``(n,)``; written to.
        members: the rows in crowds, ``(m,)``.
        block: of each member, ``(m,)``; members of different blocks are never compared.
        keys: of the members, ``(k, m)``.
        best_key: the key that separates best.

    Returns:
        ``(m,)`` of bool, whether a member is still to be settled.
    """
    # What a member could agree with lies in its own cell or the next. A leader is the first of five cells, so that
    # nobody it agrees with could find a representative before it.
    num_members = len(members)
    cell = np.floor(keys[best_key])
    order = sort_within(cell, block)
    is_new = np.ones(num_members, dtype=np.bool_)
    is_new[1:] = (np.diff(cell[order]) != 0) | (np.diff(block[order]) != 0)
    number = np.empty_like(order)
    number[order] = is_new.cumsum() - 1
    first = np.full(is_new.sum(), num_members)
    np.minimum.at(first, number, np.arange(num_members))
    cells, blocks = cell[order][is_new], block[order][is_new]
    is_leader_cell = first == _least_nearby(first, cells, blocks, 2)
    # Each member asks the first of the leaders in its cell and the next.
    candidate = _least_nearby(np.where(is_leader_cell, first, num_members), cells, blocks, 1)
    leader = candidate[number]
    rest = np.ones(num_members, dtype=np.bool_)
    rest[first[is_leader_cell]] = False
    index = np.flatnonzero((leader < num_members) & rest)
    index = index[(np.abs(keys[:, index] - keys[:, leader[index]]) <= 1).all(axis=0)]
    joins = index[question.agree(members[index], members[leader[index]])]
    labels[members[joins]] = members[leader[joins]]
    labels[members[leader[joins]]] = members[leader[joins]]
    rest[joins] = False
    return rest


def compare_pairs(agree: Callable[[Indices, Indices], Mask], pairs: Indices) -> dict[int, int]:
    """The representative of every row that has one, comparing in full few more of the pairs than it takes.

    Args:
        agree: compares some rows with others, one by one.
        pairs: all pairs of rows that may agree, ``(2, p)``, the smaller first.
    """
    representative: dict[int, int] = {}
    pairs = pairs[:, np.lexsort(pairs)]  # by the second row, then by the first
    is_known = np.zeros(pairs.shape[1], dtype=np.bool_)  # whether the rows of a pair are known to agree
    while pairs.shape[1]:
        first, second = pairs
        # Every row asks the smallest one that is left to it.
        is_next = np.ones(len(second), dtype=np.bool_)
        is_next[1:] = second[1:] != second[:-1]
        asked = np.flatnonzero(is_next & ~is_known)
        is_over = np.zeros(len(second), dtype=np.bool_)
        if len(asked):
            answers = agree(second[asked], first[asked])
            is_known[asked[answers]] = is_over[asked[~answers]] = True
        # One that has nobody smaller left to ask is a representative.
        may_join, joins = np.zeros(second[-1] + 1, dtype=np.bool_), np.zeros(second[-1] + 1, dtype=np.bool_)
        may_join[second] = True
        found = is_next & is_known & ~may_join[first]
        representative.update(zip(second[found].tolist(), first[found].tolist(), strict=True))
        joins[second[found]] = True
        is_over |= joins[first] | joins[second]
        pairs, is_known = pairs[:, ~is_over], is_known[~is_over]
    return representative


def _least_nearby(values: Indices, cells: Floats, blocks: Indices, reach: int) -> Indices:
    """The least of the values of each cell, ``(c,)``, and of those up to ``reach`` cells away; cells are sorted."""
    least = values.copy()
    for shift in range(1, min(reach + 1, len(values))):
        is_near = (cells[shift:] - cells[:-shift] <= reach) & (blocks[shift:] == blocks[:-shift])
        least[shift:] = np.minimum(least[shift:], np.where(is_near, values[:-shift], values[shift:]))
        least[:-shift] = np.minimum(least[:-shift], np.where(is_near, values[shift:], values[:-shift]))
    return least


def _mostly_agree(question: Question, pairs: Indices) -> bool:
    """Whether the rows of most pairs ``(2, p)`` agree, judged by a few of them; True where there is no pair."""
    if not pairs.shape[1]:
        return True
    firsts, rows = pairs[:, :: 1 + pairs.shape[1] // _FEW_PAIRS]
    return bool(question.agree(rows, firsts).mean() > 0.5)


def _split_by(index: Indices, label: Indices) -> list[Indices]:
    """Split ``index`` by ``label``; order within a label is kept."""
    if not len(index):
        return []
    order = label.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(label[order])) + 1
    return [index[order[a:b]] for a, b in pairwise([0, *starts.tolist(), len(index)])]
