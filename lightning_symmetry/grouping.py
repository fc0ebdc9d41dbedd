"""Rows to groups: which rows of a matrix agree within a tolerance.

The straightforward way compares all ``n (n - 1) / 2`` pairs. Here every row is read once, for its norm and for its
projection on one fixed vector of random signs. Rows that agree have nearby norms and projections, so sorting these
numbers rules out almost every pair, and only the few candidates left are fetched and compared in full, each with one
representative of its group: ``n`` identical rows cost one more pass, not ``n^2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
"""Relative L2 distance within which two rows of a dtype are taken for equal; ``docs/reference.md`` says why."""

LEAVE_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""The looser tolerance at which a group, once found, is left: truly symmetric units drift apart by rounding."""

# A row and its duplicate differ by a vector e that knows nothing of the random signs r, so by Hoeffding's inequality
# P(|e . r| > SIGMAS |e|) <= 2 exp(-SIGMAS^2 / 2), below 3e-14 here. Cauchy-Schwarz gives sqrt(d) in place of SIGMAS:
# certain, but so wide for long rows that thousands of strangers fall inside.
_SIGMAS = 8.0
# torch.sum adds pairwise, with an error of at most log2(d) roundings (Higham 1993, doi:10.1137/0914050); here with room
# for what comes before and after. torch.linalg.vector_norm and matrix products add one by one and can be 100 times off.
_ROUNDING = 4.0
# Elements that are read at once: their float32 copy stays in a CPU's cache, and keeps a GPU busy.
_BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
# A row with more neighbours than this lies in a crowd, where pairs are too many to list.
_MAX_NEIGHBOURS = 64
_EXTRA_KEYS = 4
_MAX_PAIRS = 200_000
# The global default device is the user's; what is small is kept on the CPU.
_CPU = torch.device("cpu")
_CHANCE_BITS = 10.0


class Rows:
    """A matrix ``(n, d)`` in pieces that lie side by side, for example a weight and its bias; never copied whole.

    Args:
        pieces: tensors of shape ``(n, ...)`` with any strides, or lists of ``n`` tensors of one shape; the dimensions
            of a row count as flattened.
    """

    def __init__(self, pieces: Sequence[Tensor | Sequence[Tensor]]) -> None:
        self.pieces = tuple(pieces)
        self.num_rows = len(self.pieces[0])
        self.widths = tuple(
            math.prod(piece.shape[1:]) if isinstance(piece, Tensor) else piece[0].numel() for piece in self.pieces
        )
        self.width = sum(self.widths)
        samples = [piece if isinstance(piece, Tensor) else piece[0] for piece in self.pieces]
        self.device = samples[0].device
        # The coarsest of the dtypes decides what can be told apart.
        self.dtype = max((sample.dtype for sample in samples), key=lambda dtype: torch.finfo(dtype).eps)
        is_double = all(sample.dtype == torch.float64 for sample in samples)
        self.compute_dtype = torch.float64 if is_double else torch.float32
        block_elements = _BLOCK_ELEMENTS.get(self.device.type, _BLOCK_ELEMENTS["cuda"])
        self.block_rows = max(1, block_elements // max(1, self.width))

    def fetch(self, index: Tensor) -> Tensor:
        """The rows ``(m, d)`` at ``index`` ``(m,)``, in the dtype of the computation."""
        return torch.cat([self._at(i, index) for i in range(len(self.pieces))], dim=1)

    def _at(self, i: int, index: Tensor) -> Tensor:
        piece = self.pieces[i]
        if isinstance(piece, Tensor):
            return self._flat(i, piece.index_select(0, index.to(self.device)))
        return self._flat(i, torch.stack([piece[row] for row in index.tolist()]))

    def weight(self, row: int) -> Tensor:
        """The first piece of one row, which holds its weights, ``(widths[0],)``."""
        return self.pieces[0][row].flatten()

    def block(self, i: int, start: int) -> Tensor:
        """Rows from ``start`` on, as many as are read at once, of piece ``i``: ``(m, widths[i])``."""
        piece = self.pieces[i]
        rows = piece[start : start + self.block_rows]
        return self._flat(i, rows if isinstance(rows, Tensor) else torch.stack(list(rows)))

    def _flat(self, i: int, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), self.widths[i]).to(self.compute_dtype)


@dataclass(frozen=True)
class Sketch:
    """What one pass over the rows leaves of them, in float64 on the CPU.

    Attributes:
        norms: L2 norm of every row, ``(n,)``; zero for rows below the smallest normal number, NaN for rows that are
            not finite.
        projections: scalar product of every row with the same random signs, ``(n,)``.
    """

    norms: Tensor
    projections: Tensor


