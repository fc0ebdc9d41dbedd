"""Sharded tensors: the box of a tensor on this rank, and the fragments of rows in it.

The adapter of a layer shows a whole tensor through a view, whose first dimension counts units. A rank holds a
:class:`Box` of the tensor. :func:`fragments` combines the two: it applies the view to the coordinates of the numbers
instead of the numbers, so nothing is sent or copied.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_symmetry.matrices.numerics import COPY_ELEMENTS, CPU, Integers, elements_at_once
from lightning_symmetry.ranks.flat import FlatPart, boxes

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

View = Callable[[Tensor], Tensor]
"""Returns a view of a tensor whose first dimension counts units: ``tensor -> (num_units, ...)``."""


class UnreadableError(Exception):
    """Raised by the functions of this module if the numbers of a tensor cannot be located; the message says why."""


class Box(NamedTuple):
    """The box of a tensor for which this rank answers."""

    numbers: Tensor  # the numbers in the box; none if another rank answers for them, for example for a replica
    start: tuple[int, ...]  # coordinates in the whole tensor at which the box begins
    tensor_shape: tuple[int, ...]  # shape of the whole tensor


@dataclass(frozen=True)
class Fragment:
    """This rank's parts of consecutive rows of a matrix."""

    numbers: Tensor  # a view ``(m, ...)`` of this rank's numbers
    rows: slice  # the ``m`` rows of the matrix
    # for every dimension of a row, the first index, the last index, and the step in columns between neighbours
    runs: tuple[tuple[int, int, int], ...]
    offset: int = 0  # column of the matrix at which the fragment's piece begins

    @property
    def num_columns(self) -> int:
        """Number of columns, ``w``."""
        return math.prod(last - first + 1 for first, last, _ in self.runs)

    @property
    def first_column(self) -> int:
        """The first column; the others follow in ascending order, possibly with gaps."""
        return self.offset + sum(first * step for first, _, step in self.runs)

    @property
    def last_column(self) -> int:
        """The last column."""
        return self.offset + sum(last * step for _, last, step in self.runs)

    def columns(self) -> Tensor:
        """Return all columns, ``(w,)``."""
        columns = torch.tensor([self.offset], device=CPU)
        for first, last, step in self.runs:
            columns = (columns[:, None] + torch.arange(first, last + 1, device=CPU) * step).flatten()
        return columns.to(self.numbers.device)

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """Read all rows in blocks of limited size; yield the index of the first row, and the block ``(m, w)``."""
        step = self._rows_at_once()
        for start in range(0, len(self.numbers), step):
            block = self.numbers[start : start + step]
            yield self.rows.start + start, block.reshape(len(block), self.num_columns).to(dtype)

    def blocks_at(self, index: Integers) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows at ``index`` in this fragment; yield their places in ``index``, and ``(m, w)`` in float64."""
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


class ViewMap(NamedTuple):
    """A view as an affine map from coordinates in the view to coordinates in the tensor."""

    sizes: tuple[int, ...]  # shape of the view
    origins: tuple[int, ...]  # for every dimension of the tensor, the coordinate of the view's first number
    # for every dimension of the tensor, the step of the coordinate along each dimension of the view
    strides: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Piece:
    """A tensor ``(num_units, ...)`` with fragments on this rank."""

    shape: torch.Size  # shape of the whole tensor
    dtype: torch.dtype  # dtype of its numbers
    device: torch.device  # device of this rank's numbers
    fragments: tuple[Fragment, ...]  # the fragments for which this rank answers
    layout: object = None  # equal for pieces that show the same numbers of a tensor in the same order

    def __len__(self) -> int:
        return self.shape[0]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, whose numbers lie on several ranks."""
    # Importing the module takes half as long as importing PyTorch. Where a DTensor exists, it is imported already.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def part_of_rows(tensor: Tensor, view: View) -> Tensor | Piece:
    """Return the rows ``view(tensor)``, or for a sharded tensor this rank's piece of them."""
    return piece_of(tensor, view) if is_sharded(tensor) else view(tensor.detach())


