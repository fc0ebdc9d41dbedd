"""Groups over time: what was seen at earlier checks turns evidence into verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from lightning_symmetry.verdicts.evidence import Gradients, Look, Sighting
from lightning_symmetry.verdicts.judging import to_diagnosis
from lightning_symmetry.verdicts.report import Cause, Finding, LayerDiagnosis, Origin, UnitGroup
from lightning_symmetry.verdicts.verdict import Verdict

# Equal gradients of a few units may be a passing coincidence of the optimizer; that of all units of a layer is not.
_LOCKSTEP_STEPS = 50
# Units that are still equal after a movement so many times larger than what is called equal have moved together.
_MOVED_REACHES = 10.0


@dataclass
class _Record:
    """A group's past."""

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
    gradients: Gradients = Gradients.NONE  # the last that said anything
    streak: int = 0  # for so many checks in a row
    was_different: bool = False
    warned: Verdict | None = None
    warned_units: tuple[int, ...] = ()
    row_names: tuple[str, ...] = ()  # of modules that are copies

    def is_news(self) -> bool:
        """Note that these units are warned of; whether the user should hear of it."""
        self.warned = self.warned or self.verdict
        # A group that grows by a unit now and then is no news each time.
        has_grown = len(self.units) >= 2 * len(self.warned_units)
        if has_grown:
            self.warned_units = self.units
        return has_grown

    def to_finding(self, layer: str) -> Finding:
        assert self.warned is not None
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
        )


class History:
    """Carries groups from check to check.

    Args:
        patience: checks in a row that a group must hold before it is called frozen or lockstep, or locked if it was
            not there from the start.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._records: dict[str, list[_Record]] = {}
        # By layer, of the last look: a fingerprint of its weights, and whether it had a gradient.
        self._last: dict[str, tuple[int, bool]] = {}

    @property
    def findings(self) -> list[Finding]:
        """Every group that was warned of, in the order of the layers and of time."""
        return [
            record.to_finding(layer) for layer, records in self._records.items() for record in records if record.warned
        ]

    def known(self, layer: str) -> list[tuple[int, ...]]:
        """The groups of equal weights in this layer that hold as far as is known."""
        records = self._records.get(layer, [])
        return [record.units for record in records if record.has_equal_weights and record.broken_step is None]

    def is_fresh(self, looks: Sequence[Look]) -> bool:
        """Whether these looks tell more than the last ones at the same layers.

        They do not if there were gradients, but no update moved anything: at a learning rate of zero, or when the
        gradient scaler skips a step.
        """
        before = [(self._last[seen.layer.name], seen) for seen in looks if seen.layer.name in self._last]
        has_moved = any(fingerprint != seen.fingerprint for (fingerprint, _), seen in before)
        had_gradient = any(has_gradient for (_, has_gradient), _ in before)
        self._last.update({seen.layer.name: (seen.fingerprint, seen.has_gradient) for seen in looks})
        return has_moved or not had_gradient

    def update(self, seen: Look, step: int, is_fresh: bool = True) -> tuple[LayerDiagnosis, list[Finding]]:
        """Take in a look at a layer.

        Args:
            seen: the look.
            step: completed optimizer steps.
            is_fresh: whether this look counts among those that must agree.

        Returns:
            The diagnosis, and the findings that the user has not been told of yet.
        """
        name = seen.layer.name
        origin = Origin.COLLAPSE
        if name not in self._records:
            origin = Origin.START if step == 0 else Origin.FIRST_LOOK
        records = self._records.setdefault(name, [])
        past = _Past(records)
        holding: list[_Record] = []
        groups: list[UnitGroup] = []
        news: list[Finding] = []
        # Largest first: when a group falls apart, its largest part carries the record on.
        for sighting in sorted(seen.sightings, key=lambda sighting: -len(sighting.units)):
            record = past.record_of(sighting, step) or past.new_record(sighting, step, origin, seen.layer.row_names)
            holding.append(record)
            self._judge(record, sighting, seen, step, is_fresh)
            if record.verdict is Verdict.LOCKSTEP or record.has_equal_weights:
                groups.append(UnitGroup(record.units, record.verdict, record.cause, record.value, record.first_step))
            if record.verdict.is_warning and record.is_news():
                news.append(record.to_finding(name))
        self._records[name] = past.gone(holding, step) + holding
        return to_diagnosis(seen, groups), self._untold(name, news)

    def _untold(self, layer: str, news: Sequence[Finding]) -> list[Finding]:
        """The news, without those of a kind of which most was told before: pairs reach their verdicts one by one."""
        untold = []
        for kind in {(finding.verdict, finding.origin) for finding in news}:
            alike = [finding for finding in news if (finding.verdict, finding.origin) == kind]
            known = [record for record in self._records[layer] if (record.warned, record.origin) == kind]
            told = sum(len(record.warned_units) for record in known) - sum(len(finding.units) for finding in alike)
            if sum(len(finding.units) for finding in alike) >= told:
                untold += alike
        return untold

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {name: [_plain(record) for record in records] for name, records in self._records.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Take over what :meth:`state_dict` wrote."""
        self._records = {name: [_from_plain(values) for values in records] for name, records in state.items()}

    def _judge(self, record: _Record, sighting: Sighting, seen: Look, step: int, is_fresh: bool) -> None:
        gradients = sighting.gradients
        if gradients not in (Gradients.NONE, Gradients.UNCLEAR) and (is_fresh or gradients is not record.gradients):
            record.streak = record.streak + 1 if gradients is record.gradients else 1
            record.gradients = gradients
        is_patient = record.streak >= self._patience
        if not record.has_equal_weights:
            is_all = len(record.units) * seen.layer.blocks == seen.layer.num_units
            if is_patient and (is_all or step - record.first_step >= _LOCKSTEP_STEPS):
                record.verdict = Verdict.LOCKSTEP
        elif gradients is Gradients.DIFFERENT:
            record.was_different = True
            if record.verdict is not Verdict.LOCKED or is_patient:
                record.verdict = Verdict.BREAKING
        elif gradients in (Gradients.EQUAL, Gradients.FAINT) and (is_patient or _is_plain(record)):
            record.verdict = Verdict.LOCKED
        elif gradients is Gradients.ZERO:
            # If some that were equal have trained, the others are dead rather than symmetric.
            if is_patient and not record.was_different:
                record.verdict = Verdict.FROZEN
                if record.cause is not Cause.ZERO and record.warned is None:
                    record.cause = Cause.DEAD
        elif _has_moved_as_one(record, sighting):
            record.verdict = Verdict.LOCKED