def sketch(rows: Rows) -> Sketch:
    """Read every row once."""
    norms = torch.zeros(rows.num_rows, dtype=rows.compute_dtype, device=rows.device)
    projections = torch.zeros_like(norms)
    offset = 0
    for i, width in enumerate(rows.widths):
        signs = _signs(offset, width, rows.compute_dtype, rows.device)
        for start in range(0, rows.num_rows if width else 0, rows.block_rows):
            block = rows.block(i, start)
            here = slice(start, start + len(block))
            # Not vector_norm and not a matrix product: see _ROUNDING, and the latter may round to tf32 or bfloat16.
            norms[here] = torch.hypot(norms[here], (block * block).sum(dim=1).sqrt())
            projections[here] += (block * signs).sum(dim=1)
        offset += width
    limits = torch.finfo(rows.compute_dtype)
    # Squares of what these norms come from may have left the range of the dtype.
    odd = ~((norms > limits.tiny**0.4) & (norms < limits.max**0.4))
    odd_index = odd.nonzero().squeeze(1)
    for index in torch.split(odd_index, rows.block_rows) if rows.width and len(odd_index) else ():
        norms[index] = _scaled_norms(rows.fetch(index))
    host = torch.stack([norms, projections]).to("cpu", torch.float64)
    finite = host.isfinite().all(dim=0)
    host = torch.where(finite & (host[0] < limits.tiny), 0.0, host)
    return Sketch(norms=torch.where(finite, host[0], math.nan), projections=host[1])


def find_groups(
    rows: Rows,
    tolerance: float,
    *,
    sketched: Sketch | None = None,
    blocks: int = 1,
    among: Sequence[Sequence[int]] | None = None,
    max_rounds: int | None = None,
) -> list[tuple[int, ...]]:
    """Group the rows that agree: ``|w_i - w_j| <= tolerance * max(|w_i|, |w_j|)`` in the L2 norm.

    Agreement is no equivalence, so representatives decide: in the order of their indices, each row joins the first
    representative with which it agrees, or becomes a representative itself. Rows that are not finite join nothing.

    Args:
        rows: the matrix ``(n, d)``.
        tolerance: relative distance, ``0 <= tolerance < 1``.
        sketched: the sketch of ``rows``, if it is at hand.
        blocks: rows of different blocks, ``blocks`` runs of ``n / blocks`` rows each, are never compared.
        among: compare only rows within each of these disjoint sets.
        max_rounds: give up on rows that so many rounds, or 200,000 comparisons, cannot settle: thousands that nearly
            agree; None: never.

    Returns:
        The groups of two or more, each sorted, sorted by their first row.
    """
    if rows.num_rows < 2 * blocks:
        return []
    sketched = sketched if sketched is not None else sketch(rows)
    if among is None:
        members = torch.arange(rows.num_rows, device=_CPU)
        place = members // (rows.num_rows // blocks)
    else:
        listed = sorted((row, i) for i, group in enumerate(among) for row in group)
        members, place = torch.tensor(listed, dtype=torch.long, device=_CPU).reshape(-1, 2).T
    labels = torch.full((rows.num_rows,), -1, device=_CPU)
    norms = sketched.norms[members]
    for group in _split_by(members[norms == 0], place[norms == 0]):
        labels[group] = group[0] if len(group) > 1 else -1

    members, place = members[norms > 0], place[norms > 0]
    keys, windows = _keys(rows, sketched, members, tolerance)
    if _are_all_apart(keys, windows):
        members = members[:0]
    round_number = 0
    while len(members) > 1 and (max_rounds is None or round_number < max_rounds):
        pairs, is_crowded, best_key = _neighbours(keys, windows, place)
        if max_rounds is not None and pairs.shape[1] > _MAX_PAIRS:
            break
        for row, leader in _resolve(rows, sketched.norms, members[pairs], tolerance).items():
            labels[row] = labels[leader] = leader
        members, place, keys = members[is_crowded], place[is_crowded], keys[:, is_crowded]
        if not len(members):
            break
        rest = _join_leaders(rows, sketched.norms, labels, members, place, keys, windows, best_key, tolerance)
        members, place, keys = members[rest], place[rest], keys[:, rest]
        if round_number == 0 and len(members) > 1:
            # Few get here, so more keys are cheap, and they save comparing strangers in full.
            extra, extra_windows = _extra_keys(rows, sketched.norms, members, tolerance)
            keys, windows = torch.cat([keys, extra]), torch.cat([windows, extra_windows])
        round_number += 1
    grouped = (labels >= 0).nonzero().squeeze(1)
    return sorted(tuple(group.tolist()) for group in _split_by(grouped, labels[grouped]))


