"""Matrices whose numbers lie on several ranks.

What grouping wants to know of the rows, :class:`ShardedRows` asks of all ranks: sums over the numbers that each of them
holds, the :mod:`fragments <lightning_symmetry.ranks.pieces>`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_symmetry.matrices.rows import (
    NUM_FURTHER,
    NUM_PROJECTIONS,
    PERIOD,
    Floats,
    Indices,
    Rows,
    chunk_of,
    columns_by,
    random_vectors,
    reduce_rows,
    to_host,
)
from lightning_symmetry.ranks.pieces import Fragment, Piece, blocks, blocks_at, whole_piece
from lightning_symmetry.ranks.team import Name, Request, Team, TeamError

# So many numbers of rows are sent to all ranks to be compared in full.
_MAX_FETCHED = 1 << 14
_MAX_DENSE = 1 << 22


def matrix_of(pieces: Sequence[Tensor | Piece | Sequence[Tensor | Piece]]) -> Rows:
    """A matrix in pieces that lie side by side, as for :class:`Rows`; some of them may be sharded."""
    parts = [part for piece in pieces for part in (piece if isinstance(piece, Sequence) else [piece])]
    if all(isinstance(part, Tensor) for part in parts):
        return Rows(cast("Any", pieces))
    return ShardedRows(pieces)


class ShardedRows(Rows):
    """A matrix ``(n, d)`` whose numbers lie on several ranks.

    On the first rank, within :meth:`Team.run` and once :func:`read` has made it known to all, it does by asking what
    :class:`Rows` does; on every rank it answers.

    Args:
        pieces: as for :class:`Rows`, some of them sharded.
    """

    def __init__(self, pieces: Sequence[Tensor | Piece | Sequence[Tensor | Piece]]) -> None:
        whole = [whole_piece(piece) for piece in pieces]
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
                for first, block in blocks(fragment, self.compute_dtype):
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
            for place, block in blocks_at(fragment, index):
                products[:, place] += sign * (vectors @ block.T)

    def _add_positions(self, numbers: Tensor, index: Indices) -> None:
        [vector] = random_vectors(-2, 1, min(self.width, PERIOD), torch.float64, self.device)
        for fragment in self._all_fragments():
            columns = fragment.columns()
            signed = vector[columns % PERIOD] * (1 - columns // PERIOD % 2 * 2)
            for place, block in blocks_at(fragment, index):
                numbers[place] += block @ signed

    def _add_differences(self, numbers: Tensor, index: Indices, leaders: Indices) -> None:
        self._add_project(numbers, index)
        self._add_project(numbers, leaders, -1.0)

    def _add_squares(self, numbers: Tensor, index: Indices, place: Indices, rows: Floats, scale: Floats) -> None:
        leaders, leader, size = (torch.from_numpy(array).to(self.device) for array in (rows, place, scale))
        for fragment in self._all_fragments():
            columns = fragment.columns()
            for here, block in blocks_at(fragment, index):
                apart = block - leaders[leader[here]][:, columns]
                numbers[here] += (apart / size[here, None]).square().sum(dim=1)

    def _add_bounds(self, numbers: Tensor, index: Indices, piece: int) -> None:
        bounds = numbers.view(2, len(index))
        for fragment in self._fragments[piece]:
            for place, block in blocks_at(fragment, index):
                found = torch.stack([block.amax(dim=1), -block.amin(dim=1)]).to(bounds)
                bounds[:, place] = torch.maximum(bounds[:, place], found)

    def _add_sums(self, numbers: Tensor, index: Indices, label: Indices) -> None:
        to, num_labels = columns_by(label, self.width)
        found = numbers.view(len(index), num_labels + 1)
        for fragment in self._all_fragments():
            into = to.to(self.device)[fragment.columns()]
            for place, block in blocks_at(fragment, index):
                sums = torch.zeros(len(place), num_labels + 1, dtype=block.dtype, device=self.device)
                sums.index_add_(1, into, block)
                sums[:, -1] = block.square().sum(dim=1)
                found[place] += sums

    def _add_fetch(self, numbers: Tensor, index: Indices) -> None:
        rows = numbers.view(len(index), self.width)
        for fragment in self._all_fragments():
            columns = fragment.columns()
            for place, block in blocks_at(fragment, index):
                rows[place[:, None], columns] = block.to(rows.dtype)

    def _add_heads(self, numbers: Tensor, piece: int) -> None:
        heads = numbers.view(self.num_rows, -1)
        for fragment in self._fragments[piece]:
            if fragment.first_column < heads.shape[1]:
                columns = fragment.columns()
                here = columns < heads.shape[1]
                for first, block in blocks(fragment, torch.float64):
                    heads[first : first + len(block), columns[here]] = block[:, here]

    def _add_largest(self, numbers: Tensor, index: Indices) -> None:
        for fragment in self._all_fragments():
            for place, block in blocks_at(fragment, index):
                numbers[place] = torch.maximum(numbers[place], block.abs().amax(dim=1))

    def _add_scaled(self, numbers: Tensor, index: Indices, scale: Floats) -> None:
        size = torch.from_numpy(scale).to(self.device)
        for fragment in self._all_fragments():
            for place, block in blocks_at(fragment, index):
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


def _short(index: Indices) -> npt.NDArray[np.int32]:
    """In half the bytes."""
    return index.astype(np.int32)
