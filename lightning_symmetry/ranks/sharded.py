"""Matrices whose numbers lie on several ranks.

A layer sees a sharded tensor in full, through the view of its adapter, whose first dimension counts units. A rank holds
a box of the tensor, :class:`Held`. :func:`fragments` puts the two together: it applies the view to the places of the
numbers instead of the numbers themselves, so nothing is sent and nothing is copied. What grouping wants to know of the
rows, :class:`ShardedRows` asks of all ranks: sums over the numbers that each of them holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_symmetry.matrices.grouping import TOLERANCES, Question, find_groups
from lightning_symmetry.matrices.rows import (
    COPY_ELEMENTS,
    NUM_FURTHER,
    NUM_PROJECTIONS,
    PERIOD,
    Floats,
    Indices,
    Rows,
    UnreadableError,
    chunk_of,
    columns_by,
    elements,
    random_vectors,
    reduce_rows,
    sketch_all,
    to_host,
)
from lightning_symmetry.ranks.fsdp1 import FlatPart
from lightning_symmetry.ranks.team import Name, Request, Team, TeamError

# Places are counted on the CPU, whatever the user's default device is.
_CPU = torch.device("cpu")
# So many numbers of rows are sent to all ranks to be compared in full.
_MAX_FETCHED = 1 << 14
_MAX_DENSE = 1 << 22


@dataclass(frozen=True)
class Held:
    """The box of a tensor that this rank answers for.

    Attributes:
        numbers: what lies in the box; empty if another rank answers, for example for a replica.
        start: the place of the box in the whole tensor.
        shape: of the whole tensor.
    """

    numbers: Tensor
    start: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """Parts of some rows of a matrix.

    Attributes:
        numbers: a view ``(m, ...)`` of what this rank holds.
        rows: the places of these ``m`` rows.
        runs: for every dimension of a row the first and the last place, and by how many columns a step goes on.
        offset: the column at which the row begins.
    """

    numbers: Tensor
    rows: slice
    runs: tuple[tuple[int, int, int], ...]
    offset: int = 0

    @property
    def num_columns(self) -> int:
        """The numbers of a row, ``w``."""
        return math.prod(last - first + 1 for first, last, _ in self.runs)

    @property
    def first_column(self) -> int:
        """The place of the first of them in the flattened row; the others follow in order."""
        return self.offset + sum(first * step for first, _, step in self.runs)

    @property
    def last_column(self) -> int:
        """The place of the last of them."""
        return self.offset + sum(last * step for _, last, step in self.runs)

    def columns(self) -> Tensor:
        """Their places, ``(w,)``."""
        columns = torch.tensor([self.offset], device=_CPU)
        for first, last, step in self.runs:
            columns = (columns[:, None] + torch.arange(first, last + 1, device=_CPU) * step).flatten()
        return columns.to(self.numbers.device)


def held(tensor: DTensor) -> Held:
    """What this rank holds of a distributed tensor, without any communication.

    Raises:
        UnreadableError: if the tensor is laid out in a way that this package does not know.
    """
    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    local = tensor.to_local().detach()
    nothing = Held(local.new_empty([0] * len(shape)), (0,) * len(shape), shape)
    coordinate = mesh.get_coordinate()
    # The first rank speaks for all copies: on other meshes, and in the dimensions in which the mesh holds copies.
    if coordinate is None or not bool((mesh.mesh == 0).any()):
        return nothing
    start, size = [0] * len(shape), list(shape)
    for mesh_dim in _in_order_of_sharding(tensor):
        dim = tensor.placements[mesh_dim].dim  # type: ignore[attr-defined]
        chunk = -(-size[dim] // mesh.size(mesh_dim))
        before = min(size[dim], chunk * coordinate[mesh_dim])
        start[dim], size[dim] = start[dim] + before, min(chunk, size[dim] - before)
    if math.prod(size) != local.numel():
        raise UnreadableError(f"its shard has {tuple(local.shape)} numbers where {tuple(size)} were expected")
    if any(place and shard.is_replicate() for place, shard in zip(coordinate, tensor.placements, strict=True)):
        return nothing
    return Held(local.reshape(size), tuple(start), shape)


def _in_order_of_sharding(tensor: DTensor) -> list[int]:
    """The dimensions of the mesh along which a tensor is sharded, in the order in which it was."""
    if any(placement.is_partial() for placement in tensor.placements):
        raise UnreadableError("its numbers are partial sums")
    sharded = [i for i, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    order: list[int] = []
    for i in reversed(sharded):
        placement = tensor.placements[i]
        if not hasattr(placement, "dim"):
            raise UnreadableError(f"its placement {placement} is not known")
        later = [j for j in order if tensor.placements[j].dim == placement.dim]  # type: ignore[attr-defined]
        factor = getattr(placement, "split_factor", 1)
        if factor == 1:
            order.insert(0, i)
        elif factor == math.prod(tensor.device_mesh.size(j) for j in later):
            order.append(i)
        else:
            raise UnreadableError(f"its placement {placement} is not known")
    return order


@dataclass(frozen=True)
class ViewMap:
    """A view as a map of places.

    Attributes:
        sizes: the shape of the view.
        origins: for every dimension of the tensor, the place at the view's first number.
        strides: and by how much it grows along each dimension of the view.
    """

    sizes: tuple[int, ...]
    origins: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def fragments(box: Held, view: ViewMap) -> Iterator[Fragment]:
    """What a box holds of the rows ``view(tensor)``, ``(num_units, ...)``, of the whole tensor."""
    if not box.numbers.numel():
        return
    sizes, origins, strides = view.sizes, view.origins, view.strides
    widths = [math.prod(sizes[k + 1 :]) for k in range(1, len(sizes))]
    # In the other dimensions the box holds all there is.
    bounds = [
        (dim, origins[dim], [k for k, stride in enumerate(strides[dim]) if stride])
        for dim in range(len(box.shape))
        if box.numbers.shape[dim] < box.shape[dim]
    ]
    # Where several dimensions of the view run along one of the tensor, such as gates and units, all but the finest are
    # gone through one by one, so that the finest runs over an interval.
    finest = {dim: min(along, key=strides[dim].__getitem__) for dim, _, along in bounds if along}
    listed = sorted({k for dim, _, along in bounds for k in along if k != finest[dim]})
    for places in product(*(range(sizes[k]) for k in listed)):
        first, last = [0] * len(sizes), list(sizes)
        for k, place in zip(listed, places, strict=True):
            first[k], last[k] = place, place + 1
        for dim, origin, along in bounds:
            so_far = origin + sum(strides[dim][k] * first[k] for k in along if k in listed)
            low, high = box.start[dim] - so_far, box.start[dim] + box.numbers.shape[dim] - so_far
            if along:
                k, stride = finest[dim], strides[dim][finest[dim]]
                first[k], last[k] = max(first[k], -(-low // stride)), min(last[k], -(-high // stride))
            elif not low <= 0 < high:
                last[0] = 0
        if any(a >= b for a, b in zip(first, last, strict=True)):
            continue
        steps = [
            sum(box.numbers.stride(dim) * strides[dim][k] for dim in range(len(box.shape))) for k in range(len(sizes))
        ]
        corner = [
            origins[dim] + sum(strides[dim][k] * first[k] for k in range(len(sizes))) - box.start[dim]
            for dim in range(len(box.shape))
        ]
        offset = sum(stride * place for stride, place in zip(box.numbers.stride(), corner, strict=True))
        numbers = box.numbers.as_strided(
            [b - a for a, b in zip(first, last, strict=True)], steps, box.numbers.storage_offset() + offset
        )
        runs = tuple((a, b - 1, step) for a, b, step in zip(first[1:], last[1:], widths, strict=True))
        yield Fragment(numbers, slice(first[0], last[0]), runs)


def map_of(view: Callable[[Tensor], Tensor], shape: Sequence[int]) -> ViewMap:
    """What a view does to the places of a tensor's numbers.

    Raises:
        UnreadableError: if it copies.
    """
    sizes: tuple[int, ...] = ()
    origins, strides = [], []
    for dim, size in enumerate(shape):
        places = (
            torch.arange(size, device=_CPU).reshape([-1 if i == dim else 1 for i in range(len(shape))]).expand(*shape)
        )
        seen = view(places)
        if seen.untyped_storage().data_ptr() != places.untyped_storage().data_ptr():
            raise UnreadableError("the view of its adapter copies, which cannot be done shard by shard")
        sizes = tuple(seen.shape)
        origins.append(int(seen.storage_offset()))
        strides.append(tuple(step if size > 1 else 0 for step, size in zip(seen.stride(), seen.shape, strict=True)))
    return ViewMap(sizes, tuple(origins), tuple(strides))


@dataclass(frozen=True)
class Piece:
    """A tensor ``(num_units, ...)`` of which this rank holds some fragments.

    Attributes:
        shape: of the whole.
        dtype: of its numbers.
        device: where they lie.
        fragments: what this rank answers for.
        layout: the same for pieces that show the same numbers of a tensor in the same order.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    fragments: tuple[Fragment, ...]
    layout: object = None

    def __len__(self) -> int:
        return self.shape[0]


