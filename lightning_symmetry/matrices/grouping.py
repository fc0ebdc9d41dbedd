"""Rows to groups: which rows of a matrix agree within a tolerance.

The straightforward way compares all ``n (n - 1) / 2`` pairs. Here every row is read once, for its norm and a few
projections (:mod:`lightning_symmetry.matrices.rows`). Rows that agree have nearby norms and projections: a sieve drops
all rows that lie alone, as a rule every row of a healthy layer. Of those that are left, pairs that are near in all keys
are fetched and compared in full, each row with one representative of its group: ``n`` identical rows cost one more
pass, not ``n^2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.arguments import check_tolerance
from lightning_symmetry.matrices.rows import Floats, Indices, Mask, Rows, Sketch, exact_arithmetic, sketch_all

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
"""Relative L2 distance within which two rows of a dtype are taken for equal; ``docs/reference.md`` says why."""

LEAVE_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""The looser tolerance at which a group, once found, is left: truly symmetric units drift apart by rounding."""

# The sieve's cells, in windows: a row is looked up in a neighbouring cell only if it lies within a window of it.
_CELL = 16.0
# So many rows are sifted together: enough to share the cost of calling numpy, few enough to stay in a cache.
_SIFTED_ROWS = 1 << 13
_MANY_ROWS = 1 << 11  # of one matrix
# A row with more neighbours than this lies in a crowd, where pairs are too many to list.
_MAX_NEIGHBOURS = 64
_MANY_PAIRS = 4  # per row
_FEW_PAIRS = 16
_MAX_PAIRS = 200_000
_SAMPLE = 1 << 11
_HASH = np.uint64(0x5851F42D4C957F2D)  # multiplied modulo 2^64
_CHANCE_BITS = 10.0


@dataclass(frozen=True)
class Question:
    """Which rows of a matrix agree?

    Attributes:
        rows: the matrix ``(n, d)``.
        sketch: its sketch.
        tolerance: relative distance, ``0 <= tolerance < 1``.
        blocks: rows of different blocks, ``blocks`` runs of ``n / blocks`` rows each, are never compared.
    """

    rows: Rows
    sketch: Sketch
    tolerance: float
    blocks: int = 1


