"""Functions of the ranks that hold a model: their team, sketches of the model's matrices, and groups of equal rows.

Only the first rank calls the functions that get a team. They raise a :class:`TeamError` if some rank does not have a
matrix, or cannot read it.
"""

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
    """Return whether this process has a process group."""
    return dist.is_available() and dist.is_initialized()


def device_to_send_from(model: nn.Module) -> torch.device:
    """Return the device from which tensors are sent: that of the parameters, if the backend supports it."""
    here = next((parameter.device for parameter in parameters_of(model)), torch.device("cpu"))
    if not has_group():
        return here
    # For example "cuda:nccl", or "cpu:gloo,cuda:nccl" for a group with a backend for each device type.
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]
    if here.type in kinds:
        return here
    return torch.device(kinds[0], torch.cuda.current_device()) if kinds[0] == "cuda" else torch.device(kinds[0])


def team_of(model: nn.Module) -> Team | None:
    """Return the ranks among which a model is sharded; None if this rank has the whole model."""
    is_split = bool(flattened_modules(model)) or any(map(is_sharded, parameters_of(model)))
    return Team(device_to_send_from(model)) if is_split and has_group() else None


def is_replicated(model: nn.Module) -> bool:
    """Return whether :class:`DistributedDataParallel` or DeepSpeed keeps modules of a model equal on all ranks."""
    return any(issubclass(type(module), DistributedDataParallel) or is_engine(module) for module in modules_of(model))


def read(team: Team, matrices: Mapping[Name, Rows | None]) -> dict[Name, str]:
    """Register the sharded matrices on all ranks, and read their sketches.

    Returns:
        By name, why a matrix cannot be read; an empty reason means that some rank does not have it. If there are
        several sharded matrices and all of them fail, the failure is raised instead.
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
        raise TeamError(reason)  # a failure of every matrix is not specific to a layer
    return failures


def first_numbers(team: Team, name: Name, rows: Rows, piece: int, count: int) -> list[list[float]]:
    """Return up to ``count`` first numbers of a piece of every row."""
    assert isinstance(rows, ShardedRows)
    rows.register(team, team.num_matrices)
    count = min(count, rows.widths[piece])
    numbers: list[list[float]] = rows.ask(queries.heads, piece, count, names=[name]).tolist()
    return numbers


def equal_rows(team: Team, name: Name, rows: Rows) -> list[tuple[int, ...]]:
    """Return the groups of equal rows, except rows that are constant in each piece."""
    failures = read(team, {name: rows})
    if failures:
        raise TeamError(failures[name] or f"{', '.join(name)} are not on every rank")
    [sketch] = sketch_all([rows])
    # The order of sums over ranks differs between rows, so equal rows may differ by rounding.
    groups = find_groups(Question(rows, sketch, TOLERANCES[torch.float64]))
    firsts = np.array([group[0] for group in groups], dtype=np.intp)
    is_constant = np.ones(len(groups), dtype=np.bool_)
    for piece in range(len(rows.widths) if len(groups) else 0):
        is_constant &= ~np.isnan(rows.constants(firsts, piece))
    return [group for group, constant in zip(groups, is_constant.tolist(), strict=True) if not constant]
