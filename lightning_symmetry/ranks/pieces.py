"""Tensors of which every rank holds a part: boxes of tensors, and the fragments of rows that lie in them.

A layer sees a sharded tensor in full, through the view of its adapter, whose first dimension counts units. A rank holds
a box of the tensor, :class:`Box`. :func:`fragments` puts the two together: it applies the view to the coordinates of
the numbers instead of the numbers themselves, so nothing is sent and nothing is copied.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_symmetry.matrices.numerics import COPY_ELEMENTS, CPU, Integers, elements_at_once
from lightning_symmetry.ranks.flat import FlatPart

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

View = Callable[[Tensor], Tensor]
"""Shows a tensor so that its first dimension counts units, without copying it: ``tensor -> (num_units, ...)``."""


class UnreadableError(Exception):
    """A tensor whose numbers this package cannot find; the message says why."""


@dataclass(frozen=True)
class Box:
    """The box of a tensor that this rank answers for.

    Attributes:
        numbers: the numbers in the box; none if another rank answers for them, for example for a replica.
        start: the coordinates in the whole tensor at which the box begins.
        tensor_shape: the shape of the whole tensor.
    """

    numbers: Tensor
    start: tuple[int, ...]
    tensor_shape: tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """Parts of some consecutive rows of a matrix, as this rank holds them.

    Attributes:
        numbers: a view ``(m, ...)`` of what this rank holds.
        rows: which rows of the matrix these ``m`` are.
        runs: for every dimension of a row the first index, the last index, and the number of columns between two
            neighbouring indices.
        offset: the column of the matrix at which the piece that holds the fragment begins.
    """

    numbers: Tensor
    rows: slice
    runs: tuple[tuple[int, int, int], ...]
    offset: int = 0

    @property
    def num_columns(self) -> int:
        """Number of columns, ``w``."""
        return math.prod(last - first + 1 for first, last, _ in self.runs)

    @property
    def first_column(self) -> int:
        """The first of its columns; the others follow in ascending order, not always without gaps."""
        return self.offset + sum(first * step for first, _, step in self.runs)

    @property
    def last_column(self) -> int:
        """The last of its columns."""
        return self.offset + sum(last * step for _, last, step in self.runs)

    def columns(self) -> Tensor:
        """All of its columns, ``(w,)``."""
        columns = torch.tensor([self.offset], device=CPU)
        for first, last, step in self.runs:
            columns = (columns[:, None] + torch.arange(first, last + 1, device=CPU) * step).flatten()
        return columns.to(self.numbers.device)

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """Read all rows, few enough at once; yields the index of the first row, and ``(m, w)``."""
        step = self._rows_at_once()
        for start in range(0, len(self.numbers), step):
            block = self.numbers[start : start + step]
            yield self.rows.start + start, block.reshape(len(block), self.num_columns).to(dtype)

    def blocks_at(self, index: Integers) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows at ``index`` that are here; yields their places in ``index``, and ``(m, w)`` in float64."""
        device = self.numbers.device
        places = np.flatnonzero((index >= self.rows.start) & (index < self.rows.stop))
        step = self._rows_at_once()
        for start in range(0, len(places), step):
            part = places[start : start + step]
            rows = torch.from_numpy(index[part] - self.rows.start).to(device)
            block = self.numbers.index_select(0, rows)
            yield torch.from_numpy(part).to(device), block.reshape(len(part), self.num_columns).to(torch.float64)

    def _rows_at_once(self) -> int:
        return max(1, elements_at_once(COPY_ELEMENTS, self.numbers.device) // max(1, self.num_columns))


@dataclass(frozen=True)
class ViewMap:
    """A view as a linear map, from coordinates in the view to coordinates in the tensor.

    Attributes:
        sizes: the shape of the view.
        origins: for every dimension of the tensor, the coordinate of the view's first number.
        strides: for every dimension of the tensor, by how much the coordinate grows along each dimension of the view.
    """

    sizes: tuple[int, ...]
    origins: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Piece:
    """A tensor ``(num_units, ...)`` of which this rank holds some fragments.

    Attributes:
        shape: the shape of the whole tensor.
        dtype: the dtype of its numbers.
        device: where the numbers of this rank lie.
        fragments: the fragments that this rank answers for.
        layout: equal for pieces that show the same numbers of a tensor in the same order.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    fragments: tuple[Fragment, ...]
    layout: object = None

    def __len__(self) -> int:
        return self.shape[0]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a distributed one, whose numbers lie on several ranks."""
    # Without importing what takes as long as half of PyTorch: whoever has such a tensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def part_of_rows(tensor: Tensor, view: View) -> Tensor | Piece:
    """The rows ``view(tensor)`` of a tensor that is here, or the piece of them that this rank holds.

    Raises:
        UnreadableError: if the tensor is sharded and this package does not know where its numbers lie.
    """
    return piece_of(tensor, view) if is_sharded(tensor) else view(tensor.detach())


def piece_of(tensor: Tensor, view: View) -> Piece:
    """What this rank holds of the rows ``view(tensor)`` of a distributed tensor, or of a plain one.

    Every rank has a copy of a plain tensor; the first rank answers for all of them.

    Raises:
        UnreadableError: if this package does not know where the numbers lie.
    """
    if is_sharded(tensor):
        box = local_box(cast("DTensor", tensor))
    else:
        mine = tensor.detach() if dist.get_rank() == 0 else tensor.detach().new_empty([0] * tensor.ndim)
        box = Box(mine, (0,) * tensor.ndim, tuple(tensor.shape))
    layout = view_map_of(view, box.tensor_shape)
    return Piece(torch.Size(layout.sizes), tensor.dtype, box.numbers.device, tuple(fragments(box, layout)), layout)


def piece_of_part(part: FlatPart, numbers: Tensor, view: View, dtype: torch.dtype) -> Piece:
    """What this rank holds of the rows of a parameter that is cut into flat parts, or of those of its gradient.

    Args:
        part: what this rank holds of the parameter.
        numbers: this rank's numbers of the parameter or of its gradient, ``(part.length,)``.
        view: the view of the adapter.
        dtype: what the numbers are taken to have, the same on all ranks.

    Raises:
        UnreadableError: if the view copies.
    """
    boxes = [Box(box, start, part.shape) for box, start in part.boxes(numbers)]
    layout = view_map_of(view, part.shape)
    found = tuple(fragment for box in boxes for fragment in fragments(box, layout))
    return Piece(torch.Size(layout.sizes), dtype, part.source.device, found, (part.key, layout))


def as_piece(piece: Tensor | Piece | Sequence[Tensor | Piece]) -> Piece:
    """Make one piece of a tensor, of a piece, or of one tensor or piece per row."""
    if isinstance(piece, Piece):
        return piece
    if isinstance(piece, Tensor):
        return piece_of(piece, lambda tensor: tensor)
    rows = [as_piece(part) for part in piece]
    found = tuple(
        replace(fragment, rows=slice(row, row + 1)) for row, part in enumerate(rows) for fragment in part.fragments
    )
    return Piece(torch.Size([len(rows), *rows[0].shape[1:]]), rows[0].dtype, rows[0].device, found)


def local_box(tensor: DTensor) -> Box:
    """What this rank holds of a distributed tensor, without any communication.

    Raises:
        UnreadableError: if the tensor is laid out in a way that this package does not know.
    """
    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    local = tensor.to_local().detach()
    nothing = Box(local.new_empty([0] * len(shape)), (0,) * len(shape), shape)
    coordinate = mesh.get_coordinate()
    # One of several copies is read: on the mesh that the first rank belongs to, the first along every dimension of the
    # mesh that holds copies.
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
    return Box(local.reshape(size), tuple(start), shape)


def _in_order_of_sharding(tensor: DTensor) -> list[int]:
    """The dimensions of the mesh along which a tensor is sharded, in the order in which it was sharded."""
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


def fragments(box: Box, view: ViewMap) -> Iterator[Fragment]:
    """The parts of the rows ``view(tensor)``, ``(num_units, ...)``, of the whole tensor that lie in a box of it."""
    if not box.numbers.numel():
        return
    widths = [math.prod(view.sizes[k + 1 :]) for k in range(1, len(view.sizes))]
    box_strides = box.numbers.stride()
    # How far a step along each dimension of the view leads in memory.
    steps = [
        sum(stride * along[k] for stride, along in zip(box_strides, view.strides, strict=True))
        for k in range(len(view.sizes))
    ]
    for first, last in _parts_of_view(box, view):
        corner = [
            origin + sum(stride * place for stride, place in zip(along, first, strict=True)) - start
            for origin, along, start in zip(view.origins, view.strides, box.start, strict=True)
        ]
        offset = sum(stride * place for stride, place in zip(box_strides, corner, strict=True))
        shape = [b - a for a, b in zip(first, last, strict=True)]
        numbers = box.numbers.as_strided(shape, steps, box.numbers.storage_offset() + offset)
        runs = tuple((a, b - 1, step) for a, b, step in zip(first[1:], last[1:], widths, strict=True))
        yield Fragment(numbers, slice(first[0], last[0]), runs)


def _parts_of_view(box: Box, view: ViewMap) -> Iterator[tuple[list[int], list[int]]]:
    """The parts of a view that lie in a box: where each begins and ends, in coordinates of the view."""
    sizes, strides = view.sizes, view.strides
    # The dimensions of the tensor that the box does not hold in full, with the dimensions of the view along them.
    cut = [
        (dim, [k for k, stride in enumerate(strides[dim]) if stride])
        for dim, size in enumerate(box.tensor_shape)
        if box.numbers.shape[dim] < size
    ]
    # Where several dimensions of the view run along one of the tensor, such as gates and units, all but the finest are
    # gone through one by one, so that what lies in the box is an interval of the finest.
    finest = {dim: min(along, key=strides[dim].__getitem__) for dim, along in cut if along}
    listed = sorted({k for dim, along in cut for k in along if k != finest[dim]})
    for places in product(*(range(sizes[k]) for k in listed)):
        first, last = [0] * len(sizes), list(sizes)
        for k, place in zip(listed, places, strict=True):
            first[k], last[k] = place, place + 1
        for dim, along in cut:
            reached = view.origins[dim] + sum(strides[dim][k] * first[k] for k in along if k in listed)
            low, high = box.start[dim] - reached, box.start[dim] + box.numbers.shape[dim] - reached
            if along:
                k, stride = finest[dim], strides[dim][finest[dim]]
                first[k], last[k] = max(first[k], -(-low // stride)), min(last[k], -(-high // stride))
            elif not low <= 0 < high:
                last[0] = 0
        if all(a < b for a, b in zip(first, last, strict=True)):
            yield first, last


def view_map_of(view: View, shape: Sequence[int]) -> ViewMap:
    """Find out where a view takes its numbers from, by applying it to the coordinates of a tensor of that shape.

    Raises:
        UnreadableError: if the view copies.
    """
    sizes: tuple[int, ...] = ()
    origins, strides = [], []
    for dim, size in enumerate(shape):
        shape_along_dim = [-1 if i == dim else 1 for i in range(len(shape))]
        coordinates = torch.arange(size, device=CPU).reshape(shape_along_dim).expand(*shape)
        seen = view(coordinates)
        if seen.untyped_storage().data_ptr() != coordinates.untyped_storage().data_ptr():
            raise UnreadableError("the view of its adapter copies, which cannot be done shard by shard")
        sizes = tuple(seen.shape)
        origins.append(int(seen.storage_offset()))
        strides.append(tuple(step if size > 1 else 0 for step, size in zip(seen.stride(), seen.shape, strict=True)))
    return ViewMap(sizes, tuple(origins), tuple(strides))