def piece_of(tensor: Tensor, view: Callable[[Tensor], Tensor]) -> Piece:
    """The rows ``view(tensor)`` of a distributed tensor, or of a plain one, for whose copies the first rank answers.

    Raises:
        UnreadableError: if this package does not know where the numbers lie.
    """
    if isinstance(tensor, DTensor):
        box = held(tensor)
    else:
        mine = tensor.detach() if dist.get_rank() == 0 else tensor.detach().new_empty([0] * tensor.ndim)
        box = Held(mine, (0,) * tensor.ndim, tuple(tensor.shape))
    layout = map_of(view, box.shape)
    return Piece(torch.Size(layout.sizes), tensor.dtype, box.numbers.device, tuple(fragments(box, layout)), layout)


def piece_of_flat(part: FlatPart, tensor: Tensor | None, view: Callable[[Tensor], Tensor]) -> Piece:
    """The rows of a parameter that FSDP1 manages, or of its gradient; of a rank that holds nothing it may be None."""
    boxes = [] if tensor is None else [Held(numbers, start, part.shape) for numbers, start in part.boxes(tensor)]
    layout = map_of(view, part.shape)
    found = tuple(fragment for box in boxes for fragment in fragments(box, layout))
    return Piece(torch.Size(layout.sizes), part.source.dtype, part.source.device, found, (part.key, layout))


