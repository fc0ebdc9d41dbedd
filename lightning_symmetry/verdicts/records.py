"""The history of each group of units, continued from check to check and stored in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from operator import index
from typing import Any, TypeVar, get_args, get_type_hints

from lightning_symmetry.matrices.numerics import Mask
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, Reason, UnitGroup
from lightning_symmetry.verdicts.look import Gradients, Sighting
from lightning_symmetry.verdicts.stops import GradientStop, Stopped
from lightning_symmetry.verdicts.verdict import Verdict

T = TypeVar("T")


@dataclass
class Record:
    """The history of one group of units; fields without a comment are as in :class:`UnitGroup` and :class:`Finding`."""

    units: tuple[int, ...]  # the units at the latest check that saw the group
    has_equal_weights: bool  # False if only the gradients of the units are equal
    cause: Cause
    value: float | None
    position: float  # `Sighting.position` when the group was first seen
    first_step: int
    last_step: int
    origin: Origin
    broken_step: int | None = None  # step of the check at which the group was gone; None while it holds
    verdict: Verdict = Verdict.DUPLICATE  # the conclusion of the latest check
    gradients: Gradients = Gradients.NONE  # the latest evidence of the gradients other than `NONE` and `UNCLEAR`
    streak: int = 0  # number of checks in a row with this evidence
    # Number of steps in a row, checks included, at which all gradients were zero; counted until the group is frozen.
    num_watched: int = 0
    was_different: bool = False  # whether the gradients of its units have ever differed
    is_pruned: bool = False  # whether the units are rows of zeros without a gradient, in a layer with other rows
    warned: Verdict | None = None  # the first verdict that the user was warned of; None if there was no warning
    warned_units: tuple[int, ...] = ()  # the units in the warning
    warned_watched: int = 0  # `num_watched` at the time of the warning
    row_names: tuple[str, ...] = ()  # names of the rows, if they are whole modules
    warned_reason: Reason = Reason.UNDECIDED  # the reason of the verdict `warned`
    mirrored: tuple[int, ...] = ()
    stopped: Stopped | None = None  # where the gradient stops, if it is zero and a step was traced; else None
    warned_stopped: Stopped | None = None  # `stopped` at the time of the warning
    kept_by: str = ""
    is_explained: bool = False  # whether `kept_by` has been looked for
    _group: UnitGroup | None = field(default=None, init=False, repr=False, compare=False)
    _values: tuple[Any, ...] = field(default=(), init=False, repr=False, compare=False)  # of `_group`

    @property
    def has_grown(self) -> bool:
        """Whether the group is at least twice as large as at its last warning, or was in no warning so far."""
        return len(self.units) >= 2 * len(self.warned_units)

    def update(self, sighting: Sighting, is_fresh: bool) -> None:
        """Record the gradients at a check; repeated evidence counts only if the weights have moved (``is_fresh``)."""
        gradients = evidence = sighting.gradients
        if self.cause is Cause.ZERO and {evidence, self.gradients} == {Gradients.ZERO, Gradients.FAINT}:
            # Rounding errors are sometimes exactly zero.
            evidence = self.gradients = Gradients.FAINT
        if gradients not in (Gradients.NONE, Gradients.UNCLEAR) and (is_fresh or evidence is not self.gradients):
            self.streak = self.streak + 1 if evidence is self.gradients else 1
            self.gradients = evidence
        if gradients is Gradients.ZERO:
            self.num_watched += self.verdict not in (Verdict.FROZEN, Verdict.IDLE)
        elif gradients is not Gradients.NONE:
            self.num_watched, self.stopped = 0, None
            if self.verdict is Verdict.IDLE:
                self.verdict = Verdict.DUPLICATE
        if gradients is Gradients.DIFFERENT and self.has_equal_weights:
            self.was_different = True

    @property
    def is_to_be_watched(self) -> bool:
        """Whether the gradients were zero, and each step must be watched to decide whether they stay zero."""
        is_silent = self.gradients is Gradients.ZERO and self.has_equal_weights and not self.was_different
        is_decided = self.verdict in (Verdict.FROZEN, Verdict.IDLE)
        return is_silent and self.broken_step is None and not is_decided and not self.is_pruned

    def is_to_be_explained(self, patience: int) -> bool:
        """Return whether a trace should find what keeps the units equal: there was a warning, or may be soon."""
        if self.is_explained or self.row_names or self.broken_step is not None:
            return False
        is_near = self.gradients is Gradients.EQUAL and not self.has_equal_weights and self.streak + 1 >= patience
        return is_near or self.verdict in (Verdict.LOCKED, Verdict.LOCKSTEP)

    def watch(self, is_zero: Mask, is_unseen: Mask) -> None:
        """Record the gradients at a step between two checks, if they were zero at the latest check.

        The masks, ``(num_units,)``, show which gradients are exactly zero and which are not finite.
        """
        units = list(self.units)
        if is_zero[units].all():
            self.num_watched += 1
        elif not is_unseen[units].any():
            self.gradients, self.streak, self.num_watched, self.stopped = Gradients.NONE, 0, 0, None

    def trace(self, stopped: Stopped | None) -> None:
        """Record where a trace found that the gradient stops; forget the past of a group that is no longer idle."""
        if self.verdict is Verdict.IDLE and not (stopped and stopped.stop.is_idle):
            self.verdict, self.gradients, self.streak, self.num_watched = Verdict.DUPLICATE, Gradients.NONE, 0, 0
        self.stopped = stopped

    def conclude(self, verdict: Verdict, reason: Reason) -> None:
        """Record the verdict of this check and, if it is serious, the warning."""
        self.verdict, self.is_pruned = verdict, reason is Reason.PRUNED
        is_dead = verdict is Verdict.FROZEN and reason is Reason.ZERO_AGAIN
        if self.warned is None and is_dead and self.cause is not Cause.ZERO:
            self.cause = Cause.DEAD
        if not verdict.is_warning:
            return
        if self.warned is None:
            self.warned, self.warned_reason = verdict, reason
        if self.has_grown:
            self.warned_units, self.warned_watched = self.units, self.num_watched
            self.warned_stopped = self.stopped

    def to_finding(self, layer: str) -> Finding:
        """Return the finding about the units that the user was warned of."""
        assert self.warned is not None
        stop, follows = self.warned_stopped or (None, "")
        return Finding(
            layer,
            self.warned_units,
            self.warned,
            self.cause,
            self.value,
            self.first_step,
            self.last_step,
            self.broken_step,
            self.origin,
            tuple(self.row_names[unit] for unit in self.warned_units) if self.row_names else (),
            self.warned_reason,
            tuple(sorted({*self.mirrored}.intersection(self.warned_units))) if self.mirrored else (),
            self.warned_watched,
            stop,
            follows,
            self.kept_by,
        )

    def to_group(self) -> UnitGroup:
        """Return the group for the report; the same object until something changes."""
        stop, follows = self.stopped or (None, "")
        values = (
            self.units,
            self.verdict,
            self.cause,
            self.value,
            self.first_step,
            self.origin,
            Reason.PRUNED if self.is_pruned else self.warned_reason,
            self.mirrored,
            self.num_watched,
            stop,
            follows,
            self.kept_by,
        )
        if self._group is None or self._values != values:
            self._group, self._values = UnitGroup(*values), values
        return self._group


class Lineage:
    """Matches the groups of a check with the records of a layer at the check before.

    Records of one kind, equal weights or lockstep, never share a unit, so each is found by any of its units.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._continued: set[int] = set()  # identities of the records that a group of this check continues
        self._before: dict[int, Record] = {}  # copies, by identity, of records whose units change at this check
        self._by_unit: dict[tuple[bool, int], Record] = {}  # as before this check
        for record in records:
            if record.broken_step is None:
                for unit in record.units:
                    self._by_unit[record.has_equal_weights, unit] = record

    def resume(self, sighting: Sighting, step: int) -> Record | None:
        """Continue, or reopen, the record of a group; return None if the group is new."""
        predecessors = self._predecessors(sighting)
        record = predecessors[0]
        if record is not None and all(each is record for each in predecessors):
            if id(record) in self._continued:  # another part of a group that has split; this part gets a copy
                before = self._before[id(record)]
                record = replace(before, warned_units=sighting.units if before.warned else ())
            elif (record.units, record.mirrored) != (sighting.units, sighting.mirrored):
                self._before[id(record)] = replace(record)
            self._continued.add(id(record))
            if record.was_different and len(sighting.units) < len(record.units):
                record.streak = 0  # what is left of a group that falls apart needs new evidence
                if record.verdict is Verdict.BREAKING:  # the units that are left are not known to differ
                    record.verdict = Verdict.DUPLICATE
        else:
            record = self._broken(sighting)
            if record is None:
                return None
            record.broken_step, record.streak = None, 0
        record.units, record.mirrored, record.last_step = sighting.units, sighting.mirrored, step
        return record

    def begin(self, sighting: Sighting, step: int, origin: Origin, row_names: tuple[str, ...]) -> Record:
        """Return a record of a new group, which replaces the records of the groups that it contains."""
        units = set(sighting.units)
        before = [self._before.get(id(record), record) for record in self._predecessors(sighting) if record]
        parts = {id(record): record for record in before if units.issuperset(record.units)}.values()
        warned = next((part for part in parts if part.warned), None)
        return Record(
            units=sighting.units,
            has_equal_weights=sighting.has_equal_weights,
            cause=sighting.cause,
            value=sighting.value,
            position=sighting.position,
            first_step=step,
            last_step=step,
            origin=origin,
            warned=warned.warned if warned else None,
            warned_reason=warned.warned_reason if warned else Reason.UNDECIDED,
            warned_units=tuple(sorted({unit for part in parts for unit in part.warned_units})),
            row_names=row_names,
            mirrored=sighting.mirrored,
        )

    def end(self, current: Sequence[Record], step: int) -> list[Record]:
        """Mark the records of groups that are gone at this check as broken.

        Return the broken records, old and new, that the user was warned of, in the order in which they ended. Omit a
        group that became part of a larger one, whose record includes it.
        """
        by_unit = {(record.has_equal_weights, unit): record for record in current for unit in record.units}
        ended = []
        for record in self._records:
            if record.warned is None:
                continue
            if record.broken_step is None:
                # A record that continues is its own successor.
                successors = [by_unit.get((record.has_equal_weights, unit)) for unit in record.units]
                if successors[0] is not None and all(each is successors[0] for each in successors):
                    continue
                record.broken_step = step
            ended.append(record)
        return ended

    def _predecessors(self, sighting: Sighting) -> list[Record | None]:
        """Return for each unit the record of the same kind that was open before this check."""
        return [self._by_unit.get((sighting.has_equal_weights, unit)) for unit in sighting.units]

    def _broken(self, sighting: Sighting) -> Record | None:
        """Return a broken record that held all of these units."""
        units = set(sighting.units)
        alike = (each for each in self._records if each.has_equal_weights == sighting.has_equal_weights)
        return next((record for record in alike if units <= set(record.units)), None)


def to_plain(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that its constructor takes, as plain data."""
    return {each.name: _plain(getattr(instance, each.name)) for each in fields(instance) if each.init}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, GradientStop):
        return value.to_dict()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


_types_of: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
_READERS: Mapping[Any, Callable[[Any], Any]] = {
    int: index,
    GradientStop: GradientStop.from_dict,
    Stopped: Stopped.from_plain,
}


def from_plain(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from what :func:`to_plain` returned, in this version or an earlier one.

    Missing fields get their defaults, unknown ones are ignored. Values of another dataclass may raise any exception.
    """
    types = _types_of(cls)
    names = [each.name for each in fields(cls) if each.init and each.name in values]  # type: ignore[arg-type]
    return cls(**{name: _read(types[name], values[name]) for name in names})


def _read(kind: Any, value: Any) -> Any:
    """Convert plain data to a type: a class, an optional one, or a tuple of any length."""
    first, *others = get_args(kind) or (kind,)
    if type(None) in others:
        return None if value is None else _read(first, value)
    return tuple(_read(first, each) for each in value) if others else _READERS.get(kind, kind)(value)
