"""One look at the layers: which units have equal weights, and what their gradients say.

Evidence only; the verdict is for :mod:`lightning_symmetry.diagnosis` and, over several looks, for
:mod:`lightning_symmetry.history`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch

from lightning_symmetry.grouping import (
    LEAVE_TOLERANCES,
    TOLERANCES,
    Rows,
    Sketch,
    exact_arithmetic,
    find_groups,
    is_chance,
    merge_overlapping,
    sketch,
    stable_groups,
)

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

    def recurrent_rows(self) -> torch.Tensor | None:
        """What feeds the units back into themselves, ``(num_units, gates, num_units)``."""
        ...


class Gradients(StrEnum):
    """What the gradients of units with equal weights say at one look."""

    NONE = "none"  # there are none, or they are not finite
    ZERO = "zero"  # exactly zero
    EQUAL = "equal"
    FAINT = "faint"  # equal, but so small that it could be rounding noise
    UNCLEAR = "unclear"  # neither equal nor different beyond doubt
    DIFFERENT = "different"


class Cause(StrEnum):
    """How a group came to be, as far as its weights and gradients tell."""

    ZERO = "zero"  # every weight is 0
    CONSTANT = "constant"  # every weight is the same number
    COPIED = "copied"  # the rows are copies of one another
    DEAD = "dead"  # frozen although the weights are not zero, as behind a ReLU that never opens


@dataclass(frozen=True)
class Sighting:
    """A set of units that caught the eye at one look.

    Attributes:
        units: sorted indices.
        has_equal_weights: otherwise only the gradients agree.
        gradients: what the gradients say.
        cause: what the weights look like.
        value: the number that every weight equals, for :attr:`Cause.CONSTANT`.
        position: the projection of the first unit's row on fixed random signs; from look to look it moves by about as
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
        gradients: its gradient rows, if there are any to see.
        dead_units: number of units with a zero gradient and weights of their own.
        sightings: disjoint sets of units.
        fingerprint: of the weights; another one if any row has moved.
        has_gradient: whether any gradient is not zero; it may be infinite.
    """

    layer: Comparable
    gradients: Rows | None
    dead_units: int
    sightings: tuple[Sighting, ...]
    fingerprint: int
    has_gradient: bool


@dataclass(frozen=True)
class _Sketched:
    layer: Comparable
    weights: Rows
    weight_sketch: Sketch
    gradients: Rows | None
    gradient_sketch: Sketch | None


def look(
    layers: Sequence[Comparable],
    *,
    tolerance: float | None = None,
    trained: Set[int] | None = None,
    known: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
    on_error: Callable[[Comparable, Exception], None] | None = None,
) -> list[Look]:
    """Look once at the weights and gradients of some layers.

    Args:
        layers: the layers.
        tolerance: relative L2 distance of rows taken for equal; None: by dtype.
        trained: identities of the parameters whose gradients count; None: all.
        known: by layer name, groups of earlier looks, which are left only at a looser tolerance.
        on_error: called with the layer and the exception when a layer cannot be looked at; it is then left out. None:
            the exception is raised.

    Returns:
        One look per layer.
    """
    known = known or {}

    @contextmanager
    def guarded(layer: Comparable) -> Iterator[None]:
        try:
            with exact_arithmetic(layer.device):
                yield
        except Exception as error:
            if on_error is None:
                raise
            on_error(layer, error)

    sketches: list[_Sketched] = []
    for layer in layers:
        with guarded(layer):
            sketches.append(_sketch_layer(layer, trained))
    scale = max((float(norms.nan_to_num(0.0).max()) for norms in _gradient_norms(sketches)), default=0.0)
    looks: list[Look] = []
    for item in sketches:
        with guarded(item.layer):
            looks.append(_look_at(item, tolerance, scale, known.get(item.layer.name, ())))
    return looks


def _sketch_layer(layer: Comparable, trained: Set[int] | None) -> _Sketched:
    weights, gradients = layer.weights(), layer.gradients(trained)
    return _Sketched(layer, weights, sketch(weights), gradients, sketch(gradients) if gradients else None)


def _gradient_norms(sketches: Sequence[_Sketched]) -> list[torch.Tensor]:
    return [item.gradient_sketch.norms for item in sketches if item.gradient_sketch is not None]


def _look_at(item: _Sketched, tolerance: float | None, scale: float, known: Sequence[tuple[int, ...]]) -> Look:
    layer, weights, norms = item.layer, item.weights, item.weight_sketch.norms
    enter = _tolerance(weights, tolerance)
    leave = _leave_tolerance(weights, enter)
    groups = _equal_units(item, enter)
    groups = [
        group
        for group in groups
        if norms[group[0]] == 0 or not _is_chance(group, layer, weights, enter, _informative_width(item, group))
    ]
    home = {unit: i for i, group in enumerate(groups) for unit in group}
    held = [group for group in known if group[-1] < layer.num_units and len({home.get(u, -1 - u) for u in group}) > 1]
    if held:
        groups = merge_overlapping([*groups, *_equal_units(item, leave, among=held)])
    grouped = {unit for group in groups for unit in group}

    judge = _GradientJudge(item, tolerance, scale)
    sightings = [_sighting(item, group, True, judge.of(group), leave) for group in groups]
    in_lockstep = judge.in_lockstep(exclude=grouped)
    sightings += [_sighting(item, group, False, Gradients.EQUAL, leave) for group in in_lockstep]
    return Look(
        layer,
        item.gradients,
        judge.count_zero(exclude=grouped),
        tuple(sightings),
        hash(item.weight_sketch.projections.numpy().tobytes()),
        item.gradient_sketch is not None and bool((item.gradient_sketch.norms != 0).any()),
    )


def _equal_units(
    item: _Sketched, tolerance: float, among: Sequence[Sequence[int]] | None = None
) -> list[tuple[int, ...]]:
    layer = item.layer
    groups = find_groups(
        item.weights,
        tolerance,
        sketched=item.weight_sketch,
        blocks=layer.blocks,
        among=among,
        max_rounds=_MAX_ROUNDS,
    )
    recurrent = layer.recurrent_rows()
    return groups if recurrent is None else stable_groups(groups, recurrent, tolerance)


def _tolerance(rows: Rows, tolerance: float | None) -> float:
    return TOLERANCES[rows.dtype] if tolerance is None else tolerance


def _leave_tolerance(rows: Rows, tolerance: float) -> float:
    return min(max(100 * tolerance, LEAVE_TOLERANCES[rows.dtype]), 0.5)


def _is_chance(group: Sequence[int], layer: Comparable, rows: Rows, tolerance: float, width: int) -> bool:
    resolution = max(tolerance, torch.finfo(rows.dtype).eps)
    return is_chance(len(group), layer.num_units // layer.blocks, width, resolution)


def _informative_width(item: _Sketched, group: Sequence[int]) -> int:
    """How many numbers of a row could have differed: a constant weight is one, however often it is repeated."""
    rows = item.weights
    cause, _ = _cause(rows, group, item.layer)
    return rows.width if cause is Cause.COPIED else 1 + rows.width - rows.widths[0]


def _sighting(
    item: _Sketched, group: tuple[int, ...], has_equal_weights: bool, gradients: Gradients, leave: float
) -> Sighting:
    first = group[0]
    cause, value = _cause(item.weights, group, item.layer) if has_equal_weights else (Cause.COPIED, None)
    return Sighting(
        units=group,
        has_equal_weights=has_equal_weights,
        gradients=gradients,
        cause=cause,
        value=value,
        position=float(item.weight_sketch.projections[first]),
        reach=leave * float(item.weight_sketch.norms[first]),
    )


def _cause(rows: Rows, group: Sequence[int], layer: Comparable) -> tuple[Cause, float | None]:
    weight = rows.weight(group[0])
    value = float(weight[0])
    if bool((weight != weight[0]).any()):
        return Cause.COPIED, None
    if value == 0:
        return Cause.ZERO, value
    if layer.fan_in == 1 and len(group) < layer.num_units:  # one number is always constant
        return Cause.COPIED, None
    return Cause.CONSTANT, value


class _GradientJudge:
    """What the gradients of one layer say about sets of its units."""

    def __init__(self, item: _Sketched, tolerance: float | None, scale: float) -> None:
        self._layer, self._rows, self._sketch = item.layer, item.gradients, item.gradient_sketch
        if self._rows is None or self._sketch is None:
            return
        self._tolerance = _tolerance(self._rows, tolerance)
        self._floor = _NOISE * torch.finfo(self._rows.dtype).eps * scale
        self._groups = find_groups(
            self._rows,
            self._tolerance,
            sketched=self._sketch,
            blocks=self._layer.blocks,
            max_rounds=_MAX_ROUNDS,
        )
        self._group_of = {unit: i for i, group in enumerate(self._groups) for unit in group}

    def of(self, group: Sequence[int]) -> Gradients:
        """What the gradients say of units with equal weights."""
        if self._rows is None or self._sketch is None:
            return Gradients.NONE
        norms = self._sketch.norms[list(group)]
        if bool(norms.isnan().any()):
            return Gradients.NONE
        largest = float(norms.max())
        if largest == 0:
            return Gradients.ZERO if self._layer.can_freeze else Gradients.NONE
        is_faint = largest <= self._floor
        places = {self._group_of.get(unit, -1 - unit) for unit in group}
        if len(places) == 1:
            return Gradients.FAINT if is_faint else Gradients.EQUAL
        if is_faint or self._agrees_loosely(group):
            return Gradients.UNCLEAR
        return Gradients.DIFFERENT

    def in_lockstep(self, exclude: set[int]) -> list[tuple[int, ...]]:
        """Groups of units outside ``exclude`` with equal gradients that are neither noise nor chance."""
        if self._rows is None or self._sketch is None:
            return []
        found = []
        for group in self._groups:
            units = tuple(unit for unit in group if unit not in exclude)
            is_seen = float(self._sketch.norms[group[0]]) > self._floor
            width = self._rows.width
            if len(units) > 1 and is_seen and not _is_chance(units, self._layer, self._rows, self._tolerance, width):
                found.append(units)
        return found

    def count_zero(self, exclude: set[int]) -> int:
        """Number of units outside ``exclude`` whose gradient is exactly zero."""
        if self._sketch is None:
            return 0
        return len(set((self._sketch.norms == 0).nonzero().squeeze(1).tolist()) - exclude)

    def _agrees_loosely(self, group: Sequence[int]) -> bool:
        assert self._rows is not None
        leave = _leave_tolerance(self._rows, self._tolerance)
        loose = find_groups(self._rows, leave, sketched=self._sketch, among=[group])
        return loose == [tuple(group)]
