"""Matrices whose tensors are complete on this process. They are read in place and never copied whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.numerics import (
    BLOCK_ELEMENTS,
    COPY_ELEMENTS,
    CPU,
    Floats,
    Indices,
    chunk_sums,
    columns_by,
    elements_at_once,
    has_exact_products,
    is_column_major,
    norms_of,
    reduce_rows,
    to_host,
)
from lightning_symmetry.matrices.projections import (
    NUM_FURTHER,
    NUM_PROJECTIONS,
    PERIOD,
    chunk_of,
    further_chunk_of,
    further_vectors,
    position_vector,
    random_vectors,
    rough_vectors,
)
from lightning_symmetry.matrices.rows import Rows

NEAR_ENOUGH = 0.01
"""Relative distance of two rows up to which a product with their difference is exact enough in float32."""

# Below this size the overhead of calling PyTorch dominates, so matrices of one shape are read together.
_SMALL_ELEMENTS = 1 << 16
_WITH_FLOAT64 = ("cpu", "cuda")  # kinds of devices that certainly compute in float64
# A tensor that cannot be flattened without a copy is read plane by plane, unless it has more planes than this.
_MAX_PLANES = 8


class DenseRows(Rows):
    """A matrix ``(n, d)`` whose tensors are complete on this process.

    Args:
        pieces: tensors of shape ``(n, ...)`` with any strides, or lists of ``n`` tensors of one shape; the dimensions
            of a row count as flattened.

    The matrix is small (``is_small``) if it may be copied together with others into one float64 matrix.
    """

    def __init__(self, pieces: Sequence[Tensor | Sequence[Tensor]]) -> None:
        self.pieces = tuple(pieces)
        samples = [piece if isinstance(piece, Tensor) else piece[0] for piece in self.pieces]
        num_rows = len(self.pieces[0])
        is_tensor = [sample is piece for sample, piece in zip(samples, self.pieces, strict=True)]
        widths = [
            sample.numel() // max(1, num_rows) if whole else sample.numel()
            for sample, whole in zip(samples, is_tensor, strict=True)
        ]
        dtypes = {sample.dtype for sample in samples}
        super().__init__(num_rows, widths, dtypes, samples[0].device)
        is_in_reach = num_rows * self.width <= _SMALL_ELEMENTS and self.device.type in _WITH_FLOAT64
        self.is_small = is_in_reach and all(is_tensor)
        if self.is_small:
            self.chunk = 1
        self._is_converted = dtypes != {self.compute_dtype}

    @property
    def norms_stay_in_range(self) -> bool:
        return self.is_small and self.compute_dtype == torch.float32

    def sketch(self) -> Tensor:
        if self.is_small:
            return sketch_small([self])
        sketch: Tensor | None = None
        for start, block, vectors, chunk in self._blocks():
            norms, products = reduce_rows(block.to(self.compute_dtype), vectors, chunk)
            if sketch is None:
                if len(block) == self.num_rows:  # as a rule, the only block
                    sketch = torch.cat([norms[None], products])
                    continue
                sketch = norms.new_zeros(1 + NUM_PROJECTIONS, self.num_rows)
            here = sketch[:, start : start + len(block)]
            torch.hypot(here[0], norms, out=here[0])
            here[1:] += products
        if sketch is None:
            sketch = torch.zeros(1 + NUM_PROJECTIONS, self.num_rows, dtype=self.compute_dtype, device=self.device)
        return sketch

    def project(self, index: Indices) -> Floats:
        # In float64, in which no device rounds the input of a matrix product.
        device = self.device if self.device.type in _WITH_FLOAT64 else CPU
        chunk, vectors = further_chunk_of(self.width), further_vectors(self.width, torch.float64, device)
        gathered, widened = self._scratch(), torch.empty(0, dtype=torch.float64, device=device)
        parts = []
        for part in self._split(index):
            rows = self.fetch(part, gathered)
            sums = rows if chunk == 1 else chunk_sums(rows, chunk)
            # Into memory that is kept, as in `_scratch`.
            parts.append(vectors @ widened.resize_(sums.shape).copy_(sums).T)
        return to_host(torch.cat(parts, dim=1))

    def project_around(self, index: Indices, origins: Indices, scale: Floats) -> tuple[Floats, Floats]:
        is_exact = self.device == CPU and self.compute_dtype == torch.float32 and has_exact_products()
        if not is_exact or _is_extreme(scale, torch.float32) or further_chunk_of(self.width) > 1:
            return super().project_around(index, origins, scale)
        vectors = torch.split(further_vectors(self.width, torch.float32, CPU), list(self.widths), dim=1)
        of_pieces = [part.T.contiguous() for part in vectors]  # a product with this layout is twice as fast
        origins, place = np.unique(origins, return_inverse=True)
        gathered, gathered_origins, scratch = self._scratch(), self._scratch(), self._scratch()
        products = torch.zeros(len(index), NUM_FURTHER, dtype=torch.float32, device=CPU)
        distances = torch.zeros(len(index), dtype=torch.float32, device=CPU)
        end = 0
        for part in self._split(np.arange(len(index))):
            start, end = end, end + len(part)
            for i, of_piece in enumerate(of_pieces):
                here = self._at(i, index[part], gathered)
                there = self._at(i, origins[place[part]] if len(origins) > 1 else origins, gathered_origins)
                difference = torch.sub(here, there, out=scratch())
                products[start:end].addmm_(difference, of_piece)
                distances[start:end].hypot_(norms_of(difference, chunk=1))  # a rough sum suffices
        found = to_host(products).T + self.project(origins)[:, place]
        apart = to_host(distances) / scale
        is_far = apart > NEAR_ENOUGH
        found[:, is_far] = self.project(index[is_far])
        return found, apart

    def project_roughly(self, index: Indices) -> Floats:
        chunk, vectors = further_chunk_of(self.width), rough_vectors(self.width, self.compute_dtype, self.device)
        parts = []
        for part in self._split(index):
            if chunk > 1:
                parts.append(vectors @ chunk_sums(self.fetch(part), chunk).T)
                continue
            # Piece by piece: to put the pieces side by side would copy all of them.
            of_pieces = torch.split(vectors, list(self.widths), dim=1)
            products = [of_piece @ self._at(i, part).T for i, of_piece in enumerate(of_pieces)]
            parts.append(products[0] if len(products) == 1 else torch.stack(products).sum(dim=0))
        return to_host(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    def positions(self, index: Indices) -> Floats:
        vector = position_vector(self.width, self.compute_dtype, self.device)
        parts = []
        for part in self._split(index):
            rows = self.fetch(part)
            position = rows.new_zeros(len(rows))
            for i, block in enumerate(torch.split(rows, PERIOD, dim=1)):  # a row may be a whole module
                position += (-1) ** i * (block * vector[: block.shape[1]]).sum(dim=1)
            parts.append(position)
        return to_host(torch.cat(parts))

    def distances(self, index: Indices, others: Indices, scale: Floats, factors: Floats | None = None) -> Floats:
        # Differences are divided before they are squared where squares would leave the range of the dtype.
        is_extreme = _is_extreme(scale, self.compute_dtype)
        order = np.argsort(others, kind="stable")
        gathered, gathered_others, scratch = self._scratch(), self._scratch(), self._scratch()
        parts = []
        for part in self._split(order):
            rows, against = index[part], others[part]
            against = against[:1] if len(against) and against[0] == against[-1] else against
            times = None if factors is None else torch.from_numpy(factors[part]).to(self.device, self.compute_dtype)
            size = torch.from_numpy(scale[part]).to(self.device, self.compute_dtype)
            distance = torch.zeros_like(size)
            for i in range(len(self.pieces)):
                here, there = self._at(i, rows, gathered), self._at(i, against, gathered_others)
                there = there if times is None else there * times[:, None]
                difference = here - there if is_column_major(here) else torch.sub(here, there, out=scratch())
                if is_extreme:
                    difference /= size[:, None]
                distance = torch.hypot(distance, norms_of(difference, chunk=1))  # a rough sum suffices
            parts.append(distance if is_extreme else distance / size)
        distances = np.empty(len(index))
        distances[order] = to_host(torch.cat(parts))
        return distances

    def constants(self, index: Indices, piece: int = 0) -> Floats:
        parts = []
        for part in self._split(index):
            numbers = self._at(piece, part)
            first = numbers[:, 0]
            parts.append(torch.where((numbers == first[:, None]).all(dim=1), first, math.nan))
        return to_host(torch.cat(parts))

    def sums_by(self, index: Indices, label: Indices) -> tuple[Floats, Floats]:
        column_sum, num_sums = columns_by(label, self.width)
        sums, squares = np.zeros((len(index), num_sums)), np.zeros(len(index))
        for part in self._split(np.arange(len(index))):
            rows = self.fetch(index[part]).to(CPU, torch.float64)
            sums[part] = torch.zeros(len(part), num_sums, dtype=rows.dtype, device=CPU).index_add_(1, column_sum, rows)
            squares[part] = rows.square().sum(dim=1)
        return sums, np.sqrt(squares)

    def fetch(self, index: Indices, memory: Callable[[], Tensor] | None = None) -> Tensor:
        """Return rows on their own device; a view where the rows and the dtype allow one.

        Args:
            index: the rows.
            memory: returns memory for rows that have to be gathered; None: new memory.
        """
        pieces = [self._at(i, index, memory if len(self.pieces) == 1 else None) for i in range(len(self.pieces))]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def largest(self, index: Indices) -> Tensor:
        scratch = self._scratch()
        parts = []
        for part in self._split(index):
            pieces = [self._at(i, part) for i, width in enumerate(self.widths) if width]
            each = [torch.abs(numbers, out=scratch()).amax(dim=1) for numbers in pieces]
            parts.append(each[0] if len(each) == 1 else torch.stack(each).amax(dim=0))
        return torch.cat(parts)

    def scaled_norms(self, index: Indices, scale: Floats) -> Floats:
        size = torch.from_numpy(scale).to(self.device, self.compute_dtype)
        norms = [
            (self.fetch(index[part]) / size[part, None]).square().sum(dim=1).sqrt()
            for part in self._split(np.arange(len(index)))
        ]
        return to_host(size * torch.cat(norms))

    def _at(self, i: int, index: Indices, memory: Callable[[], Tensor] | None = None) -> Tensor:
        """Return rows of one piece, ``(m, widths[i])``; a view if they are consecutive and the strides allow it."""
        piece = self.pieces[i]
        if not isinstance(piece, Tensor):
            rows = torch.stack([piece[row] for row in index]) if len(index) else piece[0][None][:0]
        elif len(index) and (np.diff(index) == 1).all():
            rows = piece[int(index[0]) : int(index[-1]) + 1]
        else:
            out = memory() if memory is not None and piece.dtype == self.compute_dtype else None
            rows = torch.index_select(piece, 0, torch.from_numpy(index).to(self.device), out=out)
        return rows.reshape(len(index), self.widths[i]).to(self.compute_dtype)

    def _scratch(self) -> Callable[[], Tensor]:
        """Return a buffer that successive results reuse: allocating each result costs more than reading the rows."""
        memory = torch.empty(0, dtype=self.compute_dtype, device=self.device)
        return lambda: memory.resize_(0)

    def _split(self, index: Indices) -> list[Indices]:
        """Split ``index`` into parts that are read at once; return one empty part for an empty index."""
        step = max(1, elements_at_once(COPY_ELEMENTS, self.device) // max(1, self.width))
        return [index[start : start + step] for start in range(0, len(index), step)] or [index]

    def _blocks(self) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        """Yield the blocks that are read at once.

        Yields:
            The first row, the numbers ``(m, w)``, the random vectors for the chunks of their columns, and the number of
            columns in a chunk.
        """
        offset = 0
        for piece, width in zip(self.pieces, self.widths, strict=True):
            for plane in _planes(piece):
                plane_width = width if not isinstance(plane, Tensor) else plane[0].numel()
                if plane_width:
                    yield from self._blocks_of(plane, plane_width, offset)
                offset += plane_width

    def _blocks_of(
        self, plane: Tensor | Sequence[Tensor], width: int, offset: int
    ) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        chunk = chunk_of(width)
        vectors = random_vectors(offset, NUM_PROJECTIONS, -(-width // chunk), self.compute_dtype, self.device)
        is_copied = self._is_converted or chunk == 1 or not (isinstance(plane, Tensor) and plane.ndim == 2)
        num_elements = elements_at_once(COPY_ELEMENTS if is_copied else BLOCK_ELEMENTS, self.device)
        if isinstance(plane, Tensor) and plane.ndim == 2 and is_column_major(plane):
            step = max(1, num_elements // (chunk * len(plane)))  # chunks
            for first in range(0, vectors.shape[1], step):
                block = plane[:, first * chunk : (first + step) * chunk]
                yield 0, block, vectors[:, first : first + step], chunk
            return
        step = max(1, num_elements // width)
        for start in range(0, self.num_rows, step):
            rows = plane[start : start + step]
            if not isinstance(rows, Tensor):
                rows = rows[0] if len(rows) == 1 else torch.stack(list(rows))
            yield start, rows.reshape(-1, width), vectors, chunk


def _is_extreme(norms: Floats, dtype: torch.dtype) -> bool:
    """Return whether squares of numbers of rows with these norms may leave the range of a dtype."""
    limits = torch.finfo(dtype)
    return bool(((norms < limits.tiny**0.3) | (norms > limits.max**0.4)).any())


def sketch_small(matrices: Sequence[DenseRows]) -> Tensor:
    """Sketch small matrices whose pieces have the same widths and dtypes, and return the sketches side by side."""
    first = matrices[0]
    # In float64 squares stay in range, so that no operation has to guard against overflow.
    pieces = [torch.cat(column).to(torch.float64) for column in zip(*map(_flat_pieces, matrices), strict=True)]
    stack = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    vectors = random_vectors(0, NUM_PROJECTIONS, first.width, torch.float64, first.device)
    norms = torch.linalg.vector_norm(stack, dim=1)
    return torch.cat([norms[None], vectors @ stack.T]).to(first.compute_dtype)


def _flat_pieces(rows: DenseRows) -> list[Tensor]:
    """Return the pieces of a matrix, ``(n, w)`` each."""
    return [
        piece if piece.ndim == 2 else piece.reshape(rows.num_rows, width)
        for piece, width in zip(rows.pieces, rows.widths, strict=True)
        if isinstance(piece, Tensor)
    ]


def _planes(piece: Tensor | Sequence[Tensor]) -> list[Tensor | Sequence[Tensor]]:
    """Split a piece into two-dimensional views that lie side by side; return it unchanged where that takes a copy."""
    if not isinstance(piece, Tensor):
        return [piece]
    # The order of the numbers within a row does not matter, if it is the same for all, such as channels last.
    dims = sorted(range(1, piece.ndim), key=piece.stride, reverse=True)
    piece = piece.permute(0, *dims)
    if piece.ndim == 1 or (piece.ndim > 2 and piece[0].is_contiguous()):
        return [piece.reshape(len(piece), piece[0].numel())]
    if piece.ndim == 3 and piece.shape[1] <= _MAX_PLANES:
        return list(piece.unbind(1))
    return [piece]
