"""Matrices whose numbers lie on several ranks, on real processes."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from lightning_symmetry.ranks import queries
from lightning_symmetry.ranks.flat import FlatPart
from lightning_symmetry.ranks.pieces import Piece, part_of_rows, piece_of_part
from lightning_symmetry.ranks.queries import Query
from lightning_symmetry.ranks.sharded import ShardedRows
from lightning_symmetry.ranks.sketches import read
from lightning_symmetry.ranks.team import Reduction, Team, TeamError
from tests.matrices.interface import Asked, MatrixCase, PieceCase, check_all, matrix_cases
from tests.ranks.pool import RankPool

CPU = torch.device("cpu")
NAME = ("weights",)
# How a piece is sharded; "flat" cuts through rows, as FSDP1 does.
SHARDINGS = ("rows", "columns", "copies", "plain", "flat")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(2, tmp_path_factory.mktemp("pool")) as pool:
        yield pool


def shard(tensor: Tensor, sharding: str) -> Tensor | Piece:
    """Return this rank's part of a piece."""
    if sharding == "plain":
        return tensor
    if sharding == "flat":
        flat = tensor.flatten()
        cut = len(flat) * 2 // 5
        first, last = (0, cut) if torch.distributed.get_rank() == 0 else (cut, len(flat))
        part = FlatPart(flat[first:last], 0, last - first, first, tuple(tensor.shape), None)
        return piece_of_part(part, part.numbers(), lambda whole: whole, tensor.dtype)
    placements: dict[str, Placement] = {
        "rows": Shard(0),
        "columns": Shard(min(1, tensor.ndim - 1)),
        "copies": Replicate(),
    }
    mesh = init_device_mesh("cpu", (2,))
    return part_of_rows(distribute_tensor(tensor, mesh, [placements[sharding]]), lambda whole: whole)


def shard_piece(tensor: Tensor, layout: str, sharding: str) -> Tensor | Piece | list[Tensor | Piece]:
    if layout == "separate":
        return [shard(row, sharding) for row in torch.split(tensor, 1)]
    if layout == "column-major" and sharding in ("rows", "columns"):
        # Like the weights of an embedding, whose units are columns.
        mesh = init_device_mesh("cpu", (2,))
        shards = distribute_tensor(tensor.T.contiguous(), mesh, [Shard(0 if sharding == "columns" else 1)])
        return part_of_rows(shards, torch.t)
    return shard(tensor, sharding)


def decide_on_first(rows: ShardedRows, decide: Callable[[Team], Any]) -> Any:
    """Read some rows, and call a function with them on the first rank."""
    team = Team(CPU)

    def read_and_decide() -> Any:
        assert read(team, {NAME: rows}) == {}
        return decide(team)

    return team.run(read_and_decide, lambda _: None, lambda name: rows)


def ask_all(case: MatrixCase, shardings: Sequence[str]) -> None:
    """Compare the whole interface with brute force, on each rank."""
    pieces = [
        shard_piece(tensor, piece.layout, sharding)
        for tensor, piece, sharding in zip(case.tensors(), case.pieces, shardings, strict=True)
    ]
    rows = ShardedRows(pieces)

    def check(team: Team) -> None:
        try:
            check_all(Asked(rows, case, has_one_vector=False))
        except Exception:
            raise AssertionError(traceback.format_exc()) from None

    decide_on_first(rows, check)


@st.composite
def sharded_cases(draw: st.DrawFn) -> tuple[MatrixCase, tuple[str, ...]]:
    case = draw(matrix_cases())
    return case, tuple(draw(st.sampled_from(SHARDINGS)) for _ in case.pieces)


ONE_ROW = MatrixCase(1, (PieceCase((300,), torch.float32, "row-major"),), 0, 0)
LARGE = MatrixCase(
    300, (PieceCase((700,), torch.float32, "row-major"), PieceCase((), torch.float64, "row-major")), 0, 1
)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("case", [ONE_ROW, LARGE], ids=["one row", "large"])
def test_sharded_rows_in_every_sharding(two_ranks: RankPool, case: MatrixCase, sharding: str) -> None:
    two_ranks.call(ask_all, case, [sharding] * len(case.pieces))


