"""Tensors of which every rank holds a part: boxes of tensors, and the fragments of rows that lie in them.

A layer sees a sharded tensor in full, through the view of its adapter, whose first dimension counts units. A rank holds
a box of the tensor, :class:`Held`. :func:`fragments` puts the two together: it applies the view to the places of the
numbers instead of the numbers themselves, so nothing is sent and nothing is copied.
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

from lightning_symmetry.matrices.rows import COPY_ELEMENTS, Indices, UnreadableError, elements
from lightning_symmetry.ranks.fsdp1 import FlatPart

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

View = Callable[[Tensor], Tensor]

# Places are counted on the CPU, whatever the user's default device is.
_CPU = torch.device("cpu")


def is_sharded(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor lie on several ranks."""
    # Without importing what takes as long as half of PyTorch: whoever has such a tensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


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


def map_of(view: View, shape: Sequence[int]) -> ViewMap:
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


def piece_of(tensor: Tensor, view: View) -> Piece:
    """The rows ``view(tensor)`` of a distributed tensor, or of a plain one, for whose copies the first rank answers.

    Raises:
        UnreadableError: if this package does not know where the numbers lie.
    """
    if is_sharded(tensor):
        box = held(cast("DTensor", tensor))
    else:
        mine = tensor.detach() if dist.get_rank() == 0 else tensor.detach().new_empty([0] * tensor.ndim)
        box = Held(mine, (0,) * tensor.ndim, tuple(tensor.shape))
    layout = map_of(view, box.shape)
    return Piece(torch.Size(layout.sizes), tensor.dtype, box.numbers.device, tuple(fragments(box, layout)), layout)


def piece_of_part(part: FlatPart, tensor: Tensor | None, view: View) -> Piece:
    """The rows of a parameter that FSDP1 manages, or of its gradient; of a rank that holds nothing it may be None."""
    boxes = [] if tensor is None else [Held(numbers, start, part.shape) for numbers, start in part.boxes(tensor)]
    layout = map_of(view, part.shape)
    found = tuple(fragment for box in boxes for fragment in fragments(box, layout))
    return Piece(torch.Size(layout.sizes), part.source.dtype, part.source.device, found, (part.key, layout))


def part_of_rows(tensor: Tensor, view: View) -> Tensor | Piece:
    """The rows ``view(tensor)``, or what this rank holds of them."""
    if not is_sharded(tensor):
        return view(tensor.detach())
    return piece_of(tensor, view)


def whole_piece(piece: Tensor | Piece | Sequence[Tensor | Piece]) -> Piece:
    """A piece that may lie on several ranks or be made of one tensor per row."""
    if isinstance(piece, Piece):
        return piece
    if isinstance(piece, Tensor):
        return piece_of(piece, lambda tensor: tensor)
    rows = [whole_piece(part) for part in piece]
    found = tuple(
        replace(fragment, rows=slice(row, row + 1)) for row, part in enumerate(rows) for fragment in part.fragments
    )
    return Piece(torch.Size([len(rows), *rows[0].shape[1:]]), rows[0].dtype, rows[0].device, found)


def blocks(fragment: Fragment, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """The rows of a fragment, as many as are read at once: the place of the first, ``(m, w)``."""
    step = _rows_at_once(fragment)
    for start in range(0, len(fragment.numbers), step):
        block = fragment.numbers[start : start + step]
        yield fragment.rows.start + start, block.reshape(len(block), fragment.num_columns).to(dtype)


def blocks_at(fragment: Fragment, index: Indices) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows at ``index`` that a fragment holds, in float64: their places in ``index``, ``(m, w)``."""
    device = fragment.numbers.device
    places = np.flatnonzero((index >= fragment.rows.start) & (index < fragment.rows.stop))
    step = _rows_at_once(fragment)
    for start in range(0, len(places), step):
        part = places[start : start + step]
        rows = torch.from_numpy(index[part] - fragment.rows.start).to(device)
        block = fragment.numbers.index_select(0, rows)
        yield torch.from_numpy(part).to(device), block.reshape(len(part), fragment.num_columns).to(torch.float64)


def _rows_at_once(fragment: Fragment) -> int:
    return max(1, elements(COPY_ELEMENTS, fragment.numbers.device) // max(1, fragment.num_columns))
