"""Reads many small matrices at once, and finds those in which rows may agree.

The overhead of calling PyTorch and numpy dominates a check of small matrices. The layout, which stays the same from
check to check, is computed once, and all matrices share the calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.numerics import CPU, Floats, Integers, Mask, to_host
from lightning_symmetry.matrices.projections import NUM_PROJECTIONS, random_vectors
from lightning_symmetry.matrices.sieve import sift

# Numbers that are copied at once, into memory that is kept.
_SCRATCH_ELEMENTS = 1 << 19
_LIMITS = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Screened:
    """The result of reading all matrices once."""

    # whether all rows of a matrix are finite, and no two nonzero ones may agree up to sign, `(m,)`
    are_distinct: Mask
    num_zero: Integers  # number of zero rows of each matrix, `(m,)`
    largest: Floats  # the largest norm of a row of each matrix, `(m,)`
    fingerprints: Integers  # a number for each matrix, which changes if any of its rows does, `(m,)`
    _norms: Floats
    _directions: Floats
    _rows: list[slice]

    def is_zero(self, matrix: int) -> Mask:
        """Return which rows of a matrix are zero, ``(n,)``."""
        return _is_zero(self._norms[self._rows[matrix]])

    def directions(self, matrix: int) -> Floats:
        """Return :func:`directions_of` the rows of a matrix, ``(n,)``."""
        return self._directions[self._rows[matrix]]


def _is_zero(norms: Floats) -> Mask:
    return norms < _LIMITS.tiny


def directions_of(rows: Tensor) -> Floats:
    """Return the product of each row with a fixed random vector, divided by its norm, ``(m,)``.

    It stays the same while the row keeps its direction, to the precision of the numbers.
    """
    numbers = rows.to(CPU, torch.float64)
    [vector, *_] = random_vectors(0, NUM_PROJECTIONS, rows.shape[1], torch.float64, CPU)
    return _over_norms((numbers @ vector).numpy(), torch.linalg.vector_norm(numbers, dim=1).numpy())


def _over_norms(products: Floats, norms: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # rows that are not finite
        return products / np.maximum(norms, np.finfo(np.float64).tiny)


class Screen:
    """Small matrices of one device, each made up of tensors that lie side by side.

    Args:
        matrices: samples of the matrices, all of them small, none in float64; only their shapes and dtypes count.
        tolerances: of each matrix, the relative distance up to which rows agree.
        blocks: of each matrix, the number of blocks; rows of different blocks are never compared.
    """

    def __init__(self, matrices: Sequence[DenseRows], tolerances: Sequence[float], blocks: Sequence[int]) -> None:
        order = sorted(range(len(matrices)), key=lambda i: matrices[i].width)
        sizes = [matrices[i].num_rows for i in order]
        self._order = np.array(order, dtype=np.intp)
        self._parts = list(_parts(matrices, order))
        bounds = np.array([0, *accumulate(sizes)], dtype=np.intp)
        self._starts = bounds[:-1]
        self._rows = [slice(0)] * len(order)
        for i, first, end in zip(order, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            self._rows[i] = slice(first, end)
        self._longest = max(sizes)
        place = np.repeat(np.arange(len(order)), sizes)
        self._owner = self._order[place]  # the matrix of each row
        self._windows = np.array([matrices[i].windows(tolerances[i]) for i in order]).T[:, place]
        block_sizes = np.array([max(1, size // blocks[i]) for i, size in zip(order, sizes, strict=True)])
        starts = self._starts[place]
        self._block = starts + (np.arange(bounds[-1]) - starts) // block_sizes[place]

    def read(self, tensors: Sequence[Tensor]) -> Screened:
        """Read all matrices once.

        Args:
            tensors: the tensors of all matrices, one matrix after the other, in the shapes of the samples.
        """
        host = to_host(torch.cat([part.sketch(tensors) for part in self._parts], dim=1))
        norms, projections = host[0], host[1:]
        rows = np.flatnonzero((norms >= _LIMITS.tiny) & (norms <= _LIMITS.max))
        left = sift(norms, projections, self._windows, self._block, rows, self._longest)
        are_distinct = np.ones(len(self._order), dtype=np.bool_)
        are_distinct[self._owner[left]] = False
        num_zero = np.zeros(len(self._order), dtype=np.intp)
        if len(rows) < len(norms):
            is_zero = _is_zero(norms)
            num_zero = np.bincount(self._owner[is_zero], minlength=len(self._order))
            are_distinct[self._owner[~is_zero & ~(norms <= _LIMITS.max)]] = False
        return Screened(
            are_distinct,
            num_zero,
            self._of_each(np.fmax, norms),
            self._of_each(np.add, projections[0].view(np.int64)),
            norms,
            _over_norms(projections[0], norms),
            self._rows,
        )

    def _of_each(self, reduction: np.ufunc, numbers: Floats | Integers) -> Any:
        """Reduce the numbers of the rows of each matrix, in the order in which the matrices were given."""
        reduced = reduction.reduceat(numbers, self._starts)
        in_order = np.empty_like(reduced)
        in_order[self._order] = reduced
        return in_order


@dataclass(frozen=True)
class _Part:
    """Matrices whose rows have the same length, few enough to be copied together."""

    stack: Tensor  # memory for the rows, `(n, d)`; in float64, squares stay in range, so few operations suffice
    places: list[Tensor]  # for each tensor that makes up the matrices, its place in the stack, in its own shape
    sources: list[int]  # where each of these tensors is found among all tensors
    vectors: Tensor  # random vectors for the columns, `(NUM_PROJECTIONS, d)`

    def sketch(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return norms and projections of the rows, ``(1 + NUM_PROJECTIONS, n)``."""
        torch._foreach_copy_(self.places, [tensors[i] for i in self.sources])
        norms = torch.linalg.vector_norm(self.stack, dim=1)
        return torch.cat([norms[None], self.vectors @ self.stack.T])


def _parts(matrices: Sequence[DenseRows], order: Sequence[int]) -> Iterator[_Part]:
    """Yield the matrices in parts; ``order`` is sorted by the length of the rows."""
    first_tensor = [0, *accumulate(len(matrix.pieces) for matrix in matrices)]
    device = matrices[0].device
    most = max(matrix.num_rows * matrix.width for matrix in matrices)
    scratch = torch.empty(max(most, _SCRATCH_ELEMENTS), dtype=torch.float64, device=device)
    for numbers in _alike(matrices, order):
        width = matrices[numbers[0]].width
        num_rows = sum(matrices[i].num_rows for i in numbers)
        stack = scratch[: num_rows * width].view(num_rows, width)
        places, sources, row = [], [], 0
        for i in numbers:
            rows = stack[row : row + matrices[i].num_rows]
            column = 0
            for j, (piece, piece_width) in enumerate(zip(matrices[i].pieces, matrices[i].widths, strict=True)):
                assert isinstance(piece, Tensor)
                places.append(rows[:, column : column + piece_width].view(piece.shape))
                sources.append(first_tensor[i] + j)
                column += piece_width
            row += matrices[i].num_rows
        yield _Part(stack, places, sources, random_vectors(0, NUM_PROJECTIONS, width, torch.float64, device))


def _alike(matrices: Sequence[DenseRows], order: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of matrices whose rows have the same length, and which fit into the scratch memory."""
    run: list[int] = []
    num_elements = 0
    for i in order:
        size = matrices[i].num_rows * matrices[i].width
        if run and (matrices[run[0]].width != matrices[i].width or num_elements + size > _SCRATCH_ELEMENTS):
            yield run
            run, num_elements = [], 0
        run.append(i)
        num_elements += size
    if run:
        yield run
