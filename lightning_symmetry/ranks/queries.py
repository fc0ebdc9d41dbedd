"""The queries of the first rank about a matrix, and how each rank answers them from its part of the matrix.

Every query is declared once, by the function that answers it: the shape and dtype of the answer, and the reduction over
all ranks. The function gets its rank's part of the matrix, and an answer that is filled with the neutral element of the
reduction, to which it adds its rank's part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_symmetry.matrices import projections
from lightning_symmetry.matrices.numerics import Floats, Integers, columns_by, reduce_rows
from lightning_symmetry.ranks.pieces import Fragment
from lightning_symmetry.ranks.team import Name, Reduction, Request

Shape = tuple[int, ...]


class LocalRows(NamedTuple):
    """This rank's part of a matrix ``(n, d)``."""

    num_rows: int  # ``n``
    widths: tuple[int, ...]  # number of columns of each piece
    compute_dtype: torch.dtype  # dtype of the arithmetic
    device: torch.device  # device of the numbers
    # the fragments of each piece; their columns count from the beginning of the piece
    fragments: tuple[tuple[Fragment, ...], ...]

    @property
    def width(self) -> int:
        """Number of columns, ``d``."""
        return sum(self.widths)

    def pieces(self) -> Iterator[tuple[int, int, tuple[Fragment, ...]]]:
        """Yield the first column in the matrix, the number of columns, and the fragments of each piece."""
        return zip(accumulate(self.widths, initial=0), self.widths, self.fragments, strict=False)

    def all_fragments(self) -> Iterator[Fragment]:
        """Yield the fragments of all pieces; their columns count from the beginning of the matrix."""
        for offset, _, fragments in self.pieces():
            for fragment in fragments:
                yield replace(fragment, offset=offset)


class Query(NamedTuple):
    """A query of the first rank about a matrix."""

    name: str  # its name in a request
    add: Callable[..., None]  # adds this rank's part to the answer, ``add(local_rows, numbers, *arguments)``
    # returns the shape of the answer, ``shape(local_rows, *arguments)``; the same on all ranks
    shape: Callable[..., Shape]
    reduction: Reduction = Reduction.SUM  # the reduction over all ranks
    # whether the answer has the dtype of the matrix's arithmetic; otherwise it is float64
    is_in_compute_dtype: bool = False

    def request(self, matrices: Mapping[int, LocalRows], *arguments: Any, names: Sequence[Name] = ()) -> Request:
        """Make the request for this query about ``matrices``, which have one dtype and are keyed by their numbers.

        ``names`` are the names of matrices that have no number on the other ranks yet.
        """
        sizes = {number: math.prod(self.shape(local, *arguments)) for number, local in matrices.items()}
        dtype = torch.float64
        if self.is_in_compute_dtype:
            [dtype] = {local.compute_dtype for local in matrices.values()}
        return Request(self.name, sizes, arguments, dtype, self.reduction, names)

    def answer(self, local: LocalRows, numbers: Tensor, *arguments: Any) -> None:
        """Add this rank's part to ``numbers``, the flattened answer."""
        part = numbers.to(local.device)  # shards may be offloaded to another device than the one that sends messages
        self.add(local, part.view(self.shape(local, *arguments)), *arguments)
        numbers.copy_(part)


QUERIES: dict[str, Query] = {}
"""All queries by name."""


def _query(
    shape: Callable[..., Shape], reduction: Reduction = Reduction.SUM, *, is_in_compute_dtype: bool = False
) -> Callable[[Callable[..., None]], Query]:
    """Declare the query that a function answers, under the name of the function."""

    def declare(add: Callable[..., None]) -> Query:
        query = QUERIES[add.__name__] = Query(add.__name__, add, shape, reduction, is_in_compute_dtype)
        return query

    return declare


def query_named(name: str) -> Query:
    """Return the query of a name; raises a ValueError if there is none."""
    if name not in QUERIES:
        raise ValueError(f"unknown query {name!r}; the known ones are {', '.join(QUERIES)}")
    return QUERIES[name]


def _number_per_row(local: LocalRows, index: Integers, *arguments: Any) -> Shape:
    return (len(index),)


