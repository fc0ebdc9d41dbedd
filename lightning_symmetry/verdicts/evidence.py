"""One look at the layers: which units have equal weights, and what their gradients say.

Evidence only; the verdict is for :mod:`lightning_symmetry.verdicts.report` and, over several looks, for
:mod:`lightning_symmetry.verdicts.history`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import numpy as np
import torch

from lightning_symmetry.matrices.grouping import find_groups, is_chance, merge_overlapping
from lightning_symmetry.matrices.numerics import Indices, exact_arithmetic
from lightning_symmetry.matrices.partition import stable_groups
from lightning_symmetry.matrices.question import LEAVE_TOLERANCES, TOLERANCES, Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sieve import suspects
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.ranks.reading import read
from lightning_symmetry.ranks.team import Name, Team, TeamError
from lightning_symmetry.verdicts.report import Cause

# Gradients of units in a constant network can be nothing but rounding errors, so many times the precision of their
# dtype below the largest gradient row of the model. Such a gradient proves no difference, and equality only slowly.
_NOISE = 16.0
# A late warning is better than a long wait.
_MAX_ROUNDS = 16


class Comparable(Protocol):
    """Rows to compare: those of a layer's units, or whole modules, each taken for one row.

    Attributes:
        name: the same at every look.
        num_units: number of rows.
        fan_in: number of weights in a row.
        blocks: rows of different blocks are never compared.
        also: other names of the same.
        device: where the weights are.
        can_freeze: whether zero gradients, again and again, are worth a word.
        row_names: what the rows are called, if not by their index.
    """

    # fmt: off
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def num_units(self) -> int: ...  # noqa: D102
    @property
    def fan_in(self) -> int: ...  # noqa: D102
    @property
    def blocks(self) -> int: ...  # noqa: D102
    @property
    def also(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def can_freeze(self) -> bool: ...  # noqa: D102
    @property
    def row_names(self) -> tuple[str, ...]: ...  # noqa: D102
    # fmt: on

    def weights(self) -> Rows:
        """The rows."""
        ...

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """Their gradients; ``trained`` are the identities of the parameters whose gradients count."""
        ...

    def recurrent_rows(self) -> Rows | None:
        """What feeds the units back into themselves, ``(num_units, gates * num_units)``."""
        ...


class Gradients(StrEnum):
    """What the gradients of units with equal weights say at one look."""

    NONE = "none"  # there are none, or they are not finite
    ZERO = "zero"  # exactly zero
    EQUAL = "equal"
    FAINT = "faint"  # equal, but so small that it could be rounding noise
    UNCLEAR = "unclear"  # neither equal nor different beyond doubt
    DIFFERENT = "different"


@dataclass(frozen=True)
class Sighting:
    """A set of units that caught the eye at one look.

    Attributes:
        units: sorted indices.
        has_equal_weights: otherwise only the gradients agree.
        gradients: what the gradients say.
        cause: what the weights look like.
        value: the number that every weight equals, for :attr:`Cause.CONSTANT`.
        position: the product of the first unit's row with a fixed random vector; from look to look it moves by about as
            much as the row does.
        reach: how far a row that is not equal any more may still lie off; movements beyond a multiple of it are shared.
    """

    units: tuple[int, ...]
    has_equal_weights: bool
    gradients: Gradients
    cause: Cause
    value: float | None
    position: float
    reach: float


@dataclass(frozen=True)
class Look:
    """What one look at a layer showed.

    Attributes:
        layer: the layer.
        weights: its rows.
        gradients: its gradient rows, if there are any to see.
        dead_units: number of units with a zero gradient and weights of their own.
        sightings: disjoint sets of units.
        fingerprint: of the weights; another one if any row has moved.
        has_gradient: whether any gradient is not zero; it may be infinite.
    """

    layer: Comparable
    weights: Rows
    gradients: Rows | None
    dead_units: int
    sightings: tuple[Sighting, ...]
    fingerprint: int
    has_gradient: bool


def look(
    layers: Sequence[Comparable],
    *,
    tolerance: float | None = None,
    trained: Set[int] | None = None,
    known: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
    on_error: Callable[[Comparable, Exception], None] | None = None,
    team: Team | None = None,
) -> list[Look]:
    """Look once at the weights and gradients of some layers.

    Args:
        layers: the layers.
        tolerance: relative L2 distance of rows taken for equal; None: by dtype.
        trained: identities of the parameters whose gradients count; None: all.
        known: by layer name, groups of earlier looks, which are left only at a looser tolerance.
        on_error: called with the layer and the exception when a layer cannot be looked at; it is then left out. None:
            the exception is raised.
        team: the ranks that hold the layers; None: they are all here.

    Returns:
        One look per layer.
    """
    known = known or {}

    @contextmanager
    def guarded(layer: Comparable) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if on_error is None:
                raise
            on_error(layer, error)

    with ExitStack() as stack:
        for device in {layer.device for layer in layers}:
            stack.enter_context(exact_arithmetic(device))
        matrices: list[_Matrices] = []
        for layer in layers:
            with guarded(layer):
                matrices.append(_Matrices(layer, layer.weights(), layer.gradients(trained), layer.recurrent_rows()))
        if team is not None:
            matrices = _known_to_all(team, matrices, guarded)
        read: list[_Sketched] = []
        try:
            read = _read(matrices, tolerance)
        except Exception:
            # One by one, to find whose fault it is.
            for matrix in matrices:
                with guarded(matrix.layer):
                    read += _read([matrix], tolerance)
        scale = max((item.largest_gradient() for item in read), default=0.0)
        questions = [question for item in read for question in item.questions()]
        suspected = {id(question): rows for question, rows in zip(questions, suspects(questions), strict=True)}
        looks: list[Look] = []
        for item in read:
            with guarded(item.layer):
                of_gradients = suspected[id(item.gradients)] if item.gradients else None
                judge = _GradientJudge(item.layer, item.gradients, of_gradients, scale)
                looks.append(_look_at(item, suspected[id(item.weights)], judge, known.get(item.layer.name, ())))
        return looks


@dataclass(frozen=True)
class _Matrices:
    """What there is to read of a layer."""

    layer: Comparable
    weights: Rows
    gradients: Rows | None
    recurrent: Rows | None


def _known_to_all(
    team: Team, matrices: Sequence[_Matrices], guarded: Callable[[Comparable], AbstractContextManager[None]]
) -> list[_Matrices]:
    """Make what is sharded known to all ranks; without the layers that some rank cannot read.

    Gradients that are missing on some rank, as those of experts that it did not use, are not there to see.
    """

    def name(item: _Matrices, part: str) -> Name:
        return (part, *(item.layer.row_names or (item.layer.name,)))

    parts = ("weights", "gradients", "recurrent")
    failures = read(team, {name(item, part): getattr(item, part) for item in matrices for part in parts})
    known: list[_Matrices] = []
    for item in matrices:
        with guarded(item.layer):
            for part in parts:
                reason = failures.get(name(item, part))
                if reason or (reason is not None and part != "gradients"):
                    raise TeamError(reason or f"its {part} are not on every rank")
            known.append(replace(item, gradients=None) if name(item, "gradients") in failures else item)
    return known


@dataclass(frozen=True)
class _Sketched:
    """What was read of a layer: its weights, and its gradients if there are any to see."""

    layer: Comparable
    weights: Question
    gradients: Question | None
    recurrent: Rows | None

    def questions(self) -> list[Question]:
        return [self.weights, *([self.gradients] if self.gradients else [])]

    def largest_gradient(self) -> float:
        """The largest norm of a gradient row that is finite."""
        return float(np.fmax.reduce(self.gradients.sketch.norms, initial=0.0)) if self.gradients else 0.0


def _read(matrices: Sequence[_Matrices], tolerance: float | None) -> list[_Sketched]:
    every = [rows for item in matrices for rows in (item.weights, item.gradients) if rows]
    sketches = {id(rows): sketch for rows, sketch in zip(every, sketch_all(every), strict=True)}

    def question(rows: Rows, layer: Comparable) -> Question:
        entered_at = TOLERANCES[rows.dtype] if tolerance is None else tolerance
        return Question(rows, sketches[id(rows)], entered_at, layer.blocks)

    return [
        _Sketched(
            item.layer,
            question(item.weights, item.layer),
            question(item.gradients, item.layer) if item.gradients else None,
            item.recurrent,
        )
        for item in matrices
    ]


def _look_at(item: _Sketched, suspected: Indices, judge: _GradientJudge, known: Sequence[tuple[int, ...]]) -> Look:
    layer, weights = item.layer, item.weights
    groups = _equal_units(weights, item.recurrent, suspected=suspected) if len(suspected) > 1 else []
    if groups:
        causes = _causes(layer, weights.rows, groups)
        groups = [group for group, cause in zip(groups, causes, strict=True) if not _is_coincidence(group, item, cause)]
    if known:
        home = {unit: i for i, group in enumerate(groups) for unit in group}
        held = [g for g in known if g[-1] < layer.num_units and len({home.get(u, -1 - u) for u in g}) > 1]
        if held:
            groups = merge_overlapping([*groups, *_equal_units(_loosened(weights), item.recurrent, among=held)])
    grouped = {unit for group in groups for unit in group}

    sightings = _sightings(item, groups, judge.of(groups), has_equal_weights=True)
    in_lockstep = judge.in_lockstep(exclude=grouped)
    sightings += _sightings(item, in_lockstep, [Gradients.EQUAL] * len(in_lockstep), has_equal_weights=False)
    return Look(
        layer,
        weights.rows,
        item.gradients.rows if item.gradients else None,
        judge.count_zero(exclude=grouped),
        tuple(sightings),
        hash(weights.sketch.projections.tobytes()),
        item.gradients is not None and bool(np.count_nonzero(item.gradients.sketch.norms)),
    )


def _equal_units(
    weights: Question,
    recurrent: Rows | None,
    *,
    suspected: Indices | None = None,
    among: Sequence[Sequence[int]] | None = None,
) -> list[tuple[int, ...]]:
    groups = find_groups(weights, suspected=suspected, among=among, max_rounds=_MAX_ROUNDS)
    return groups if recurrent is None or not groups else stable_groups(groups, recurrent, weights.tolerance)


def _loosened(question: Question) -> Question:
    """The same at the tolerance at which groups are left."""
    tolerance = min(max(100 * question.tolerance, LEAVE_TOLERANCES[question.rows.dtype]), 0.5)
    return replace(question, tolerance=tolerance)


def _is_coincidence(group: Sequence[int], item: _Sketched, cause: tuple[Cause, float | None]) -> bool:
    rows = item.weights.rows
    # Of a constant weight one number could have differed, however often it is repeated.
    width = rows.width if cause[0] is Cause.COPIED else 1 + rows.width - rows.widths[0]
    return item.weights.sketch.norms[group[0]] != 0 and _is_chance(group, item.weights, width)


def _is_chance(group: Sequence[int], question: Question, width: int) -> bool:
    resolution = max(question.tolerance, torch.finfo(question.rows.dtype).eps)
    return is_chance(len(group), question.rows.num_rows // question.blocks, width, resolution)


def _sightings(
    item: _Sketched, groups: Sequence[tuple[int, ...]], gradients: Sequence[Gradients], *, has_equal_weights: bool
) -> list[Sighting]:
    if not groups:
        return []
    weights = item.weights
    firsts = np.array([group[0] for group in groups])
    positions = weights.rows.positions(firsts)
    reaches = _loosened(weights).tolerance * weights.sketch.norms[firsts]
    causes = _causes(item.layer, weights.rows, groups) if has_equal_weights else [(Cause.COPIED, None)] * len(groups)
    return [
        Sighting(group, has_equal_weights, gradient, *cause, float(position), float(reach))
        for group, gradient, cause, position, reach in zip(groups, gradients, causes, positions, reaches, strict=True)
    ]


def _causes(layer: Comparable, rows: Rows, groups: Sequence[tuple[int, ...]]) -> list[tuple[Cause, float | None]]:
    causes: list[tuple[Cause, float | None]] = []
    constants = rows.constants(np.array([group[0] for group in groups]))
    for group, value in zip(groups, constants.tolist(), strict=True):
        if math.isnan(value):
            causes.append((Cause.COPIED, None))
        elif value == 0:
            causes.append((Cause.ZERO, value))
        elif layer.fan_in == 1 and len(group) < layer.num_units:  # one number is always constant
            causes.append((Cause.COPIED, None))
        else:
            causes.append((Cause.CONSTANT, value))
    return causes


class _GradientJudge:
    """What the gradients of one layer say about sets of its units."""

    def __init__(self, layer: Comparable, question: Question | None, suspected: Indices | None, scale: float) -> None:
        self._layer, self._question = layer, question
        self._groups: list[tuple[int, ...]] = []
        if question is None or suspected is None:
            return
        self._norms = question.sketch.norms
        self._floor = _NOISE * torch.finfo(question.rows.dtype).eps * scale
        if len(suspected) > 1:
            is_telling = self._norms[suspected] > 0  # zero gradients are equal, but say nothing
            self._groups = find_groups(question, suspected=suspected[is_telling], max_rounds=_MAX_ROUNDS)

    def of(self, groups: Sequence[tuple[int, ...]]) -> list[Gradients]:
        """What the gradients say of units with equal weights, one answer per group."""
        if self._question is None or not groups:
            return [Gradients.NONE] * len(groups)
        home = {unit: i for i, group in enumerate(self._groups) for unit in group}
        answers = {group: self._at_a_glance(group, home) for group in groups}
        open_groups = [group for group, answer in answers.items() if answer is None]
        if open_groups:
            loose = set(find_groups(_loosened(self._question), among=open_groups))
            answers |= {g: Gradients.UNCLEAR if g in loose else Gradients.DIFFERENT for g in open_groups}
        return [answer for answer in answers.values() if answer is not None]

    def _at_a_glance(self, group: tuple[int, ...], home: Mapping[int, int]) -> Gradients | None:
        """None: not the same, and perhaps different."""
        norms = self._norms[list(group)]
        if np.isnan(norms).any():
            return Gradients.NONE
        largest = float(norms.max())
        if largest == 0:
            return Gradients.ZERO if self._layer.can_freeze else Gradients.NONE
        is_faint = largest <= self._floor
        if len({home.get(unit, -1 - unit) for unit in group}) == 1:
            return Gradients.FAINT if is_faint else Gradients.EQUAL
        return Gradients.UNCLEAR if is_faint else None

    def in_lockstep(self, exclude: set[int]) -> list[tuple[int, ...]]:
        """Groups of units outside ``exclude`` with equal gradients that are neither noise nor chance."""
        found = []
        for group in self._groups:
            assert self._question is not None
            units = tuple(unit for unit in group if unit not in exclude)
            is_seen = float(self._norms[group[0]]) > self._floor
            if len(units) > 1 and is_seen and not _is_chance(units, self._question, self._question.rows.width):
                found.append(units)
        return found

    def count_zero(self, exclude: set[int]) -> int:
        """Number of units outside ``exclude`` whose gradient is exactly zero."""
        if self._question is None:
            return 0
        zero = np.flatnonzero(self._norms == 0)
        return len(set(zero.tolist()) - exclude) if exclude else len(zero)