def stable_groups(groups: Sequence[tuple[int, ...]], recurrent: Tensor, tolerance: float) -> list[tuple[int, ...]]:
    """Split groups of units that feed one another until each feeds all units of a group alike.

    Units of a group can be exchanged if, from every group, they receive the same in sum: then all of them hold the same
    value for ever, whichever unit of a group it comes from. The result is the coarsest such partition (Paige and Tarjan
    1987, doi:10.1137/0216062; "balanced" in Stewart, Golubitsky and Pivato 2003, doi:10.1137/S1111111103419896).

    Args:
        groups: units that are equal in all else; the others are alone.
        recurrent: weights ``(num_units, gates, num_units)``, receiving unit first.
        tolerance: relative L2 distance of equal sums.

    Returns:
        The groups of two or more that are left.

    Example:
        >>> stable_groups([(0, 1, 2)], torch.eye(3)[:, None, :], 1e-5)
        [(0, 1, 2)]
        >>> stable_groups([(0, 1, 2)], torch.diag(torch.tensor([1.0, 1.0, 5.0]))[:, None, :], 1e-5)
        [(0, 1)]
    """
    groups = sorted(groups)
    while groups:
        label = torch.arange(recurrent.shape[0], device=_CPU)
        for group in groups:
            label[list(group)] = group[0]
        refined: list[tuple[int, ...]] = []
        for group in groups:
            received = recurrent[list(group)].to("cpu", torch.float64).flatten(0, 1)
            sums = torch.zeros_like(received).index_add_(1, label, received).reshape(len(group), -1)
            # Sums may cancel out: they are equal relative to what is added up.
            scale = received.reshape(len(group), -1).norm(dim=1).max().expand(len(group))
            refined += [tuple(group[i] for i in part) for part in find_groups(Rows([sums, scale]), tolerance)]
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
    with exact_arithmetic(rows.device):
        return find_groups(Rows([rows.detach()]), TOLERANCES[rows.dtype] if tolerance is None else tolerance)


def check_tolerance(tolerance: float | None) -> None:
    """Refuse what is no relative distance."""
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"Expected argument `tolerance` to be a number or None but got {tolerance!r}.")
    if not 0 <= tolerance < 1:
        raise ValueError(f"Expected argument `tolerance` to be in the range 0 <= tolerance < 1 but got {tolerance!r}.")


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No autograd and no autocast inside, whatever the caller has switched on."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


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


