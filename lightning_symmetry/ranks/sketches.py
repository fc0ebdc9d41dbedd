"""What is asked of the ranks that hold a model: who they are, sketches of its matrices, and which rows are equal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_symmetry.matrices.grouping import find_groups
from lightning_symmetry.matrices.projections import NUM_PROJECTIONS
from lightning_symmetry.matrices.question import TOLERANCES, Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.modules import modules_of, parameters_of
from lightning_symmetry.ranks import queries
from lightning_symmetry.ranks.flattening import flattened_modules
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.ranks.sharded import ShardedRows
from lightning_symmetry.ranks.team import Name, Team, TeamError
from lightning_symmetry.ranks.zero import is_engine


def has_group() -> bool:
    """Whether this process is one of several that have found one another."""
    return dist.is_available() and dist.is_initialized()


def device_to_send_from(model: nn.Module) -> torch.device:
    """Where tensors must lie to be sent to the other ranks: beside the parameters, if the backend sends from there."""
    here = next((parameter.device for parameter in parameters_of(model)), torch.device("cpu"))
    if not has_group():
        return here
    # For example "cuda:nccl", or "cpu:gloo,cuda:nccl" for a group with a backend for each kind of device.
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]
    if here.type in kinds or not kinds:
        return here
    return torch.device(kinds[0], torch.cuda.current_device()) if kinds[0] == "cuda" else torch.device(kinds[0])


def team_of(model: nn.Module) -> Team | None:
    """The ranks that hold a model; None if it is all here."""
    is_spread = bool(flattened_modules(model)) or any(map(is_sharded, parameters_of(model)))
    return Team(device_to_send_from(model)) if is_spread and has_group() else None


def is_replicated(model: nn.Module) -> bool:
    """Whether a model is, or holds, what :class:`DistributedDataParallel` or DeepSpeed keeps equal on all ranks."""
    return any(issubclass(type(module), DistributedDataParallel) or is_engine(module) for module in modules_of(model))


def read(team: Team, matrices: Mapping[Name, Rows | None]) -> dict[Name, str]:
    """Make the sharded ones of some matrices known to all ranks, and read each row once; for the first rank only.

    Returns:
        By name, why a matrix cannot be read; an empty reason means that some rank does not have it.

    Raises:
        TeamError: if there are several sharded matrices and none of them can be read.
    """
    sharded = {name: rows for name, rows in matrices.items() if isinstance(rows, ShardedRows)}
    if not sharded:
        return {}
    numbered = dict(enumerate(sharded.values(), start=team.num_matrices))
    request = queries.sketch.request({number: rows.local for number, rows in numbered.items()}, names=list(sharded))
    answers = team.ask(request, sharded.__getitem__)
    reason = team.what_failed() if any(answer.has_failed for answer in answers) else ""
    failures: dict[Name, str] = {}
    for name, (number, rows), answer in zip(sharded, numbered.items(), answers, strict=True):
        if answer.has_failed or answer.is_missing:
            failures[name] = reason if answer.has_failed else ""
            continue
        sketch = answer.numbers.view(1 + NUM_PROJECTIONS, rows.num_rows)
        sketch[0].sqrt_()
        rows.register(team, number, sketch)
    if len(sharded) > 1 and all(failures.get(name) for name in sharded):
        raise TeamError(reason)  # what fails for every matrix is no matter of one layer
    return failures


def first_numbers(team: Team, name: Name, rows: Rows, piece: int, count: int) -> list[list[float]]:
    """Up to ``count`` first numbers of a piece of every row; for the first rank only.

    Raises:
        TeamError: if some rank does not have the matrix, or cannot read it.
    """
    assert isinstance(rows, ShardedRows)
    rows.register(team, team.num_matrices)
    count = min(count, rows.widths[piece])
    numbers: list[list[float]] = rows.ask(queries.heads, piece, count, names=[name]).tolist()
    return numbers


def equal_rows(team: Team, name: Name, rows: Rows) -> list[tuple[int, ...]]:
    """The groups of equal rows, without those that are made of one number per piece; for the first rank only.

    Raises:
        TeamError: if some rank does not have the matrix, or cannot read it.
    """
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
