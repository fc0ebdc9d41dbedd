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
# With more neighbours than this a row lies in a crowd, where pairs are too many to list.
_MAX_NEIGHBOURS = 64
_EXTRA_KEYS = 4
_CHANCE_BITS = 10.0


class Rows:
    """A matrix ``(n, d)`` in pieces that lie side by side, for example a weight and its bias; never copied whole.

    Args:
        pieces: tensors of shape ``(n, ...)`` with any strides; trailing dimensions count as flattened.
    """

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        self.pieces = tuple(pieces)
        self.num_rows = self.pieces[0].shape[0]
        self.width = sum(math.prod(piece.shape[1:]) for piece in self.pieces)
        self.device = self.pieces[0].device
        # The coarsest of the dtypes decides what can be told apart.
        self.dtype = max((piece.dtype for piece in self.pieces), key=lambda dtype: torch.finfo(dtype).eps)
        is_double = all(piece.dtype == torch.float64 for piece in self.pieces)
        self.compute_dtype = torch.float64 if is_double else torch.float32
        block_elements = _BLOCK_ELEMENTS.get(self.device.type, _BLOCK_ELEMENTS["cuda"])
        self.block_rows = max(1, block_elements // max(1, self.width))

    def fetch(self, index: Tensor) -> Tensor:
        """The rows ``(m, d)`` at ``index`` ``(m,)``, in the dtype of the computation."""
        index = index.to(self.device)
        parts = [_flat(piece.index_select(0, index)).to(self.compute_dtype) for piece in self.pieces]
        return torch.cat(parts, dim=1)


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
    for piece in rows.pieces:
        width = math.prod(piece.shape[1:])
        signs = _signs(offset, width, rows.compute_dtype, rows.device)
        for start in range(0, rows.num_rows if width else 0, rows.block_rows):
            block = _flat(piece[start : start + rows.block_rows]).to(rows.compute_dtype)
            here = slice(start, start + len(block))
            # Not vector_norm and not a matrix product: see _ROUNDING, and the latter may round to tf32 or bfloat16.
            norms[here] = torch.hypot(norms[here], (block * block).sum(dim=1).sqrt())
            projections[here] += (block * signs).sum(dim=1)
        offset += width
    limits = torch.finfo(rows.compute_dtype)
    # Squares of what these norms come from may have left the range of the dtype.
    odd = ~((norms > limits.tiny**0.4) & (norms < limits.max**0.4))
    odd_index = odd.nonzero().squeeze(1)
    for index in torch.split(odd_index, rows.block_rows) if rows.width else ():
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
    among: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """Group the rows that agree: ``|w_i - w_j| <= tolerance * max(|w_i|, |w_j|)`` in the L2 norm.

    Agreement is no equivalence, so representatives decide: in the order of their indices, each row joins the first
    representative with which it agrees, or becomes a representative itself. Rows that are not finite join nothing.

    Args:
        rows: the matrix ``(n, d)``.
        tolerance: relative distance, ``0 <= tolerance < 1``.
        sketched: the sketch of ``rows``, if it is at hand.
        blocks: rows of different blocks, ``blocks`` runs of ``n / blocks`` rows each, are never compared.
        among: compare only these rows.

    Returns:
        The groups of two or more, each sorted, sorted by their first row.
    """
    block_size = rows.num_rows // blocks
    if block_size < 2:
        return []
    sketched = sketched if sketched is not None else sketch(rows)
    members = torch.arange(rows.num_rows) if among is None else torch.tensor(sorted(among), dtype=torch.long)
    norms = sketched.norms[members]
    zeros = members[norms == 0]
    groups = [group.tolist() for group in _split_by(zeros, zeros // block_size) if len(group) > 1]

    members = members[norms > 0]
    keys, windows = _keys(rows, sketched, tolerance)
    keys = keys[:, members]
    labels = torch.full((rows.num_rows,), -1)
    has_extra_keys = False
    while len(members) > 1:
        pairs, crowd = _neighbours(keys, windows, members // block_size)
        for row, leader_row in _resolve(rows, sketched.norms, members[pairs], tolerance).items():
            labels[row] = labels[leader_row] = leader_row
        members, keys, component = members[crowd >= 0], keys[:, crowd >= 0], crowd[crowd >= 0]
        if not len(members):
            break
        leader, leader_key = _leaders(members, keys, component)
        near = ((keys - leader_key).abs() <= windows[:, None]).all(dim=0) & (members != leader)
        index = near.nonzero().squeeze(1)
        agree = index[_agree(rows, sketched.norms, leader[index], members[index], tolerance)]
        labels[members[agree]] = leader[agree]
        labels[leader[agree]] = leader[agree]
        rest = members != leader
        rest[agree] = False
        members, keys = members[rest], keys[:, rest]
        if not has_extra_keys and len(members) > 1:
            # Few get here, so more keys are cheap, and they save comparing strangers in full.
            extra, extra_windows = _extra_keys(rows, sketched.norms, members, tolerance)
            keys, windows = torch.cat([keys, extra]), torch.cat([windows, extra_windows])
            has_extra_keys = True
    grouped = (labels >= 0).nonzero().squeeze(1)
    groups += [group.tolist() for group in _split_by(grouped, labels[grouped])]
    return sorted(tuple(group) for group in groups)


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
    groups = list(groups)
    while groups:
        label = torch.arange(recurrent.shape[0])
        for group in groups:
            label[list(group)] = group[0]
        refined: list[tuple[int, ...]] = []
        for group in groups:
            received = recurrent[list(group)].to("cpu", torch.float64).flatten(0, 1)
            sums = torch.zeros_like(received).index_add_(1, label, received).reshape(len(group), -1)
            # Sums may cancel out: they are equal relative to what is added up.
            scale = received.reshape(len(group), -1).norm(dim=1).max().expand(len(group))
            refined += [tuple(group[i] for i in part) for part in find_groups(Rows([sums, scale]), tolerance)]
        if refined == groups:
            break
        groups = refined
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
    merged: list[set[int]] = []
    for group in groups:
        union = set(group)
        apart = [other for other in merged if union.isdisjoint(other)]
        union.update(*(other for other in merged if not union.isdisjoint(other)))
        merged = [*apart, union]
    return sorted(tuple(sorted(group)) for group in merged)


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


@lru_cache(maxsize=256)
def _signs(offset: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A generator of its own: the global one belongs to the training.
    generator = torch.Generator().manual_seed(0x5EED + offset)
    return (torch.randint(0, 2, (width,), generator=generator) * 2 - 1).to(device, dtype)


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


def _keys(rows: Rows, sketched: Sketch, tolerance: float) -> tuple[Tensor, Tensor]:
    """Numbers ``(2, n)`` in which rows that agree differ by no more than the windows ``(2,)``."""
    keys = torch.stack([sketched.projections / sketched.norms, sketched.norms.log()])
    windows = _window(tolerance, rows.width, rows.compute_dtype)
    return keys, torch.tensor(windows, dtype=torch.float64)


def _extra_keys(rows: Rows, norms: Tensor, members: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Further projections of a few rows, ``(k, m)``, and their windows, ``(k,)``."""
    signs = [_signs(-1 - i, rows.width, rows.compute_dtype, rows.device) for i in range(_EXTRA_KEYS)]
    keys = []
    for index in torch.split(members, rows.block_rows):
        block = rows.fetch(index)
        keys.append(torch.stack([(block * sign).sum(dim=1) for sign in signs]))
    window, _ = _window(tolerance, rows.width, rows.compute_dtype)
    windows = torch.full((_EXTRA_KEYS,), window, dtype=torch.float64)
    return torch.cat(keys, dim=1).to("cpu", torch.float64) / norms[members], windows


def _neighbours(keys: Tensor, windows: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of members that lie within all windows of one another, and the crowds in which pairs are too many.

    Args:
        keys: ``(k, m)``.
        windows: ``(k,)``.
        block: ``(m,)``, members of different blocks are never compared.

    Returns:
        Pairs ``(2, p)`` of places, the smaller first, and for every member a label of its crowd, -1 if it is in none.
        No pair is in a crowd.
    """
    num_members = keys.shape[1]
    best: tuple[int, Tensor, Tensor] | None = None
    for i, key in enumerate(keys):  # sort by the key that separates most
        order = key.argsort()
        order = order[block[order].argsort(stable=True)]
        starts = torch.ones(num_members, dtype=torch.bool)
        starts[1:] = (key[order].diff() > windows[i]) | (block[order].diff() != 0)
        if best is None or starts.sum() > best[2].sum():
            best = i, order, starts
    assert best is not None
    best_key, order, starts = best
    component = starts.cumsum(0)
    crowded = torch.zeros(num_members + 1, dtype=torch.bool)
    far = _near(keys[best_key, order], component, windows[best_key], _MAX_NEIGHBOURS)
    crowded[component[_MAX_NEIGHBOURS:][far]] = True
    crowd = torch.full((num_members,), -1)
    crowd[order] = torch.where(crowded[component], component, -1)

    order, component = order[~crowded[component]], component[~crowded[component]]
    ordered = keys[:, order]
    pairs = [torch.zeros(2, 0, dtype=torch.long)]
    for shift in range(1, len(order)):
        near = _near(ordered[best_key], component, windows[best_key], shift)
        if not near.any():
            break
        near &= ((ordered[:, shift:] - ordered[:, :-shift]).abs() <= windows[:, None]).all(dim=0)
        place = near.nonzero().squeeze(1)
        pairs.append(torch.stack([order[place], order[place + shift]]))
    return torch.cat(pairs, dim=1).sort(dim=0).values, crowd


def _near(key: Tensor, component: Tensor, window: Tensor, shift: int) -> Tensor:
    """Whether a member lies near the one ``shift`` places before, ``(m - shift,)``; the key ``(m,)`` is sorted."""
    return (key[shift:] - key[:-shift] <= window) & (component[shift:] == component[:-shift])


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
        first, second = torch.tensor(questions).T
        answers = _agree(rows, norms, first, second, tolerance)
        agrees.update(zip(questions, answers.tolist(), strict=True))


def _leaders(members: Tensor, keys: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
    """For every member the first member of its component, ``(m,)``, and that one's keys, ``(k, m)``."""
    _, label = torch.unique(component, return_inverse=True)
    first = torch.full((int(label.max()) + 1,), len(members)).scatter_reduce(
        0, label, torch.arange(len(members)), "amin"
    )
    return members[first[label]], keys[:, first[label]]


def _agree(rows: Rows, norms: Tensor, leader: Tensor, index: Tensor, tolerance: float) -> Tensor:
    """Compare rows in full, each with its leader; ``(m,)`` of bool."""
    by_leader = leader.argsort(stable=True)
    verdicts = torch.zeros(len(index), dtype=torch.bool)
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
