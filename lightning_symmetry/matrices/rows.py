"""The interface of a matrix whose rows are compared, on one process or on several ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_symmetry.matrices.numerics import Floats, Indices
from lightning_symmetry.matrices.projections import chunk_of, further_chunk_of, joint_window_of, windows_of


class Rows(ABC):
    """A matrix ``(n, d)`` in pieces that lie side by side, for example a weight and its bias.

    Local tensors are read by :class:`~lightning_symmetry.matrices.dense.DenseRows`, tensors on several ranks by
    :class:`~lightning_symmetry.ranks.sharded.ShardedRows`.

    Attributes:
        num_rows: ``n``.
        widths: number of columns of each piece.
        width: number of all columns, ``d``.
        device: where the numbers lie.
        dtype: the coarsest dtype of the pieces, which decides what can be distinguished.
        compute_dtype: the dtype of the arithmetic, float64 for float64 and float32 for all others.
        chunk: number of neighbouring columns that share a number of the sketch's random vectors, at the most.
    """

    def __init__(
        self, num_rows: int, widths: Sequence[int], dtypes: Iterable[torch.dtype], device: torch.device
    ) -> None:
        self.num_rows = num_rows
        self.widths = tuple(widths)
        self.width = sum(widths)
        self.device = device
        self.dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        self.compute_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.chunk = chunk_of(max(widths, default=0))

    @property
    def norms_stay_in_range(self) -> bool:
        """Whether the sketch has correct norms even where squares overflow :attr:`compute_dtype`."""
        return False

    def windows(self, tolerance: float) -> tuple[float, float]:
        """Bound the difference of the sketches of two rows that agree within a tolerance.

        Returns:
            The largest difference of projections divided by norms, and of the logarithms of norms.
        """
        return windows_of(tolerance, self.width, self.chunk, torch.finfo(self.compute_dtype).eps)

    def further_windows(self, tolerance: float) -> tuple[float, float]:
        """Bound the difference of the products of :meth:`project`, divided by norms, of two rows that agree.

        Returns:
            The largest difference of a single product, and the largest L2 distance of all of them.
        """
        arguments = tolerance, self.width, further_chunk_of(self.width), torch.finfo(self.compute_dtype).eps
        return windows_of(*arguments)[0], joint_window_of(*arguments)

    @abstractmethod
    def sketch(self) -> Tensor:
        """Return norm and projections of every row, ``(1 + NUM_PROJECTIONS, n)``, on the device of the rows."""

    @abstractmethod
    def project(self, index: Indices) -> Floats:
        """Return products of the rows at ``index`` with further random vectors, ``(NUM_FURTHER, m)``."""

    def project_around(self, index: Indices, origins: Indices, scale: Floats) -> tuple[Floats, Floats]:
        """Return what :meth:`project` and :meth:`distances` return, reading the rows once if that is possible.

        Products may be computed from the differences, with errors as small, in float32, as a part of the differences.

        Args:
            index: the rows, ``(m,)``.
            origins: a row that is near to each of them, ``(m,)``.
            scale: divides the distances, ``(m,)``.

        Returns:
            The products ``(NUM_FURTHER, m)`` and the distances ``(m,)``.
        """
        return self.project(index), self.distances(index, origins, scale)

    @abstractmethod
    def project_roughly(self, index: Indices) -> Floats:
        """Return products of rows with the rough vectors, ``(NUM_ROUGH, m)``, as exact as a matrix product."""

    @abstractmethod
    def positions(self, index: Indices) -> Floats:
        """Return products of the rows at ``index`` with one fixed random vector, ``(m,)``.

        When a row moves, its position moves by about as much.
        """

    @abstractmethod
    def distances(self, index: Indices, others: Indices, scale: Floats, factors: Floats | None = None) -> Floats:
        """Return L2 distances of rows at ``index`` from ``factors`` times those at ``others``, divided by ``scale``.

        All are ``(m,)``; without ``factors`` they are 1.
        """

    @abstractmethod
    def constants(self, index: Indices, piece: int = 0) -> Floats:
        """Return the number that a row of one piece holds in every column, ``(m,)``; NaN where columns differ."""

    @abstractmethod
    def sums_by(self, index: Indices, label: Indices) -> tuple[Floats, Floats]:
        """Sum columns by label, and compute norms, of rows made of runs of ``len(label)`` columns.

        Returns:
            The sums ``(m, runs * labels)``, within each run by label in ascending order, and the norms ``(m,)``.
        """

    @abstractmethod
    def fetch(self, index: Indices) -> Tensor:
        """Return the rows ``(m, d)`` at ``index``, in :attr:`compute_dtype`; on their device or on the CPU."""

    @abstractmethod
    def largest(self, index: Indices) -> Tensor:
        """Return the largest absolute value of each row at ``index``, ``(m,)``, on the device of the rows."""

    @abstractmethod
    def scaled_norms(self, index: Indices, scale: Floats) -> Floats:
        """Return norms of the rows at ``index``, ``(m,)``; rows are divided by ``scale`` before squaring.

        If ``scale`` is the largest absolute value of each row, no square leaves the range of the dtype.
        """