@_query(lambda local: (1 + projections.NUM_PROJECTIONS, local.num_rows))
def sketch(local: LocalRows, numbers: Tensor) -> None:
    """Add the squared norm and the projections of every row."""
    for offset, width, fragments in local.pieces():
        chunk = projections.chunk_of(width)
        vectors = projections.random_vectors(
            offset, projections.NUM_PROJECTIONS, -(-width // chunk), local.compute_dtype, local.device
        )
        for fragment in fragments:
            here_chunk, here_vectors = _vectors_for(fragment, chunk, vectors)
            for first, block in fragment.blocks(local.compute_dtype):
                norms, products = reduce_rows(block, here_vectors, here_chunk)
                part = numbers[:, first : first + len(block)]
                part[0] += norms.double().square()
                part[1:] += products


def _vectors_for(fragment: Fragment, chunk: int, vectors: Tensor) -> tuple[int, Tensor]:
    """Return how many columns of a fragment share a number of the random vectors, and these numbers, ``(k, c)``."""
    first, last = fragment.first_column, fragment.last_column
    has_no_gaps = last - first + 1 == fragment.num_columns
    if first % chunk == 0 and has_no_gaps:
        return chunk, vectors[:, first // chunk : last // chunk + 1]
    return 1, vectors[:, fragment.columns() // chunk]


@_query(lambda local, index: (projections.NUM_FURTHER, len(index)))
def project(local: LocalRows, numbers: Tensor, index: Integers) -> None:
    """Add the products of the rows at ``index`` with the further random vectors."""
    _add_products(local, numbers, index, projections.further_vectors(local.width, torch.float64, local.device))


@_query(lambda local, index: (projections.NUM_ROUGH, len(index)), is_in_compute_dtype=True)
def project_roughly(local: LocalRows, numbers: Tensor, index: Integers) -> None:
    """Add the products of the rows at ``index`` with the random vectors that distinguish directions."""
    _add_products(local, numbers, index, projections.rough_vectors(local.width, torch.float64, local.device))


def _add_products(local: LocalRows, numbers: Tensor, index: Integers, vectors: Tensor) -> None:
    chunk = projections.further_chunk_of(local.width)
    for fragment in local.all_fragments():
        here = vectors[:, fragment.columns() // chunk]
        for place, block in fragment.blocks_at(index):
            numbers[:, place] += (here @ block.T).to(numbers)


@_query(lambda local, index, others, factors: (projections.NUM_ESTIMATED, len(index)))
def differences(local: LocalRows, numbers: Tensor, index: Integers, others: Integers, factors: Floats) -> None:
    """Add products of rows at ``index`` minus ``factors`` times those at ``others`` with the first further vectors."""
    subtracted = torch.zeros_like(numbers)
    vectors = projections.further_vectors(local.width, torch.float64, local.device)[: projections.NUM_ESTIMATED]
    _add_products(local, numbers, index, vectors)
    _add_products(local, subtracted, others, vectors)
    numbers -= subtracted * torch.from_numpy(factors).to(subtracted)


@_query(_number_per_row)
def positions(local: LocalRows, numbers: Tensor, index: Integers) -> None:
    """Add the products of the rows at ``index`` with one fixed random vector."""
    vector = projections.position_vector(local.width, torch.float64, local.device)
    for fragment in local.all_fragments():
        columns = fragment.columns()
        signed = vector[columns % projections.PERIOD] * (1 - columns // projections.PERIOD % 2 * 2)
        for place, block in fragment.blocks_at(index):
            numbers[place] += block @ signed


@_query(_number_per_row)
def squares(
    local: LocalRows, numbers: Tensor, index: Integers, other: Integers, rows: Floats, scale: Floats, factors: Floats
) -> None:
    """Add the squares of the distances between the rows at ``index`` and ``factors`` times ``rows[other]``.

    The distances are divided by ``scale`` first. A single factor applies to all.
    """
    times = torch.from_numpy(factors).to(local.device).expand(len(index))
    others, chosen, size = (torch.from_numpy(array).to(local.device) for array in (rows, other, scale))
    for fragment in local.all_fragments():
        columns = fragment.columns()
        for place, block in fragment.blocks_at(index):
            difference = block - times[place, None] * others[chosen[place]][:, columns]
            numbers[place] += (difference / size[place, None]).square().sum(dim=1)


@_query(lambda local, index, piece: (2, len(index)), Reduction.LARGEST, is_in_compute_dtype=True)
def bounds(local: LocalRows, numbers: Tensor, index: Integers, piece: int) -> None:
    """Find the largest number of each row of a piece, and the largest of the negated numbers."""
    for fragment in local.fragments[piece]:
        for place, block in fragment.blocks_at(index):
            found = torch.stack([block.amax(dim=1), -block.amin(dim=1)]).to(numbers)
            numbers[:, place] = torch.maximum(numbers[:, place], found)


@_query(lambda local, index, label: (len(index), columns_by(label, local.width)[1] + 1))
def sums(local: LocalRows, numbers: Tensor, index: Integers, label: Integers) -> None:
    """Add the sums of the columns of each label, run by run, and in the last column the squared norm of each row."""
    column_sum, num_sums = columns_by(label, local.width)
    for fragment in local.all_fragments():
        into = column_sum.to(local.device)[fragment.columns()]
        for place, block in fragment.blocks_at(index):
            found = torch.zeros(len(place), num_sums + 1, dtype=block.dtype, device=local.device)
            found.index_add_(1, into, block)
            found[:, -1] = block.square().sum(dim=1)
            numbers[place] += found


@_query(lambda local, index: (len(index), local.width), is_in_compute_dtype=True)
def fetch(local: LocalRows, numbers: Tensor, index: Integers) -> None:
    """Copy the rows at ``index``."""
    for fragment in local.all_fragments():
        columns = fragment.columns()
        for place, block in fragment.blocks_at(index):
            numbers[place[:, None], columns] = block.to(numbers.dtype)


@_query(lambda local, piece, count: (local.num_rows, count))
def heads(local: LocalRows, numbers: Tensor, piece: int, count: int) -> None:
    """Copy the first ``count`` numbers of a piece of every row."""
    for fragment in local.fragments[piece]:
        if fragment.first_column < count:
            columns = fragment.columns()
            is_here = columns < count
            for first, block in fragment.blocks(torch.float64):
                numbers[first : first + len(block), columns[is_here]] = block[:, is_here]


@_query(_number_per_row, Reduction.LARGEST)
def largest(local: LocalRows, numbers: Tensor, index: Integers) -> None:
    """Find the largest absolute value of each row at ``index``."""
    for fragment in local.all_fragments():
        for place, block in fragment.blocks_at(index):
            numbers[place] = torch.maximum(numbers[place], block.abs().amax(dim=1))


@_query(_number_per_row)
def scaled(local: LocalRows, numbers: Tensor, index: Integers, scale: Floats) -> None:
    """Add the squares of the norms, divided by ``scale``, of the rows at ``index``."""
    size = torch.from_numpy(scale).to(local.device)
    for fragment in local.all_fragments():
        for place, block in fragment.blocks_at(index):
            numbers[place] += (block / size[place, None]).square().sum(dim=1)