class ShardedRows(Rows):
    """A matrix ``(n, d)`` whose numbers lie on several ranks.

    On the first rank, within :meth:`Team.run` and once :func:`read` has made it known to all, it does by asking what
    :class:`Rows` does; on every rank it answers.

    Args:
        pieces: as for :class:`Rows`, some of them sharded.
    """

    def __init__(self, pieces: Sequence[Tensor | Piece | Sequence[Tensor | Piece]]) -> None:
        whole = [_whole(piece) for piece in pieces]
        widths = [math.prod(piece.shape[1:]) for piece in whole]
        self._describe(len(whole[0]), widths, {piece.dtype for piece in whole}, whole[0].device, is_small=False)
        self._fragments = [piece.fragments for piece in whole]
        self._sketch: Tensor | None = None
        self._team: Team | None = None
        self._place = -1

    # ---------------------------------------------------------------- asked by the first rank

    def known_as(self, team: Team, place: int, sketch: Tensor | None = None) -> None:
        """Note that all ranks of the team know this matrix as number ``place``."""
        self._team, self._place, self._sketch = team, place, sketch

    def sketch(self) -> Tensor:
        """Norm and projections of every row, ``(1 + NUM_PROJECTIONS, n)``."""
        assert self._sketch is not None
        return self._sketch.to(self.device)

    def project(self, index: Indices) -> Floats:
        """Products of a few rows with further random vectors, ``(NUM_FURTHER, m)``."""
        return to_host(self.ask("project", (NUM_FURTHER, len(index)), _short(index)))

    def positions(self, index: Indices) -> Floats:
        """Products of a few rows with one fixed random vector, ``(m,)``."""
        return to_host(self.ask("positions", (len(index),), _short(index)))

    def distances(self, index: Indices, leaders: Indices, scale: Floats) -> Floats:
        """L2 distances of the rows at ``index`` from those at ``leaders``, divided by ``scale``; all ``(m,)``.

        The rows of a few leaders are sent to all. Those of many would be half the matrix: then the distances are
        estimated by the products of the differences with further random vectors. An estimate is less than a third of
        the truth once in 50 times, but less than a hundredth once in 50 million, and independent units lie farther off.
        """
        if not len(index):
            return np.empty(0)
        unique, place = np.unique(leaders, return_inverse=True)
        if len(unique) * self.width <= _MAX_FETCHED:
            rows = self.fetch(unique).numpy()
            return np.sqrt(to_host(self.ask("squares", (len(index),), _short(index), _short(place), rows, scale)))
        apart = to_host(self.ask("differences", (NUM_FURTHER, len(index)), _short(index), _short(leaders)))
        distances: Floats = np.sqrt(np.square(apart / scale).mean(axis=0))
        return distances

    def constants(self, index: Indices, piece: int = 0) -> Floats:
        """The number that every weight of a row equals, for a few rows, ``(m,)``; NaN where weights differ."""
        bounds = self.ask("bounds", (2, len(index)), _short(index), piece, is_largest=True, dtype=self.compute_dtype)
        largest, negated = to_host(bounds)
        return np.where(largest == -negated, largest, math.nan)

    def sums_by(self, index: Indices, label: Indices) -> tuple[Floats, Floats]:
        """As :meth:`Rows.sums_by`."""
        _, num_labels = columns_by(label, self.width)
        found = to_host(self.ask("sums", (len(index), num_labels + 1), _short(index), _short(label)))
        return found[:, :-1], np.sqrt(found[:, -1])

    def fetch(self, index: Indices) -> Tensor:
        """The rows ``(m, d)`` at ``index`` ``(m,)``, in the dtype of the computation, on the CPU."""
        return self.ask("fetch", (len(index), self.width), _short(index), dtype=self.compute_dtype)

    def largest(self, index: Indices) -> Tensor:
        """The largest absolute value of each row at ``index``, ``(m,)``."""
        return self.ask("largest", (len(index),), _short(index), is_largest=True).to(self.device)

    def scaled_norms(self, index: Indices, scale: Floats) -> Floats:
        """Norms ``(m,)`` of the rows at ``index`` by way of squares that cannot leave the range of the dtype."""
        return scale * np.sqrt(to_host(self.ask("scaled", (len(index),), _short(index), scale)))

    def ask(
        self,
        kind: str,
        shape: tuple[int, ...],
        *arguments: Any,
        is_largest: bool = False,
        dtype: torch.dtype = torch.float64,
        names: Sequence[Name] = (),
    ) -> Tensor:
        """What all ranks together say, of a shape."""
        assert self._team is not None
        request = Request(kind, {self._place: math.prod(shape)}, arguments, dtype, is_largest, names)
        [answer] = self._team.ask(request, lambda name: self)
        if answer.has_failed or answer.is_missing:
            raise TeamError(self._team.what_failed())
        return answer.numbers.reshape(shape)

    # ---------------------------------------------------------------- answered by every rank

    def answer(self, kind: str, numbers: Tensor, *arguments: Any) -> None:
        """Put what this rank holds into the answer to a question of the first rank."""
        part = numbers.to(self.device)  # shards that are offloaded lie elsewhere
        getattr(self, f"_add_{kind}")(part, *arguments)
        numbers.copy_(part)

    def _add_sketch(self, numbers: Tensor) -> None:
        sketch = numbers.view(1 + NUM_PROJECTIONS, self.num_rows)
        for piece, offset in enumerate(self._offsets):
            for fragment in self._fragments[piece]:
                chunk, vectors = self._vectors(fragment, offset, self.widths[piece])
                for first, block in _blocks(fragment, self.compute_dtype):
                    norms, products = reduce_rows(block, vectors, chunk)
                    here = sketch[:, first : first + len(block)]
                    here[0] += norms.double().square()
                    here[1:] += products

    def _vectors(self, fragment: Fragment, offset: int, width: int) -> tuple[int, Tensor]:
        """Columns that share a number, and these numbers for each chunk of columns, ``(NUM_PROJECTIONS, c)``."""
        chunk = chunk_of(width)
        vectors = random_vectors(offset, NUM_PROJECTIONS, -(-width // chunk), self.compute_dtype, self.device)
        first, last = fragment.first_column, fragment.last_column
        if first % chunk == 0 and last - first + 1 == fragment.num_columns:
            return chunk, vectors[:, first // chunk : last // chunk + 1]
        return 1, vectors[:, fragment.columns() // chunk]

    def _add_project(self, numbers: Tensor, index: Indices, sign: float = 1.0) -> None:
        products = numbers.view(NUM_FURTHER, len(index))
        for fragment in self._all_fragments():
            vectors = self._further_vectors(fragment.columns())
            for place, block in _blocks_at(fragment, index):
                products[:, place] += sign * (vectors @ block.T)

    def _add_positions(self, numbers: Tensor, index: Indices) -> None:
        [vector] = random_vectors(-2, 1, min(self.width, PERIOD), torch.float64, self.device)
        for fragment in self._all_fragments():
            columns = fragment.columns()
            signed = vector[columns % PERIOD] * (1 - columns // PERIOD % 2 * 2)
            for place, block in _blocks_at(fragment, index):
                numbers[place] += block @ signed

    def _add_differences(self, numbers: Tensor, index: Indices, leaders: Indices) -> None:
        self._add_project(numbers, index)
        self._add_project(numbers, leaders, -1.0)

    def _add_squares(self, numbers: Tensor, index: Indices, place: Indices, rows: Floats, scale: Floats) -> None:
        leaders, leader, size = (torch.from_numpy(array).to(self.device) for array in (rows, place, scale))
        for fragment in self._all_fragments():
            columns = fragment.columns()
            for here, block in _blocks_at(fragment, index):
                apart = block - leaders[leader[here]][:, columns]
                numbers[here] += (apart / size[here, None]).square().sum(dim=1)

    def _add_bounds(self, numbers: Tensor, index: Indices, piece: int) -> None:
        bounds = numbers.view(2, len(index))
        for fragment in self._fragments[piece]:
            for place, block in _blocks_at(fragment, index):
                found = torch.stack([block.amax(dim=1), -block.amin(dim=1)]).to(bounds)
                bounds[:, place] = torch.maximum(bounds[:, place], found)

    def _add_sums(self, numbers: Tensor, index: Indices, label: Indices) -> None:
        to, num_labels = columns_by(label, self.width)
        found = numbers.view(len(index), num_labels + 1)
        for fragment in self._all_fragments():
            into = to.to(self.device)[fragment.columns()]
            for place, block in _blocks_at(fragment, index):
                sums = torch.zeros(len(place), num_labels + 1, dtype=block.dtype, device=self.device)
                sums.index_add_(1, into, block)
                sums[:, -1] = block.square().sum(dim=1)
                found[place] += sums

    def _add_fetch(self, numbers: Tensor, index: Indices) -> None:
        rows = numbers.view(len(index), self.width)
        for fragment in self._all_fragments():
            columns = fragment.columns()
            for place, block in _blocks_at(fragment, index):
                rows[place[:, None], columns] = block.to(rows.dtype)

    def _add_heads(self, numbers: Tensor, piece: int) -> None:
        heads = numbers.view(self.num_rows, -1)
        for fragment in self._fragments[piece]:
            if fragment.first_column < heads.shape[1]:
                columns = fragment.columns()
                here = columns < heads.shape[1]
                for first, block in _blocks(fragment, torch.float64):
                    heads[first : first + len(block), columns[here]] = block[:, here]

    def _add_largest(self, numbers: Tensor, index: Indices) -> None:
        for fragment in self._all_fragments():
            for place, block in _blocks_at(fragment, index):
                numbers[place] = torch.maximum(numbers[place], block.abs().amax(dim=1))

    def _add_scaled(self, numbers: Tensor, index: Indices, scale: Floats) -> None:
        size = torch.from_numpy(scale).to(self.device)
        for fragment in self._all_fragments():
            for place, block in _blocks_at(fragment, index):
                numbers[place] += (block / size[place, None]).square().sum(dim=1)

    @cached_property
    def _offsets(self) -> list[int]:
        """The first column of every piece."""
        return [sum(self.widths[:piece]) for piece in range(len(self.widths))]

    def _all_fragments(self) -> Iterator[Fragment]:
        """The fragments of all pieces, with their places in the whole row."""
        for offset, fragments_of_piece in zip(self._offsets, self._fragments, strict=True):
            for fragment in fragments_of_piece:
                yield replace(fragment, offset=offset)

    def _further_vectors(self, columns: Tensor) -> Tensor:
        # Rows so long are whole modules; a number per column would take more memory than the module does.
        chunk = 1 if self.width <= _MAX_DENSE else chunk_of(self.width)
        number = -(-self.width // chunk)
        vectors = random_vectors(-1, NUM_FURTHER, number, torch.float64, self.device)
        return vectors[:, columns // chunk]


def read(team: Team, matrices: Mapping[Name, ShardedRows]) -> dict[Name, str]:
    """Make matrices known to all ranks, and read them once; for the first rank only.

    Returns:
        By name, why a matrix cannot be read; an empty reason means that some rank does not have it.
    """
    if not matrices:
        return {}
    first = team.num_matrices
    sizes = {first + i: (1 + NUM_PROJECTIONS) * rows.num_rows for i, rows in enumerate(matrices.values())}
    answers = team.ask(Request("sketch", sizes, names=list(matrices)), matrices.__getitem__)
    reason = team.what_failed() if any(answer.has_failed for answer in answers) else ""
    failures: dict[Name, str] = {}
    for place, (name, rows), answer in zip(sizes, matrices.items(), answers, strict=True):
        if answer.has_failed or answer.is_missing:
            failures[name] = reason if answer.has_failed else ""
            continue
        sketch = answer.numbers.view(1 + NUM_PROJECTIONS, rows.num_rows)
        sketch[0].sqrt_()
        rows.known_as(team, place, sketch)
    return failures


def heads(team: Team, name: Name, rows: Rows, piece: int, count: int) -> list[list[float]]:
    """The first few numbers of a piece of every row; for the first rank only."""
    assert isinstance(rows, ShardedRows)
    count = min(count, rows.widths[piece])
    rows.known_as(team, team.num_matrices)
    numbers: list[list[float]] = rows.ask("heads", (rows.num_rows, count), piece, names=[name]).tolist()
    return numbers


def equal_rows(team: Team, name: Name, rows: Rows) -> list[tuple[int, ...]]:
    """The groups of rows that are equal but not made of one number per piece; for the first rank only."""
    assert isinstance(rows, ShardedRows)
    failures = read(team, {name: rows})
    if failures:
        raise TeamError(failures[name] or f"{', '.join(name)} are not on every rank")
    [sketch] = sketch_all([rows])
    # Sums over several ranks are not added up in the same order for all rows.
    groups = find_groups(Question(rows, sketch, TOLERANCES[torch.float64]))
    firsts = np.array([group[0] for group in groups], dtype=np.intp)
    is_constant = np.ones(len(groups), dtype=np.bool_)
    for piece in range(len(rows.widths) if len(groups) else 0):
        is_constant &= ~np.isnan(rows.constants(firsts, piece))
    return [group for group, constant in zip(groups, is_constant.tolist(), strict=True) if not constant]


def _whole(piece: Tensor | Piece | Sequence[Tensor | Piece]) -> Piece:
    """A piece that may lie on several ranks or be made of one tensor per row."""
    if isinstance(piece, Piece):
        return piece
    if isinstance(piece, Tensor):
        return piece_of(piece, lambda tensor: tensor)
    rows = [_whole(part) for part in piece]
    found = tuple(
        replace(fragment, rows=slice(row, row + 1)) for row, part in enumerate(rows) for fragment in part.fragments
    )
    return Piece(torch.Size([len(rows), *rows[0].shape[1:]]), rows[0].dtype, rows[0].device, found)


def _blocks(fragment: Fragment, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """The rows of a fragment, as many as are read at once: the place of the first, ``(m, w)``."""
    step = _step(fragment)
    for start in range(0, len(fragment.numbers), step):
        block = fragment.numbers[start : start + step]
        yield fragment.rows.start + start, block.reshape(len(block), fragment.num_columns).to(dtype)


def _blocks_at(fragment: Fragment, index: Indices) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows at ``index`` that a fragment holds, in float64: their places in ``index``, ``(m, w)``."""
    device = fragment.numbers.device
    places = np.flatnonzero((index >= fragment.rows.start) & (index < fragment.rows.stop))
    step = _step(fragment)
    for start in range(0, len(places), step):
        part = places[start : start + step]
        rows = torch.from_numpy(index[part] - fragment.rows.start).to(device)
        block = fragment.numbers.index_select(0, rows)
        yield torch.from_numpy(part).to(device), block.reshape(len(part), fragment.num_columns).to(torch.float64)


def _step(fragment: Fragment) -> int:
    return max(1, elements(COPY_ELEMENTS, fragment.numbers.device) // max(1, fragment.num_columns))


def _short(index: Indices) -> npt.NDArray[np.int32]:
    """In half the bytes."""
    return index.astype(np.int32)
