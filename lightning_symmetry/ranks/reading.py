"""Matrices on several ranks, in use: whose they are, how they are read, which of their rows are equal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from lightning_symmetry.matrices.grouping import TOLERANCES, Question, find_groups
from lightning_symmetry.matrices.rows import NUM_PROJECTIONS, Rows, sketch_all
from lightning_symmetry.ranks.fsdp1 import flattened_modules
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.ranks.sharded import ShardedRows
from lightning_symmetry.ranks.team import Name, Request, Team, TeamError


def team_of_all(num_ranks: int, device: torch.device) -> Team | None:
    """The ranks of a training; None if they have no common group, as a process by itself has none.

    Args:
        num_ranks: how many there are.
        device: where tensors must lie to be sent.
    """
    has_group = dist.is_available() and dist.is_initialized() and dist.get_world_size() == num_ranks
    return Team(device) if has_group else None


def team_of(model: nn.Module) -> Team | None:
    """The ranks that hold a model; None if it is all here."""
    flattened = (parameter for module in flattened_modules(model) for parameter in module.parameters())
    sharded = next((parameter for parameter in model.parameters() if is_sharded(parameter)), next(flattened, None))
    return None if sharded is None else Team(sharded.device)


def read(team: Team, matrices: Mapping[Name, ShardedRows]) -> dict[Name, str]:
    """Make matrices known to all ranks, and read them once; for the first rank only.

    Returns:
        By name, why a matrix cannot be read; an empty reason means that some rank does not have it.
    """
    if not matrices:
        return {}
    first = team.num_matrices
    sizes = {first + i: (1 + NUM_PROJECTIONS) * rows.num_rows for i, rows in enumerate(matrices.values())}
    answers = team.ask(Request("sketch", sizes, names=list(matrices)), matrices.__getitem__)
    reason = team.what_failed() if any(answer.has_failed for answer in answers) else ""
    failures: dict[Name, str] = {}
    for place, (name, rows), answer in zip(sizes, matrices.items(), answers, strict=True):
        if answer.has_failed or answer.is_missing:
            failures[name] = reason if answer.has_failed else ""
            continue
        sketch = answer.numbers.view(1 + NUM_PROJECTIONS, rows.num_rows)
        sketch[0].sqrt_()
        rows.known_as(team, place, sketch)
    return failures


def heads(team: Team, name: Name, rows: Rows, piece: int, count: int) -> list[list[float]]:
    """The first few numbers of a piece of every row; for the first rank only."""
    assert isinstance(rows, ShardedRows)
    count = min(count, rows.widths[piece])
    rows.known_as(team, team.num_matrices)
    numbers: list[list[float]] = rows.ask("heads", (rows.num_rows, count), piece, names=[name]).tolist()
    return numbers


def equal_rows(team: Team, name: Name, rows: Rows) -> list[tuple[int, ...]]:
    """The groups of rows that are equal but not made of one number per piece; for the first rank only."""
    assert isinstance(rows, ShardedRows)
    failures = read(team, {name: rows})
    if failures:
        raise TeamError(failures[name] or f"{', '.join(name)} are not on every rank")
    [sketch] = sketch_all([rows])
    # Sums over several ranks are not added up in the same order for all rows.
    groups = find_groups(Question(rows, sketch, TOLERANCES[torch.float64]))
    firsts = np.array([group[0] for group in groups], dtype=np.intp)
    is_constant = np.ones(len(groups), dtype=np.bool_)
    for piece in range(len(rows.widths) if len(groups) else 0):
        is_constant &= ~np.isnan(rows.constants(firsts, piece))
    return [group for group, constant in zip(groups, is_constant.tolist(), strict=True) if not constant]