def _has_moved_as_one(record: _Record, sighting: Sighting) -> bool:
    """Whether the units have gone a long way together since they were first seen; from zero, any way is long."""
    moved = abs(sighting.position - record.position)
    return record.cause is not Cause.ZERO and moved > _MOVED_REACHES * sighting.reach > 0


def _is_plain(record: _Record) -> bool:
    """Whether equal gradients need no confirmation: the units were equal before the first update, and ever since."""
    is_equal = record.gradients is Gradients.EQUAL
    return is_equal and record.origin is Origin.START and not record.was_different


class _Past:
    """The records of a layer before a check.

    Records of one kind, equal weights or lockstep, never share a unit, so each is found by any of its units.
    """

    def __init__(self, records: Sequence[_Record]) -> None:
        self._records = records
        self._continued: set[int] = set()
        # With a copy of each as it was: carrying it on changes it.
        self._by_unit: dict[tuple[bool, int], tuple[_Record, _Record]] = {}
        for record in records:
            if record.broken_step is None:
                pair = (record, replace(record))
                self._by_unit.update({(record.has_equal_weights, unit): pair for unit in record.units})

    def record_of(self, sighting: Sighting, step: int) -> _Record | None:
        """The record that a sighting carries on, or opens again; None if the group is new."""
        first = self._kin(sighting)[0]
        if first is not None and all(pair is first for pair in self._kin(sighting)):
            record, before = first
            if id(record) in self._continued:  # by another part of the group
                record = replace(before, warned_units=sighting.units if before.warned else ())
            self._continued.add(id(record))
            if record.was_different and len(sighting.units) < len(before.units):
                record.streak = 0  # while a group falls apart, its rest is not settled
        else:
            broken = self._broken(sighting)
            if broken is None:
                return None
            record = broken
            self._continued.add(id(record))
            record.broken_step, record.streak = None, 0
        record.units, record.last_step = sighting.units, step
        return record

    def new_record(self, sighting: Sighting, step: int, origin: Origin, row_names: tuple[str, ...]) -> _Record:
        """A record of a new group, which stands for those that it takes in."""
        units = set(sighting.units)
        parts = {id(pair[1]): pair[1] for pair in self._kin(sighting) if pair and set(pair[1].units) < units}.values()
        return _Record(
            units=sighting.units,
            has_equal_weights=sighting.has_equal_weights,
            cause=sighting.cause,
            value=sighting.value,
            position=sighting.position,
            first_step=step,
            last_step=step,
            origin=origin,
            warned=next((part.warned for part in parts if part.warned), None),
            warned_units=tuple(sorted({unit for part in parts for unit in part.warned_units})),
            row_names=row_names,
        )

    def _kin(self, sighting: Sighting) -> list[tuple[_Record, _Record] | None]:
        """For every unit its open record of the same kind, with a copy of how it was."""
        return [self._by_unit.get((sighting.has_equal_weights, unit)) for unit in sighting.units]

    def _broken(self, sighting: Sighting) -> _Record | None:
        """A record of these units, or more, that had ended."""
        units = set(sighting.units)
        for record in self._records:
            is_kin = record.has_equal_weights == sighting.has_equal_weights
            if record.broken_step is not None and is_kin and units <= set(record.units):
                return record
        return None

    def gone(self, holding: Sequence[_Record], step: int) -> list[_Record]:
        """The warned records that hold no longer, those that end now marked so; a larger group stands for its parts."""
        home = {(record.has_equal_weights, unit): record for record in holding for unit in record.units}
        gone = []
        for record in self._records:
            if record.warned is None or id(record) in self._continued:
                continue
            if record.broken_step is None:
                heirs = [home.get((record.has_equal_weights, unit)) for unit in record.units]
                if heirs[0] is not None and all(heir is heirs[0] for heir in heirs):
                    continue
                record.broken_step = step
            gone.append(record)
        return gone


def _plain(record: _Record) -> dict[str, Any]:
    """Plain numbers, strings and lists: all that loading a checkpoint allows by default."""
    values = asdict(record)
    return {key: str(value) if isinstance(value, StrEnum) else value for key, value in values.items()} | {
        "units": list(record.units),
        "row_names": list(record.row_names),
        "warned_units": list(record.warned_units),
    }


def _from_plain(values: Mapping[str, Any]) -> _Record:
    return _Record(
        **{
            **values,
            "units": tuple(values["units"]),
            "row_names": tuple(values["row_names"]),
            "warned_units": tuple(values["warned_units"]),
            "verdict": Verdict(values["verdict"]),
            "cause": Cause(values["cause"]),
            "origin": Origin(values["origin"]),
            "gradients": Gradients(values["gradients"]),
            "warned": None if values["warned"] is None else Verdict(values["warned"]),
        }
    )