@given(sharded_cases())
@settings(max_examples=40, deadline=None)
def test_sharded_rows_are_what_brute_force_says(two_ranks: RankPool, drawn: tuple[MatrixCase, tuple[str, ...]]) -> None:
    two_ranks.call(ask_all, *drawn)


def project_long_rows() -> float:
    """Return the largest distance between products of long rows that agree, relative to the tolerance.

    The rows are longer than the further vectors, and all columns of a chunk differ by the same number.
    """
    generator = torch.Generator().manual_seed(0)
    num_chunks = (1 << 19) // 64 + 1
    first = torch.randn(1, num_chunks * 64, generator=generator)
    exact = first + 1e-3 * torch.randn(5, num_chunks, generator=generator).repeat_interleave(64, dim=1)
    rows = ShardedRows([shard(exact, "columns")])
    norms = exact.double().norm(dim=1).numpy()
    distances = (exact[1:] - exact[0]).double().norm(dim=1).numpy() / np.maximum(norms[1:], norms[0])

    def largest_part(team: Team) -> float:
        directions = rows.project(np.arange(5)) / norms
        apart = np.abs(directions[:, 1:] - directions[:, :1]).max(axis=0)
        allowed = [rows.further_windows(distance)[0] for distance in distances.tolist()]
        return float((apart / allowed).max())

    return float(decide_on_first(rows, largest_part) or 0)


def test_products_of_long_rows_stay_within_the_window(two_ranks: RankPool) -> None:
    assert 0.1 < two_ranks.call(project_long_rows)[0] <= 1


def failure_of(decide: Callable[[ShardedRows], Any], *, forgotten_by: int | None = None) -> str:
    """Return the error on each rank if the first rank sends a query that does not exist."""
    rows = ShardedRows([shard(torch.ones(4, 3), "rows")])
    known = dict(queries.QUERIES)
    if forgotten_by == torch.distributed.get_rank():
        del queries.QUERIES["largest"]
    try:
        decide_on_first(rows, lambda team: decide(rows))
    except TeamError as error:
        return str(error)
    finally:
        queries.QUERIES.update(known)
    return ""


def ask_something_unknown(rows: ShardedRows) -> None:
    rows.ask(Query("colour", lambda local, numbers: None, lambda local: (local.num_rows,)))


def ask_for_the_largest(rows: ShardedRows) -> None:
    rows.largest(np.arange(4))


def test_an_unknown_query_is_an_error_on_all_ranks(two_ranks: RankPool) -> None:
    [first, second] = two_ranks.call(failure_of, ask_something_unknown)
    assert first == second
    assert first.startswith("ValueError: unknown query 'colour'; the known ones are sketch, ")
    assert two_ranks.call(add_ranks) == [1, 1]  # the ranks are still in step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_query_that_one_rank_does_not_know_is_an_error_on_all(two_ranks: RankPool, rank: int) -> None:
    [first, second] = two_ranks.call(partial(failure_of, ask_for_the_largest, forgotten_by=rank))
    assert first == second
    assert first.startswith("ValueError: unknown query 'largest'")
    assert first.endswith(f"(rank {rank})")
    assert two_ranks.call(add_ranks) == [1, 1]


def add_ranks() -> int:
    total = torch.tensor(torch.distributed.get_rank())
    torch.distributed.all_reduce(total)
    return int(total)


def test_every_query_is_declared() -> None:
    for name, query in queries.QUERIES.items():
        assert query.name == name
        assert getattr(queries, name) is query
        assert query.reduction in Reduction
        _, neutral = query.reduction.value
        assert math.isfinite(neutral) == (query.reduction is Reduction.SUM)