def suspects(questions: Sequence[Question]) -> list[Indices]:
    """Of each matrix the rows that may agree with another one, sorted; small matrices are sifted together.

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


def _sift(questions: Sequence[Question]) -> list[Indices]:
    sizes = [question.rows.num_rows for question in questions]
    bounds = [0, *accumulate(sizes)]
    matrix = np.repeat(np.arange(len(sizes)), sizes)
    norms = np.concatenate([question.sketch.norms for question in questions])
    projections = np.concatenate([question.sketch.projections for question in questions], axis=1)
    windows = np.array([question.rows.windows(question.tolerance) for question in questions]).T
    place = matrix
    if any(question.blocks > 1 for question in questions):
        block_sizes = np.array([max(1, size // q.blocks) for size, q in zip(sizes, questions, strict=True)])
        starts = np.array(bounds)[matrix]
        place = starts + (np.arange(bounds[-1]) - starts) // block_sizes[matrix]
    left = np.flatnonzero(norms > 0)
    # Two or three keys tell nearly all rows apart; all keys are for those that are left.
    for some in (projections[: 1 if max(sizes) < _MANY_ROWS else 2], projections):
        keys = _keys(norms[left], some[:, left], windows[:, matrix[left]])
        left = left[_share_a_cell(keys, place[left])]
        if not len(left):
            break
    found = np.sort(np.concatenate([left, np.flatnonzero(norms == 0)]))
    if not len(found):
        return [found] * len(questions)
    cuts = np.searchsorted(found, bounds).tolist()
    return [found[a:b] - start for (a, b), start in zip(pairwise(cuts), bounds[:-1], strict=True)]


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
        place = members // max(1, rows.num_rows // question.blocks)
    else:
        members = np.array([row for group in among for row in group], dtype=np.intp)
        place = np.repeat(np.arange(len(among)), [len(group) for group in among])
        members, place = members[order := members.argsort()], place[order]
    if len(members) < 2:
        return []
    labels = np.full(rows.num_rows, -1)
    is_zero = norms[members] == 0
    for group in _split_by(members[is_zero], place[is_zero]):
        labels[group] = group[0] if len(group) > 1 else -1

    is_usable = norms[members] > 0
    members, place = members[is_usable], place[is_usable]
    windows = np.array(rows.windows(tolerance))[:, None]
    keys = _keys(norms[members], question.sketch.projections[:, members], windows)
    round_number, has_further_keys = 0, False

    def further_keys() -> Floats:
        return rows.project(members) / (norms[members] * rows.further_window(tolerance))

    while len(members) > 1 and (max_rounds is None or round_number < max_rounds):
        pairs, is_crowded, best_key = _neighbours(keys, place)
        is_many = pairs.shape[1] > _MANY_PAIRS * len(members)
        if is_many and not has_further_keys and not _mostly_agree(question, members[pairs]):
            # Strangers that these keys do not tell apart, as rows with a single number in the same chunk.
            keys, has_further_keys = np.concatenate([keys, further_keys()]), True
            continue
        if max_rounds is not None and pairs.shape[1] > _MAX_PAIRS:
            break
        for row, leader in _resolve(question, members[pairs]).items():
            labels[row] = labels[leader] = leader
        members, place, keys = members[is_crowded], place[is_crowded], keys[:, is_crowded]
        if not len(members):
            break
        rest = _join_leaders(question, labels, members, place, keys, best_key)
        members, place, keys = members[rest], place[rest], keys[:, rest]
        if not has_further_keys and len(members) > 1:
            # Few get here, so more keys are cheap, and they save comparing strangers in full.
            keys, has_further_keys = np.concatenate([keys, further_keys()]), True
        round_number += 1
    grouped = np.flatnonzero(labels >= 0)
    return sorted(tuple(group.tolist()) for group in _split_by(grouped, labels[grouped]))


def stable_groups(groups: Sequence[tuple[int, ...]], recurrent: Rows, tolerance: float) -> list[tuple[int, ...]]:
    """Split groups of units that feed one another until each feeds all units of a group alike.

    Units of a group can be exchanged if, from every group, they receive the same in sum: then all of them hold the same
    value for ever, whichever unit of a group it comes from. The result is the coarsest such partition (Paige and Tarjan
    1987, doi:10.1137/0216062; "balanced" in Stewart, Golubitsky and Pivato 2003, doi:10.1137/S1111111103419896).

    Args:
        groups: units that are equal in all else; the others are alone.
        recurrent: weights ``(num_units, gates * num_units)``, receiving unit first, gate by gate.
        tolerance: relative L2 distance of equal sums.

    Returns:
        The groups of two or more that are left.

    Example:
        >>> stable_groups([(0, 1, 2)], Rows([torch.eye(3)]), 1e-5)
        [(0, 1, 2)]
        >>> stable_groups([(0, 1, 2)], Rows([torch.diag(torch.tensor([1.0, 1.0, 5.0]))]), 1e-5)
        [(0, 1)]
    """
    groups = sorted(groups)
    while groups:
        label = np.arange(recurrent.num_rows)
        for group in groups:
            label[list(group)] = group[0]
        refined: list[tuple[int, ...]] = []
        for group in groups:
            sums, sizes = recurrent.sums_by(np.array(group), label)
            # Sums may cancel out: they are equal relative to what is added up.
            matrix = Rows([torch.from_numpy(sums), torch.from_numpy(np.full_like(sizes, sizes.max()))])
            [sketch] = sketch_all([matrix])
            parts = find_groups(Question(matrix, sketch, tolerance))
            refined += [tuple(group[i] for i in part) for part in parts]
        if sorted(refined) == groups:
            break
        groups = sorted(refined)
    return groups


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
        raise TypeError(f"Expected argument `rows` to be a torch.Tensor but got {rows!r}.")
    if rows.dtype not in TOLERANCES:
        raise TypeError(f"Expected argument `rows` to have one of the dtypes {list(TOLERANCES)} but got {rows.dtype}.")
    if rows.ndim != 2:
        raise ValueError(f"Expected argument `rows` to have shape (n, d) but got {tuple(rows.shape)}.")
    check_tolerance(tolerance)
    if len(rows) < 2:
        return []
    with exact_arithmetic(rows.device):
        matrix = Rows([rows.detach()])
        [sketch] = sketch_all([matrix])
        return find_groups(Question(matrix, sketch, TOLERANCES[rows.dtype] if tolerance is None else tolerance))


def is_chance(size: int, num_rows: int, width: int, resolution: float) -> bool:
    """Whether a group of ``size`` among ``num_rows`` random rows of ``width`` numbers could be mere coincidence.

    One number of relative ``resolution`` carries ``-log2(resolution)`` bits; for ``size`` rows to agree, ``size - 1``
    of them must match in all of theirs, and there are at most ``num_rows ** size`` ways to choose them. A group counts
    as chance unless that leaves a probability below ``2 ** -10``. This matters for rows of one or two numbers and for
    bfloat16, which tells so few numbers apart that independent ones often coincide.
    """
    bits = -math.log2(resolution) * width * (size - 1)
    return bits - size * math.log2(max(num_rows, 2)) < _CHANCE_BITS


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


def _keys(norms: Floats, projections: Floats, windows: Floats) -> Floats:
    """Numbers ``(k, m)`` in which rows that agree differ by one at the most."""
    norms = norms.astype(np.float64)
    return np.concatenate([projections / (norms * windows[0]), np.log(norms)[None] / windows[1]])


def _share_a_cell(keys: Floats, place: Indices) -> Mask:
    """Which rows share a cell of a grid over their keys with another one of the same place, as all that agree do.

    Args:
        keys: ``(k, m)``; rows that agree differ by one at the most.
        place: ``(m,)``; rows of different places are never compared.
    """
    num_rows = keys.shape[1]
    cells = np.floor(keys / _CELL)
    # One that lies at the lower bound of its cell may agree with one in the cell below, and counts there too.
    is_at_bound = keys - cells * _CELL <= 1.01
    # A hash of the cells; should two have the same one, no row is lost.
    of_place, *multipliers = _HASH ** np.arange(1, len(keys) + 2, dtype=np.uint64)
    cell = place.astype(np.uint64) * of_place
    cell += (cells.astype(np.int64).view(np.uint64) * np.array(multipliers)[:, None]).sum(axis=0)
    member = np.arange(num_rows)
    for multiplier, is_low in zip(multipliers, is_at_bound, strict=True):
        low = np.flatnonzero(is_low[member])
        member = np.concatenate([member, member[low]])
        cell = np.concatenate([cell, cell[low] - multiplier])
    # Half of the hash sorts twice as fast, and still hardly ever unites what does not belong together.
    cell = (cell >> np.uint64(32)).astype(np.uint32)
    shares = np.zeros(num_rows, dtype=np.bool_)
    if (np.diff(np.sort(cell)) == 0).any():
        order = cell.argsort()
        again = np.flatnonzero(np.diff(cell[order]) == 0)
        shares[member[order[again]]] = shares[member[order[again + 1]]] = True
    return shares


def _neighbours(keys: Floats, place: Indices) -> tuple[Indices, Mask, int]:
    """Pairs of members that are near in all keys, and the crowds in which pairs are too many.

    Args:
        keys: ``(k, m)``.
        place: ``(m,)``; members of different places are never compared.

    Returns:
        Pairs ``(2, p)`` of members, the smaller first; ``(m,)`` of bool, whether a member lies in a crowd, in which
        case it is in no pair; and the key that separates best.
    """
    num_members = keys.shape[1]
    best = min(range(len(keys)), key=lambda i: _count_near(keys[i]))
    others = [i for i in range(len(keys)) if i != best]
    order = _sorted_within(keys[best], place)
    # Runs of members near the next one: none has a partner in another run, so crowds are whole runs.
    is_first = np.ones(num_members, dtype=np.bool_)
    is_first[1:] = ~_near_in_order(keys[best, order], place[order], 1)
    run = np.empty_like(order)
    run[order] = is_first.cumsum() - 1
    is_crowd = np.zeros(is_first.sum(), dtype=np.bool_)
    is_crowd[run[order][_is_packed(keys[:, order], place[order])]] = True
    order = order[~is_crowd[run[order]]]
    num_pairs = np.zeros(num_members, dtype=np.intp)
    pairs = [np.zeros((2, 0), dtype=np.intp)]
    shift = 1
    while shift < len(order):
        near = _near_in_order(keys[best, order], place[order], shift)
        if not near.any():
            break
        lower, upper = order[:-shift][near], order[shift:][near]
        for i in others:
            near = np.abs(keys[i, upper] - keys[i, lower]) <= 1
            lower, upper = lower[near], upper[near]
        pairs.append(np.stack([lower, upper]))
        num_pairs[lower] += 1
        num_pairs[upper] += 1
        if shift % _MAX_NEIGHBOURS == 0:
            is_crowd[run[num_pairs > _MAX_NEIGHBOURS]] = True
            order = order[~is_crowd[run[order]]]
        shift += 1
    found = np.concatenate(pairs, axis=1)
    found = found[:, ~is_crowd[run[found[0]]]]
    return np.sort(found, axis=0), is_crowd[run], best


def _count_near(key: Floats) -> int:
    """How often a member of a sample has the next one near; a rough measure of how badly a key separates."""
    sample = np.sort(key[:: 1 + len(key) // _SAMPLE])
    return int(np.count_nonzero(np.diff(sample) <= 1))


def _near_in_order(key: Floats, place: Indices, shift: int) -> Mask:
    """Whether a member lies near the one ``shift`` before it, ``(m - shift,)``; the key is sorted within each place."""
    near: Mask = (key[shift:] - key[:-shift] <= 1) & (place[shift:] == place[:-shift])
    return near


def _is_packed(keys: Floats, place: Indices) -> Mask:
    """Whether a member is near the 64th before it in all keys, as where many are equal."""
    is_packed = np.zeros(keys.shape[1], dtype=np.bool_)
    before, after = slice(None, -_MAX_NEIGHBOURS), slice(_MAX_NEIGHBOURS, None)
    near = (np.abs(keys[:, after] - keys[:, before]) <= 1).all(axis=0)
    is_packed[after] = near & (place[after] == place[before])
    return is_packed


def _sorted_within(key: Floats, place: Indices) -> Indices:
    """The order of members by place, and by key within a place."""
    return key.argsort() if (place == place[0]).all() else np.lexsort((key, place))


def _join_leaders(
    question: Question, labels: Indices, members: Indices, place: Indices, keys: Floats, best_key: int
) -> Mask:
    """Compare the members of crowds with the first of their neighbourhood, and label those that agree.

    Returns:
        ``(m,)`` of bool, whether a member is still to be settled.
    """
    # What a member could agree with lies in its own cell or the next. A leader is the first of five cells, so that
    # nobody it agrees with could find a representative before it.
    num_members = len(members)
    cell = np.floor(keys[best_key])
    order = _sorted_within(cell, place)
    is_new = np.ones(num_members, dtype=np.bool_)
    is_new[1:] = (np.diff(cell[order]) != 0) | (np.diff(place[order]) != 0)
    number = np.empty_like(order)
    number[order] = is_new.cumsum() - 1
    first = np.full(is_new.sum(), num_members)
    np.minimum.at(first, number, np.arange(num_members))
    cells, places = cell[order][is_new], place[order][is_new]
    is_leader_cell = first == _least_nearby(first, cells, places, 2)
    # Each member asks the first of the leaders in its cell and the next.
    candidate = _least_nearby(np.where(is_leader_cell, first, num_members), cells, places, 1)
    leader = candidate[number]
    rest = np.ones(num_members, dtype=np.bool_)
    rest[first[is_leader_cell]] = False
    index = np.flatnonzero((leader < num_members) & rest)
    index = index[(np.abs(keys[:, index] - keys[:, leader[index]]) <= 1).all(axis=0)]
    joins = index[_agree(question, members[leader[index]], members[index])]
    labels[members[joins]] = members[leader[joins]]
    labels[members[leader[joins]]] = members[leader[joins]]
    rest[joins] = False
    return rest


def _resolve(question: Question, pairs: Indices) -> dict[int, int]:
    """The representative of every row that has one, comparing in full as few of the pairs ``(2, p)`` as it takes."""
    below: dict[int, list[int]] = {}
    for first, second in sorted(pairs.T.tolist()):
        below.setdefault(second, []).append(first)
    agrees: dict[tuple[int, int], bool] = {}
    while True:
        joined: dict[int, int] = {}
        undecided: set[int] = set()
        questions: list[tuple[int, int]] = []
        for row in sorted(below):
            for partner in below[row]:
                if partner in joined or agrees.get((partner, row)) is False:
                    continue
                if (partner, row) not in agrees:
                    questions.append((partner, row))
                    undecided.add(row)
                elif partner in undecided:
                    undecided.add(row)
                else:
                    joined[row] = partner
                break
        if not questions:
            return joined
        answers = _agree(question, *np.array(questions).T)
        agrees.update(zip(questions, answers.tolist(), strict=True))


def _least_nearby(values: Indices, cells: Floats, places: Indices, reach: int) -> Indices:
    """The least of the values of each cell, ``(c,)``, and of those up to ``reach`` cells away; cells are sorted."""
    least = values.copy()
    for shift in range(1, min(reach + 1, len(values))):
        is_near = (cells[shift:] - cells[:-shift] <= reach) & (places[shift:] == places[:-shift])
        least[shift:] = np.minimum(least[shift:], np.where(is_near, values[:-shift], values[shift:]))
        least[:-shift] = np.minimum(least[:-shift], np.where(is_near, values[shift:], values[:-shift]))
    return least


def _mostly_agree(question: Question, pairs: Indices) -> bool:
    """Whether the rows of most pairs ``(2, p)`` agree, judged by a few of them."""
    few = pairs[:, :: 1 + pairs.shape[1] // _FEW_PAIRS]
    return bool(_agree(question, *few).mean() > 0.5)


def _agree(question: Question, leaders: Indices, index: Indices) -> Mask:
    """Compare rows in full, each with its leader; ``(m,)``."""
    norms = question.sketch.norms
    scale = np.maximum(norms[leaders], norms[index])
    return question.rows.distances(index, leaders, scale) <= question.tolerance


def _split_by(index: Indices, label: Indices) -> list[Indices]:
    """Split ``index`` by ``label``; order within a label is kept."""
    if not len(index):
        return []
    order = label.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(label[order])) + 1
    return [index[order[a:b]] for a, b in pairwise([0, *starts.tolist(), len(index)])]