def piece_of(tensor: Tensor, view: View) -> Piece:
    """Return this rank's piece of the rows ``view(tensor)``; for a tensor that is whole, the first rank answers."""
    if is_sharded(tensor):
        box = local_box(cast("DTensor", tensor))
    else:
        mine = tensor.detach() if dist.get_rank() == 0 else tensor.detach().new_empty([0] * tensor.ndim)
        box = Box(mine, (0,) * tensor.ndim, tuple(tensor.shape))
    layout = view_map_of(view, box.tensor_shape)
    return Piece(torch.Size(layout.sizes), tensor.dtype, box.numbers.device, tuple(fragments(box, layout)), layout)


def piece_of_part(part: FlatPart, numbers: Tensor, view: View, dtype: torch.dtype) -> Piece:
    """Return this rank's piece of the rows of a flattened parameter, or of its gradient.

    ``numbers`` ``(part.length,)`` are this rank's numbers of either, ``dtype`` is their nominal dtype on all ranks.
    """
    here = [Box(box, start, part.shape) for box, start in boxes(numbers, part.start, part.shape)]
    layout = view_map_of(view, part.shape)
    found = tuple(fragment for box in here for fragment in fragments(box, layout))
    return Piece(torch.Size(layout.sizes), dtype, part.source.device, found, (part.key, layout))


def as_piece(piece: Tensor | Piece | Sequence[Tensor | Piece]) -> Piece:
    """Make a piece from a tensor, a piece, or one tensor or piece per row."""
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
    """Return this rank's box of a distributed tensor, without communication."""
    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    local = tensor.to_local().detach()
    nothing = Box(local.new_empty([0] * len(shape)), (0,) * len(shape), shape)
    coordinate = mesh.get_coordinate()
    # Only one of several replicas is read: that on the mesh of the first rank with coordinate 0 along each dimension
    # that replicates.
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
    """Return the dimensions of the mesh along which a tensor is sharded, in the order of sharding."""
    if any(placement.is_partial() for placement in tensor.placements):
        raise UnreadableError("its numbers are partial sums")
    sharded = [i for i, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    order: list[int] = []
    for i in reversed(sharded):
        placement = tensor.placements[i]
        if not hasattr(placement, "dim"):
            raise UnreadableError(f"its placement {placement} is unknown")
        later = [j for j in order if tensor.placements[j].dim == placement.dim]  # type: ignore[attr-defined]
        factor = getattr(placement, "split_factor", 1)
        if factor == 1:
            order.insert(0, i)
        elif factor == math.prod(tensor.device_mesh.size(j) for j in later):
            order.append(i)
        else:
            raise UnreadableError(f"its placement {placement} is unknown")
    return order


def fragments(box: Box, view: ViewMap) -> Iterator[Fragment]:
    """Yield the parts of the rows ``view(tensor)``, ``(num_units, ...)``, that lie in a box of the tensor."""
    if not box.numbers.numel():
        return
    widths = [math.prod(view.sizes[k + 1 :]) for k in range(1, len(view.sizes))]
    box_strides = box.numbers.stride()
    # The stride in memory along each dimension of the view.
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
    """Yield where the parts of a view that lie in a box begin and end, in coordinates of the view."""
    sizes, strides = view.sizes, view.strides
    # The dimensions of the tensor that are not completely in the box, with the dimensions of the view along them.
    cut = [
        (dim, [k for k, stride in enumerate(strides[dim]) if stride])
        for dim, size in enumerate(box.tensor_shape)
        if box.numbers.shape[dim] < size
    ]
    # If several dimensions of the view run along one of the tensor, such as gates and units, iterate over all but the
    # one with the smallest stride. Along that one, the part in the box is an interval.
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
    """Return a view as an affine map, found by applying it to the coordinates of a tensor of that shape."""
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
