"""The past of each group: one record, which is carried from check to check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from operator import index
from typing import Any

from lightning_symmetry.matrices.numerics import Mask
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, Reason, UnitGroup
from lightning_symmetry.verdicts.look import Gradients, Sighting
from lightning_symmetry.verdicts.stops import GradientStop, Stopped
from lightning_symmetry.verdicts.verdict import Verdict


@dataclass
class Record:
    """The past of one group of units.

    Attributes:
        units: the units at the latest check that saw the group.
        has_equal_weights: False if only the gradients of the units are equal.
        cause: what the weights looked like when the group was first seen.
        value: the number that every weight was, for :attr:`Cause.CONSTANT`.
        position: :attr:`Sighting.position` when the group was first seen.
        first_step: optimizer step of the check that saw the group first.
        last_step: optimizer step of the latest check that saw it.
        origin: how the group entered the records.
        broken_step: optimizer step of the check at which the group was gone; None while it holds.
        verdict: what was concluded at the latest check.
        gradients: what the gradients said at the latest check at which they said anything.
        streak: at how many checks in a row they said so.
        num_watched: at how many steps in a row the gradients of all units were seen to be zero, checks included, until
            the group was called frozen.
        was_different: whether the gradients of its units have ever differed.
        is_pruned: whether these are rows of zeros in a layer with others, and had no gradient at the latest check.
        warned: the verdict that the user was warned of first; None if the user was not warned.
        warned_units: the units that the user was warned of.
        warned_watched: ``num_watched`` at that time.
        warned_reason: why that verdict was given.
        warned_stopped: ``stopped`` at that time.
        row_names: names of the rows, if they are whole modules.
        mirrored: units whose row is the negative of the first unit's.
        stopped: where the gradient stops that is zero; None if it is not, or if no step was traced.
        kept_by: as :attr:`Finding.kept_by`.
        is_explained: whether that was looked for.
    """

    units: tuple[int, ...]
    has_equal_weights: bool
    cause: Cause
    value: float | None
    position: float
    first_step: int
    last_step: int
    origin: Origin
    broken_step: int | None = None
    verdict: Verdict = Verdict.DUPLICATE
    gradients: Gradients = Gradients.NONE
    streak: int = 0
    num_watched: int = 0
    was_different: bool = False
    is_pruned: bool = False
    warned: Verdict | None = None
    warned_units: tuple[int, ...] = ()
    warned_watched: int = 0
    row_names: tuple[str, ...] = ()
    warned_reason: Reason = Reason.UNDECIDED
    mirrored: tuple[int, ...] = ()
    stopped: Stopped | None = None
    warned_stopped: Stopped | None = None
    kept_by: str = ""
    is_explained: bool = False
    _group: UnitGroup | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def has_grown(self) -> bool:
        """Whether the group is new to the user, or at least twice as large as the user knows it."""
        return len(self.units) >= 2 * len(self.warned_units)

    def take_in(self, sighting: Sighting, is_fresh: bool) -> None:
        """Note what the gradients say at this check.

        Args:
            sighting: what was seen of the group.
            is_fresh: whether the weights have moved since the check before; if not, the same evidence counts once.
        """
        gradients = said = sighting.gradients
        if self.cause is Cause.ZERO and {said, self.gradients} == {Gradients.ZERO, Gradients.FAINT}:
            # Rounding errors around zero are exactly zero now and then.
            said = self.gradients = Gradients.FAINT
        if gradients not in (Gradients.NONE, Gradients.UNCLEAR) and (is_fresh or said is not self.gradients):
            self.streak = self.streak + 1 if said is self.gradients else 1
            self.gradients = said
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
        """Whether each step is to be watched: the gradients were zero, and it is open whether they stay so."""
        is_silent = self.gradients is Gradients.ZERO and self.has_equal_weights and not self.was_different
        is_decided = self.verdict in (Verdict.FROZEN, Verdict.IDLE)
        is_open = self.broken_step is None and not is_decided and not self.is_pruned
        return is_silent and is_open

    def is_to_be_explained(self, patience: int) -> bool:
        """Return whether it should be traced what keeps the units equal: the user was warned, or soon may be."""
        if self.is_explained or self.row_names or self.broken_step is not None:
            return False
        is_near = self.gradients is Gradients.EQUAL and not self.has_equal_weights and self.streak + 1 >= patience
        return is_near or self.verdict in (Verdict.LOCKED, Verdict.LOCKSTEP)

    def watch(self, is_zero: Mask, is_unseen: Mask) -> None:
        """Note what is seen between two checks of a group whose gradients were zero at the last one.

        Args:
            is_zero: which units of the layer have a gradient of exactly zero.
            is_unseen: which have one that is not finite.
        """
        units = list(self.units)
        if is_zero[units].all():
            self.num_watched += 1
        elif not is_unseen[units].any():
            self.gradients, self.streak, self.num_watched, self.stopped = Gradients.NONE, 0, 0, None

    def trace(self, stopped: Stopped | None) -> None:
        """Note where the gradient was found to stop; a group that is idle no more is watched from the start."""
        if self.verdict is Verdict.IDLE and not (stopped and stopped.stop.is_idle):
            self.verdict, self.gradients, self.streak, self.num_watched = Verdict.DUPLICATE, Gradients.NONE, 0, 0
        self.stopped = stopped

    def conclude(self, verdict: Verdict, reason: Reason) -> None:
        """Note what is concluded at this check, and that the user is warned of it if it is serious."""
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
        """What the user is told of the group."""
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
        """What the report says of the group; the same object as long as that is the same."""
        known = self._group
        reason = Reason.PRUNED if self.is_pruned else self.warned_reason
        stop, follows = self.stopped or (None, "")
        now = self.units, self.verdict, self.cause, reason, self.mirrored, self.num_watched, stop, follows, self.kept_by
        if known is None or now != (
            *(known.units, known.verdict, known.cause, known.reason, known.mirrored),
            *(known.num_watched, known.stop, known.follows, known.kept_by),
        ):
            self._group = known = UnitGroup(
                self.units,
                self.verdict,
                self.cause,
                self.value,
                self.first_step,
                self.origin,
                reason,
                self.mirrored,
                self.num_watched,
                stop,
                follows,
                self.kept_by,
            )
        return known

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, strings and lists: all that loading a checkpoint allows by default."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return {key: str(value) if isinstance(value, StrEnum) else value for key, value in values.items()} | {
            "units": list(self.units),
            "row_names": list(self.row_names),
            "warned_units": list(self.warned_units),
            "mirrored": list(self.mirrored),
            "stopped": stopped_to_state(self.stopped),
            "warned_stopped": stopped_to_state(self.warned_stopped),
        }

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> Record:
        """The record that :meth:`to_state` wrote, now or in version 0.1, which knew no reasons and no mirror images."""
        return cls(
            **{
                **values,
                **{name: index(values[name]) for name in ("first_step", "last_step", "streak")},
                **{name: index(values.get(name, 0)) for name in ("num_watched", "warned_watched")},
                "broken_step": None if values["broken_step"] is None else index(values["broken_step"]),
                "units": units_from_state(values["units"]),
                "row_names": tuple(values["row_names"]),
                "warned_units": units_from_state(values["warned_units"]),
                "mirrored": units_from_state(values.get("mirrored", ())),
                "position": float(values["position"]),
                "verdict": Verdict(values["verdict"]),
                "cause": Cause(values["cause"]),
                "origin": Origin(values["origin"]),
                "gradients": Gradients(values["gradients"]),
                "warned": None if values["warned"] is None else Verdict(values["warned"]),
                "warned_reason": Reason(values.get("warned_reason", Reason.UNDECIDED)),
                "stopped": stopped_from_state(values.get("stopped")),
                "warned_stopped": stopped_from_state(values.get("warned_stopped")),
                "kept_by": str(values.get("kept_by", "")),
                "is_explained": bool(values.get("is_explained", False)),
            }
        )


def stopped_to_state(stopped: Stopped | None) -> list[Any] | None:
    """Return where a gradient stops as plain data: what :meth:`GradientStop.to_dict` returns, and the layer."""
    return None if stopped is None else [stopped.stop.to_dict(), stopped.follows]


def stopped_from_state(values: Sequence[Any] | None) -> Stopped | None:
    """Return where a gradient stops, as a state holds it: what :meth:`GradientStop.to_dict` wrote, and the layer."""
    return None if values is None else Stopped(GradientStop.from_dict(values[0]), str(values[1]))


def units_from_state(values: Sequence[Any]) -> tuple[int, ...]:
    """Return the units that a state holds.

    Raises:
        TypeError: if they are no whole numbers.
    """
    return tuple(map(index, values))


class Lineage:
    """Which group of this check carries on which group of the check before.

    Records of one kind, equal weights or lockstep, never share a unit, so each is found by any of its units.

    Args:
        records: the records of a layer before this check.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._continued: set[int] = set()
        self._before: dict[int, Record] = {}  # by identity, how a record was that was carried on with other units
        self._by_unit: dict[tuple[bool, int], Record] = {}  # as before this check
        for record in records:
            if record.broken_step is None:
                for unit in record.units:
                    self._by_unit[record.has_equal_weights, unit] = record

    def carry_on(self, sighting: Sighting, step: int) -> Record | None:
        """The record that a group of this check carries on, or opens again; None if the group is new."""
        kin = self._kin(sighting)
        first = kin[0]
        if first is not None and all(record is first for record in kin):
            record = first
            if id(record) in self._continued:  # another part of the group has carried it on
                before = self._before[id(record)]
                record = replace(before, warned_units=sighting.units if before.warned else ())
            elif (record.units, record.mirrored) != (sighting.units, sighting.mirrored):
                self._before[id(record)] = replace(record)
            self._continued.add(id(record))
            if record.was_different and len(sighting.units) < len(record.units):
                record.streak = 0  # what is left of a group that falls apart must hold for a while to count
                if record.verdict is Verdict.BREAKING:  # those that are left are not known to differ from one another
                    record.verdict = Verdict.DUPLICATE
        else:
            broken = self._broken(sighting)
            if broken is None:
                return None
            record = broken
            record.broken_step, record.streak = None, 0
        record.units, record.mirrored, record.last_step = sighting.units, sighting.mirrored, step
        return record

    def begin(self, sighting: Sighting, step: int, origin: Origin, row_names: tuple[str, ...]) -> Record:
        """A record of a new group, which replaces the records of the groups that it takes in."""
        units = set(sighting.units)
        kin = [self._as_before(record) for record in self._kin(sighting) if record]
        parts = {id(record): record for record in kin if units.issuperset(record.units)}.values()
        told = next((part for part in parts if part.warned), None)
        return Record(
            units=sighting.units,
            has_equal_weights=sighting.has_equal_weights,
            cause=sighting.cause,
            value=sighting.value,
            position=sighting.position,
            first_step=step,
            last_step=step,
            origin=origin,
            warned=told.warned if told else None,
            warned_reason=told.warned_reason if told else Reason.UNDECIDED,
            warned_units=tuple(sorted({unit for part in parts for unit in part.warned_units})),
            row_names=row_names,
            mirrored=sighting.mirrored,
        )

    def end(self, holding: Sequence[Record], step: int) -> list[Record]:
        """Mark the records that hold no longer as broken at this step.

        Args:
            holding: the records of this check.
            step: completed optimizer steps.

        Returns:
            The records that hold no longer and that the user was warned of, in the order in which they ended, without
            those that became part of a larger group: its record speaks for them.
        """
        home = {(record.has_equal_weights, unit): record for record in holding for unit in record.units}
        ended = []
        for record in self._records:
            if record.warned is None:
                continue
            if record.broken_step is None:  # also of those that were carried on, which are in `holding` themselves
                heirs = [home.get((record.has_equal_weights, unit)) for unit in record.units]
                if heirs[0] is not None and all(heir is heirs[0] for heir in heirs):
                    continue
                record.broken_step = step
            ended.append(record)
        return ended

    def _kin(self, sighting: Sighting) -> list[Record | None]:
        """For every unit the record of the same kind that was open before this check."""
        return [self._by_unit.get((sighting.has_equal_weights, unit)) for unit in sighting.units]

    def _as_before(self, record: Record) -> Record:
        """How a record was before this check."""
        return self._before.get(id(record), record)

    def _broken(self, sighting: Sighting) -> Record | None:
        """A broken record that held all of these units; no open one did, since it would be carried on."""
        units = set(sighting.units)
        for record in self._records:
            if record.has_equal_weights == sighting.has_equal_weights and units <= set(record.units):
                return record
        return None