@lru_cache(maxsize=256)
def _signs(offset: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A generator of its own: the global one belongs to the training.
    generator = torch.Generator(_CPU).manual_seed(0x5EED + offset)
    return (torch.randint(0, 2, (width,), generator=generator, device=_CPU) * 2 - 1).to(device, dtype)


def _scaled_norms(block: Tensor) -> Tensor:
    """Norms ``(m,)`` by way of squares that cannot leave the range of the dtype."""
    largest = block.abs().amax(dim=1)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return scale * (block / scale[:, None]).square().sum(dim=1).sqrt()


def _window(tolerance: float, width: int, dtype: torch.dtype) -> tuple[float, float]:
    """How far the projections of unit rows, and the logarithms of norms, of two rows that agree can lie apart."""
    rounding = _ROUNDING * torch.finfo(dtype).eps * (1 + math.log2(max(width, 1)))
    # |u_i - u_j| <= 2 |w_i - w_j| / (|w_i| + |w_j|) for unit vectors u (Dunkl and Williams 1964).
    apart = tolerance / (1 - tolerance / 2)
    return min(_SIGMAS, math.sqrt(width)) * apart + rounding, -math.log1p(-tolerance) + rounding


def _keys(rows: Rows, sketched: Sketch, members: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Numbers ``(2, m)`` in which rows that agree differ by no more than the windows ``(2,)``."""
    norms = sketched.norms[members]
    keys = torch.stack([sketched.projections[members] / norms, norms.log()])
    windows = _window(tolerance, rows.width, rows.compute_dtype)
    return keys, torch.tensor(windows, dtype=torch.float64, device=_CPU)


def _extra_keys(rows: Rows, norms: Tensor, members: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Further projections of a few rows, ``(k, m)``, and their windows, ``(k,)``."""
    signs = [_signs(-1 - i, rows.width, rows.compute_dtype, rows.device) for i in range(_EXTRA_KEYS)]
    keys = []
    for index in torch.split(members, rows.block_rows):
        block = rows.fetch(index)
        keys.append(torch.stack([(block * sign).sum(dim=1) for sign in signs]))
    window, _ = _window(tolerance, rows.width, rows.compute_dtype)
    windows = torch.full((_EXTRA_KEYS,), window, dtype=torch.float64, device=_CPU)
    return torch.cat(keys, dim=1).to("cpu", torch.float64) / norms[members], windows


def _neighbours(keys: Tensor, windows: Tensor, place: Tensor) -> tuple[Tensor, Tensor, int]:
    """Pairs of members that lie within all windows of one another, and the crowds in which pairs are too many.

    Args:
        keys: ``(k, m)``.
        windows: ``(k,)``.
        place: ``(m,)``; members of different places are never compared.

    Returns:
        Pairs ``(2, p)`` of members, the smaller first; ``(m,)`` of bool, whether a member lies in a crowd, in which
        case it is in no pair; and the key that separates best.
    """
    num_members = keys.shape[1]
    orders = [_sorted_within(key, place) for key in keys]
    counts = [_count_near(key, order, place, window) for key, order, window in zip(keys, orders, windows, strict=True)]
    by_count = sorted(range(len(keys)), key=counts.__getitem__)
    best, others = by_count[0], by_count[1:]
    order = orders[best]
    # Runs of members near the next one: none has a partner in another run, so crowds are whole runs.
    is_first = torch.ones(num_members, dtype=torch.bool, device=_CPU)
    is_first[1:] = ~_near_in_order(keys[best, order], place[order], windows[best], 1)
    run = torch.empty_like(order)
    run[order] = is_first.cumsum(0) - 1
    is_crowd = torch.zeros(int(is_first.sum()), dtype=torch.bool, device=_CPU)
    is_crowd[run[order][_is_packed(keys[:, order], windows, place[order])]] = True
    order = order[~is_crowd[run[order]]]
    num_pairs = torch.zeros(num_members, dtype=torch.long, device=_CPU)
    pairs = [torch.zeros(2, 0, dtype=torch.long, device=_CPU)]
    shift = 1
    while shift < len(order):
        near = _near_in_order(keys[best, order], place[order], windows[best], shift)
        if not near.any():
            break
        lower, upper = order[:-shift][near], order[shift:][near]
        for i in others:
            near = (keys[i, upper] - keys[i, lower]).abs() <= windows[i]
            lower, upper = lower[near], upper[near]
        pairs.append(torch.stack([lower, upper]))
        num_pairs[lower] += 1
        num_pairs[upper] += 1
        if shift % _MAX_NEIGHBOURS == 0:
            is_crowd[run[num_pairs > _MAX_NEIGHBOURS]] = True
            order = order[~is_crowd[run[order]]]
        shift += 1
    found = torch.cat(pairs, dim=1)
    found = found[:, ~is_crowd[run[found[0]]]]
    return found.sort(dim=0).values, is_crowd[run], best


def _are_all_apart(keys: Tensor, windows: Tensor) -> bool:
    """Whether a single key is enough to tell all members apart, as in most healthy layers."""
    return any(bool((key.sort().values.diff() > window).all()) for key, window in zip(keys, windows, strict=True))


def _near_in_order(key: Tensor, place: Tensor, window: Tensor, shift: int) -> Tensor:
    """Whether a member lies near the one ``shift`` before it, ``(m - shift,)``; the key is sorted within each place."""
    return (key[shift:] - key[:-shift] <= window) & (place[shift:] == place[:-shift])


def _is_packed(keys: Tensor, windows: Tensor, place: Tensor) -> Tensor:
    """Whether a member is near the 64th before it in all keys, as where many are equal."""
    is_packed = torch.zeros(keys.shape[1], dtype=torch.bool, device=_CPU)
    before, after = slice(None, -_MAX_NEIGHBOURS), slice(_MAX_NEIGHBOURS, None)
    near = ((keys[:, after] - keys[:, before]).abs() <= windows[:, None]).all(dim=0)
    is_packed[after] = near & (place[after] == place[before])
    return is_packed


def _sorted_within(key: Tensor, place: Tensor) -> Tensor:
    """The order of members by place, and by key within a place."""
    order = key.argsort()
    return order[place[order].argsort(stable=True)]


def _count_near(key: Tensor, order: Tensor, place: Tensor, window: Tensor) -> int:
    """About how many pairs lie within the window."""
    spread = key.max() - key.min() + 2 * window
    ordered = key[order] + place[order] * spread
    above = torch.searchsorted(ordered, ordered + window, right=True)
    return int(above.sum()) - len(order) * (len(order) + 1) // 2


def _join_leaders(
    rows: Rows,
    norms: Tensor,
    labels: Tensor,
    members: Tensor,
    place: Tensor,
    keys: Tensor,
    windows: Tensor,
    best_key: int,
    tolerance: float,
) -> Tensor:
    """Compare the members of crowds with the first of their neighbourhood, and label those that agree.

    Returns:
        ``(m,)`` of bool, whether a member is still to be settled.
    """
    # Cells as wide as the window: what a member could agree with lies in its own cell or the next. A leader is the
    # first of five cells, so that nobody it agrees with could find a representative before it.
    cell = (keys[best_key] / windows[best_key]).floor()
    order = _sorted_within(cell, place)
    is_new = torch.ones(len(order), dtype=torch.bool, device=_CPU)
    is_new[1:] = (cell[order].diff() != 0) | (place[order].diff() != 0)
    number = torch.empty_like(order)
    number[order] = is_new.cumsum(0) - 1
    first = torch.full((int(is_new.sum()),), len(members), device=_CPU)
    first = first.scatter_reduce(0, number, torch.arange(len(members), device=_CPU), "amin")
    cells, places = cell[order][is_new], place[order][is_new]
    is_leader_cell = first == _least_nearby(first, cells, places, 2)
    # Each member asks the first of the leaders in its cell and the next.
    nobody = torch.full_like(first, len(members))
    candidate = _least_nearby(torch.where(is_leader_cell, first, nobody), cells, places, 1)
    leader = candidate[number]
    rest = torch.ones(len(members), dtype=torch.bool, device=_CPU)
    rest[first[is_leader_cell]] = False
    index = ((leader < len(members)) & rest).nonzero().squeeze(1)
    near = ((keys[:, index] - keys[:, leader[index]]).abs() <= windows[:, None]).all(dim=0)
    index = index[near]
    joins = index[_agree(rows, norms, members[leader[index]], members[index], tolerance)]
    labels[members[joins]] = members[leader[joins]]
    labels[members[leader[joins]]] = members[leader[joins]]
    rest[joins] = False
    return rest


def _resolve(rows: Rows, norms: Tensor, pairs: Tensor, tolerance: float) -> dict[int, int]:
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
        first, second = torch.tensor(questions, device=_CPU).T
        answers = _agree(rows, norms, first, second, tolerance)
        agrees.update(zip(questions, answers.tolist(), strict=True))


def _least_nearby(values: Tensor, cells: Tensor, places: Tensor, reach: int) -> Tensor:
    """The least of the values of each cell, ``(c,)``, and of those up to ``reach`` cells away; cells are sorted."""
    least = values.clone()
    for shift in range(1, min(reach + 1, len(values))):
        is_far = (cells[shift:] - cells[:-shift] > reach) | (places[shift:] != places[:-shift])
        least[shift:] = torch.minimum(least[shift:], torch.where(is_far, values[shift:], values[:-shift]))
        least[:-shift] = torch.minimum(least[:-shift], torch.where(is_far, values[:-shift], values[shift:]))
    return least


def _agree(rows: Rows, norms: Tensor, leader: Tensor, index: Tensor, tolerance: float) -> Tensor:
    """Compare rows in full, each with its leader; ``(m,)`` of bool."""
    by_leader = leader.argsort(stable=True)
    verdicts = torch.zeros(len(index), dtype=torch.bool, device=_CPU)
    for part in torch.split(by_leader, rows.block_rows) if len(index) else ():
        leaders = leader[part]
        is_same = bool(leaders[0] == leaders[-1])
        difference = rows.fetch(index[part]) - rows.fetch(leaders[:1] if is_same else leaders)
        # Divided before it is squared, so that rows of tiny numbers do not all look equal.
        scale = torch.maximum(norms[index[part]], norms[leaders])[:, None]
        distance = (difference / scale.to(difference)).square().sum(dim=1).sqrt()
        verdicts[part] = (distance <= tolerance).cpu()
    return verdicts


def _split_by(index: Tensor, label: Tensor) -> list[Tensor]:
    """Split ``index`` by ``label``; order within a label is kept."""
    if not len(index):
        return []
    order = label.argsort(stable=True)
    starts = (label[order].diff() != 0).nonzero().squeeze(1) + 1
    bounds = [0, *starts.tolist(), len(index)]
    return [index[order[a:b]] for a, b in pairwise(bounds)]
