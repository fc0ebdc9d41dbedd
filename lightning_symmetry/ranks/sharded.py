"""Matrices whose numbers lie on several ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.numerics import Floats, Indices, to_host
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.ranks import queries
from lightning_symmetry.ranks.pieces import Piece, as_piece
from lightning_symmetry.ranks.queries import LocalRows, Query, query_named
from lightning_symmetry.ranks.team import Name, Team, TeamError

_MAX_SENT = 1 << 14  # at most this many numbers are sent to all ranks for a full comparison


def matrix_of(pieces: Sequence[Tensor | Piece | Sequence[Tensor | Piece]]) -> Rows:
    """Make a matrix of pieces side by side, as for :class:`DenseRows`; some of them may be sharded."""
    parts = [part for piece in pieces for part in (piece if isinstance(piece, Sequence) else [piece])]
    if all(isinstance(part, Tensor) for part in parts):
        return DenseRows(cast("Any", pieces))
    return ShardedRows(pieces)


class ShardedRows(Rows):
    """A matrix ``(n, d)`` whose numbers lie on several ranks.

    Every rank makes one, and answers queries about it within :meth:`Team.run`. There, the first rank can use the
    methods of :class:`Rows`, after :func:`lightning_symmetry.ranks.sketches.read` has registered the matrix. The pieces
    are as for :class:`DenseRows`, some of them sharded.
    """

    def __init__(self, pieces: Sequence[Tensor | Piece | Sequence[Tensor | Piece]]) -> None:
        whole = [as_piece(piece) for piece in pieces]
        widths = [math.prod(piece.shape[1:]) for piece in whole]
        super().__init__(len(whole[0]), widths, {piece.dtype for piece in whole}, whole[0].device)
        fragments = tuple(piece.fragments for piece in whole)
        self.local = LocalRows(self.num_rows, self.widths, self.compute_dtype, self.device, fragments)
        self._sketch: Tensor | None = None
        self._team: Team | None = None
        self._number = -1

    def register(self, team: Team, number: int, sketch: Tensor | None = None) -> None:
        """Store the number of this matrix on all ranks of a team, and its sketch if it has been read."""
        self._team, self._number, self._sketch = team, number, sketch

    def ask(self, query: Query, *arguments: Any, names: Sequence[Name] = ()) -> Tensor:
        """Ask all ranks of the team, and return the answer on the CPU; for the first rank only.

        ``names`` has the name of this matrix, if it has no number on the other ranks yet. Raises a TeamError if some
        rank could not answer.
        """
        if self._team is None:
            raise TeamError("the matrix is not registered on all ranks")
        request = query.request({self._number: self.local}, *arguments, names=names)
        [answer] = self._team.ask(request, lambda name: self)
        if answer.has_failed or answer.is_missing:
            raise TeamError(self._team.what_failed())
        return answer.numbers.reshape(query.shape(self.local, *arguments))

    def answer(self, query: str, numbers: Tensor, *arguments: Any) -> None:
        query_named(query).answer(self.local, numbers, *arguments)

    def sketch(self) -> Tensor:
        assert self._sketch is not None
        return self._sketch.to(self.device)

    def project(self, index: Indices) -> Floats:
        return to_host(self.ask(queries.project, _as_int32(index)))

    def project_roughly(self, index: Indices) -> Floats:
        return to_host(self.ask(queries.project_roughly, _as_int32(index)))

    def positions(self, index: Indices) -> Floats:
        return to_host(self.ask(queries.positions, _as_int32(index)))

    def distances(self, index: Indices, others: Indices, scale: Floats, factors: Floats | None = None) -> Floats:
        """Return the distances of rows; estimates, if there are many different rows at ``others``.

        Few rows are sent to all ranks. Many rows could be half the matrix, so their distances are estimated from the
        products of the differences with two further random vectors. An estimate is below a third of the true distance
        once in ten times, and below a hundredth once in 10,000 times; by then the keys of the rows have agreed, too.
        """
        if not len(index):
            return np.empty(0)
        unique, place = np.unique(others, return_inverse=True)
        times = np.ones(1) if factors is None else factors
        if len(unique) * self.width <= _MAX_SENT:
            rows = self.fetch(unique).numpy()
            arguments = _as_int32(index), _as_int32(place), rows, scale, times
            return np.sqrt(to_host(self.ask(queries.squares, *arguments)))
        products = to_host(self.ask(queries.differences, _as_int32(index), _as_int32(others), times))
        distances: Floats = np.sqrt(np.square(products / scale).mean(axis=0))
        return distances

    def constants(self, index: Indices, piece: int = 0) -> Floats:
        largest, negated_smallest = to_host(self.ask(queries.bounds, _as_int32(index), piece))
        return np.where(largest == -negated_smallest, largest, math.nan)

    def sums_by(self, index: Indices, label: Indices) -> tuple[Floats, Floats]:
        found = to_host(self.ask(queries.sums, _as_int32(index), _as_int32(label)))
        return found[:, :-1], np.sqrt(found[:, -1])

    def fetch(self, index: Indices) -> Tensor:
        return self.ask(queries.fetch, _as_int32(index))

    def largest(self, index: Indices) -> Tensor:
        return self.ask(queries.largest, _as_int32(index)).to(self.device)

    def scaled_norms(self, index: Indices, scale: Floats) -> Floats:
        return scale * np.sqrt(to_host(self.ask(queries.scaled, _as_int32(index), scale)))


def _as_int32(index: Indices) -> npt.NDArray[np.int32]:
    """Convert indices for sending, in half the bytes."""
    return index.astype(np.int32)
