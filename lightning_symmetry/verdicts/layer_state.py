"""All that is known of one layer from its earlier checks: its groups, its dead units, its directions."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lightning_symmetry.matrices.mirrors import Mirrored
from lightning_symmetry.matrices.numerics import Indices, Mask
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.deadness import Deaths
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis, Origin, UnitGroup
from lightning_symmetry.verdicts.judging import judge, to_diagnosis
from lightning_symmetry.verdicts.look import Gradients, Look, Sighting, Steady
from lightning_symmetry.verdicts.orientations import Orientations
from lightning_symmetry.verdicts.records import Lineage, Record, stopped_from_state, stopped_to_state
from lightning_symmetry.verdicts.stops import StopKind, Stopped, Traced, most_common
from lightning_symmetry.verdicts.verdict import Verdict

# Of the groups that are gone, so many are remembered, and all that were found gone at the same check as the latest.
_MAX_GONE = 100


@dataclass
class LayerState:
    """What is known of one layer, tied to the parameters that it is known of.

    Attributes:
        patience: checks in a row that must agree, as in :class:`lightning_symmetry.engine.options.Options`.
        dead_share: the share of dead units of which the user is warned.
        records: the past of each group; None before the first look.
        deaths: the dead units.
        orientations: the directions.
        num_checks: at how many checks the layer had a gradient that was not zero, and the weights had moved since.
        size: number of units, and of weights per unit; None if a checkpoint of an earlier version did not say.
        diagnosis: what the latest look came to; None before the first one of this process.
        last: of the latest check, a hash of the weights, and whether there was a gradient; None if it was read quickly.
        is_wanted: whether any parameter was ever seen to require a gradient.
        floor: the norm up to which the latest look took gradients for zero.
        is_faint: whether all gradients of the latest look may be rounding errors, and no trace has told so far.
        is_exact: whether it is known from a trace that its gradients are small and no rounding errors.
        traced_at: the step before which its gradients were traced; None if they were not.
        failure: why the layer is left out; empty while it is looked at.
    """

    patience: int
    dead_share: float
    records: list[Record] | None = None
    deaths: Deaths = field(init=False)
    orientations: Orientations = field(default_factory=Orientations)
    num_checks: int = 0
    size: tuple[int, int] | None = None
    diagnosis: LayerDiagnosis | None = None
    last: tuple[int, bool] | None = None
    is_wanted: bool = False
    floor: float = 0.0
    is_faint: bool = False
    is_exact: bool = False
    traced_at: int | None = None
    failure: str = ""
    _may_be_traced: bool = False  # whether that is to be looked into, which takes longer than to know that it is not
    _stopped: dict[int, Stopped] = field(default_factory=dict)  # by unit, where its gradient stops
    _layer: Comparable | None = None
    _released: tuple[tuple[int, int], ...] = ()
    _steady: Steady | None = None

    def __post_init__(self) -> None:
        self.deaths = Deaths(self.patience, self.dead_share)

    def __getstate__(self) -> dict[str, Any]:
        # The parameters stay in their process. What is known is tied to those of the layer of the same name and size.
        return {**self.__dict__, "_layer": None, "_released": (), "diagnosis": None, "last": None}

    # ---------------------------------------------------------------- which layer

    def belongs_to(self, layer: Comparable) -> bool:
        """Return whether this is known of the parameters that a layer has now.

        After a checkpoint was loaded there are no parameters to compare yet; then the sizes must be the same.
        """
        if self.size is not None and self.size != (layer.num_units, layer.fan_in):
            return False  # also of the same parameters: their numbers can be replaced by more or fewer of them
        if self._layer is not None:
            is_same = map(operator.is_, self._layer.originals, layer.originals)
            return len(self._layer.originals) == len(layer.originals) and all(is_same)
        if self._released:
            now = _identities(layer)
            return len(now) == len(self._released) and all(
                identity == before and version >= version_before
                for (identity, version), (before, version_before) in zip(now, self._released, strict=True)
            )
        last_unit = max((record.units[-1] for record in self.records or ()), default=0)
        return last_unit < layer.num_units and self.deaths.num_units in (None, layer.num_units)

    def tie_to(self, layer: Comparable) -> None:
        """Note whose parameters this is known of; they are kept until :meth:`release`."""
        self._layer = layer
        self.size = layer.num_units, layer.fan_in

    def release(self) -> None:
        """Let go of the parameters, but know them again.

        There may be no weak references to parameters: ``torch.utils.swap_tensors``, by which ``nn.Module.to`` moves
        some of them, refuses such tensors.
        """
        if self._layer is not None:
            self._released, self._layer = _identities(self._layer), None

    # ---------------------------------------------------------------- what is known

    @property
    def holding(self) -> list[Record]:
        """The records of the groups that hold as far as is known."""
        return [record for record in self.records or () if record.broken_step is None]

    @property
    def known(self) -> list[Mirrored]:
        """The groups of equal weights that hold as far as is known, with signs."""
        return [Mirrored(record.units, record.mirrored) for record in self.holding if record.has_equal_weights]

    @property
    def proven(self) -> list[tuple[int, ...]]:
        """The groups that are known to stay equal."""
        return [record.units for record in self.holding if record.verdict is Verdict.LOCKED]

    @property
    def is_without_groups(self) -> bool:
        """Whether the layer has been looked at in this process, and no groups in it are known."""
        return self.diagnosis is not None and not self.holding

    @property
    def can_be_quick(self) -> bool:
        """Whether a quick reading of a layer without groups is enough: verdicts need no more looks at it.

        Every now and then its directions are to be counted, which takes a look.
        """
        return self.orientations.num_looks >= self.patience and not self.orientations.is_due

    @property
    def is_open(self) -> bool:
        """Whether a quiet next check can still change the diagnosis, for example because `patience` has not run out."""
        return bool(self.holding) or self.deaths.are_open

    def findings(self, layer: str) -> list[Finding]:
        """Return every group that the user was warned of, in the order of time.

        Args:
            layer: name of the layer.
        """
        findings = [record.to_finding(layer) for record in self.records or () if record.warned]
        return [*findings, self.deaths.warned.to_finding(layer)] if self.deaths.warned else findings

    def steady(self) -> Steady | None:
        """Return the groups of the layer if all of them have settled as locked and nothing else is open; else None."""
        return None if self.diagnosis is None or self.orientations.is_due else self._steady

    def _has_settled(self, record: Record) -> bool:
        """Return whether the group is locked for good: more equal checks would not change its verdict."""
        is_locked = record.verdict is Verdict.LOCKED and record.gradients is Gradients.EQUAL
        is_plain = not record.mirrored and not record.row_names
        return is_locked and is_plain and record.streak >= self.patience

    # ---------------------------------------------------------------- a check

    def pass_over(self, layer: Comparable) -> None:
        """Record a check at which a quick reading showed nothing, of a layer of which nothing :attr:`is_open`."""
        self.last = None
        self.deaths.pass_over(can_tell=layer.can_freeze or layer.dies_as_a_whole)
        self.orientations.num_looks += 1

    def hold(self, seen: Look, step: int) -> None:
        """Record a check at which the steady groups were unchanged. Cheaper than :meth:`update`, to the same effect."""
        assert seen.fingerprint is not None
        self.pass_over(seen.layer)
        self.last = seen.fingerprint, seen.has_gradient
        for record in self.holding:
            record.last_step = step  # how often they have agreed makes no difference any more

    def suspected(self, blocks: int) -> Indices:
        """Return the units that are to be watched at each step until the next check, since they may be dead or frozen.

        Args:
            blocks: number of blocks of units, of which one may go unused as a whole; then all units are watched, and
                so they are where only all of them together can be dead.
        """
        units = self.deaths.suspected()
        in_groups = [unit for record in self.holding if record.is_to_be_watched for unit in record.units]
        if in_groups:
            units = np.union1d(units, in_groups)
        if (blocks > 1 or self._dies_as_a_whole) and len(units) and self.size is not None:
            return np.arange(self.size[0])
        return units

    def watch_zeros(self) -> None:
        """Record at a step between two checks that all suspected units still have a gradient of zero."""
        for record in self.holding:
            record.num_watched += record.is_to_be_watched
        self.deaths.watch_zeros()

    def watch(self, is_zero: Mask, is_unseen: Mask, step: int) -> None:
        """Record what is seen of the gradients at a step between two checks.

        Args:
            is_zero: which units have a gradient of exactly zero, ``(num_units,)``.
            is_unseen: which have one that is not finite, ``(num_units,)``.
            step: completed optimizer steps.
        """
        for record in self.holding:
            if record.is_to_be_watched:
                record.watch(is_zero, is_unseen)
        if self._dies_as_a_whole and not (is_zero | is_unseen).all():
            is_zero = is_unseen = np.zeros_like(is_zero)
        self.deaths.watch(is_zero, is_unseen, self._layer.blocks if self._layer is not None else 1, step)
        self._forget_stops(is_zero | is_unseen)

    @property
    def _dies_as_a_whole(self) -> bool:
        return self._layer is not None and self._layer.dies_as_a_whole

    def _forget_stops(self, is_silent: Mask) -> None:
        """Forget where the gradients of units stopped that have one."""
        for unit in [unit for unit in self._stopped if not is_silent[unit]]:
            del self._stopped[unit]

    def unexplained(self) -> list[Mirrored]:
        """Return the groups of units that train as one, with signs, for which no cause was looked for so far."""
        return [Mirrored(r.units, r.mirrored) for r in self.holding if r.is_to_be_explained(self.patience)]

    def note_keepers(self, keepers: Mapping[tuple[int, ...], str]) -> None:
        """Record what keeps groups of units equal.

        Args:
            keepers: by units of a group, the name of a layer or of the loss, or nothing if that was not found.
        """
        for record in self.holding:
            if record.units in keepers:
                record.kept_by, record.is_explained = keepers[record.units], True
        self._steady = None  # the next look is a close one, so that the report says so, too

    def is_to_be_traced(self, step: int) -> bool:
        """Return whether the next step should be traced: a verdict on zero gradients is near, or idle ones last.

        What is idle is traced again after twice as many steps each time.

        Args:
            step: the number of the next step.
        """
        if not self._may_be_traced:
            return False
        untraced = [record for record in self.holding if not set(record.units) <= self._stopped.keys()]
        near = any(record.is_to_be_watched and record.streak + 1 >= self.patience for record in untraced)
        if near or self.is_faint or self.unexplained() or self.deaths.is_about_to_conclude():
            return True
        is_due = self.traced_at is not None and step >= 2 * max(self.traced_at, 25)
        return is_due and bool(self.idle)

    @property
    def idle(self) -> list[UnitGroup]:
        """The units without a gradient that is not their own doing."""
        return [*(r.to_group() for r in self.holding if r.verdict is Verdict.IDLE), *self.deaths.idle]

    @property
    def is_detached(self) -> bool:
        """Whether the latest trace has shown that the loss depends on none of its units."""
        if not self._stopped:
            return False
        units = [unit for group in self.idle if _is_detached(group) for unit in group.units]
        return self.size is not None and len(units) == self.size[0]

    def units_without_gradient(self) -> Indices:
        """Return the units that have had no gradient lately, or none but rounding errors."""
        in_groups = [unit for record in self.holding if record.gradients is Gradients.ZERO for unit in record.units]
        if self.is_faint and self.size is not None:
            return np.arange(self.size[0])
        idle = [unit for group in self.deaths.idle for unit in group.units]
        units = {*self.deaths.suspected().tolist(), *in_groups, *idle, *self.deaths.units}
        return np.array(sorted(units), dtype=np.intp)

    def trace(self, traced: Sequence[Traced], step: int) -> None:
        """Record where the gradients of units were found to stop.

        Args:
            traced: the units, by where it is.
            step: completed optimizer steps.
        """
        if self.floor or self.is_faint:
            # What arrives is small, but there is nothing behind the layer that only passes on rounding errors.
            self.is_exact = any(each.stopped.stop.kind is StopKind.ERASED for each in traced)
            traced = [] if self.is_exact else traced
            self.is_faint = False
        self._stopped = {unit: each.stopped for each in traced for unit in each.units}
        self.traced_at = step
        for record in self.holding:
            if record.gradients is Gradients.ZERO:
                record.trace(most_common(map(self._stopped.get, record.units)))
        self.deaths.trace(self._stopped)

    def update(
        self, seen: Look, step: int, is_fresh: bool = True, is_unused: bool = False, is_unread: bool = False
    ) -> list[Finding]:
        """Record what a look showed, and conclude.

        Args:
            seen: the look.
            step: completed optimizer steps.
            is_fresh: whether this look counts among those that must agree, see :meth:`History.is_fresh`.
            is_unused: whether the module of the layer takes no part in this step: zero gradients say nothing then.
            is_unread: whether it may be that nobody reads what the layer puts out.

        Returns:
            The findings that the user has not been told of yet.
        """
        name, self.floor = seen.layer.name, seen.floor
        # Later looks may be quick, and would not tell.
        self.is_faint = seen.is_faint and not self.is_exact and self.orientations.num_looks < self.patience
        origin = Origin.COLLAPSE
        if self.records is None:
            origin = Origin.START if step == 0 else Origin.FIRST_LOOK
        records = self.records or []
        lineage = Lineage(records)
        holding: list[Record] = []
        groups: list[UnitGroup] = []
        news: list[Finding] = []
        # The largest groups come first: when a group falls apart, its largest part carries the record on.
        for sighting in sorted(seen.sightings, key=lambda sighting: -len(sighting.units)):
            if is_unused and sighting.gradients is Gradients.ZERO:
                sighting = replace(sighting, gradients=Gradients.NONE)
            if origin is Origin.COLLAPSE and self._moves_in_parallel(sighting):
                # Their distance is what it was: it has become small beside rows that have grown.
                sighting = replace(sighting, has_equal_weights=False)
            record = lineage.carry_on(sighting, step) or lineage.begin(sighting, step, origin, seen.layer.row_names)
            holding.append(record)
            record.take_in(sighting, is_fresh)
            is_whole_layer = len(record.units) * seen.layer.blocks == seen.layer.num_units
            verdict, reason = judge(record, sighting, self.patience, is_whole_layer=is_whole_layer)
            if record.stopped is None and sighting.gradients is Gradients.ZERO:
                record.stopped = most_common(map(self._stopped.get, record.units))
            if verdict is Verdict.FROZEN and record.stopped is not None and record.stopped.stop.is_idle:
                verdict = Verdict.IDLE
            is_news = verdict.is_warning and record.has_grown
            record.conclude(verdict, reason)
            if verdict is Verdict.LOCKSTEP or record.has_equal_weights:
                groups.append(record.to_group())
            if is_news:
                news.append(record.to_finding(name))
        self.records = records = _bounded(lineage.end(holding, step)) + holding
        self.last = None if seen.fingerprint is None else (seen.fingerprint, seen.has_gradient)
        if self._stopped and seen.idle is not None:
            is_silent = seen.idle.copy()
            for sighting in seen.sightings:
                is_silent[list(sighting.units)] |= sighting.gradients in (Gradients.ZERO, Gradients.NONE)
            self._forget_stops(is_silent)
        dead, died = self.deaths.update(seen, step, is_fresh=is_fresh, is_unused=is_unused or is_unread)
        if self.deaths.group:
            groups.append(self.deaths.group)
        groups += self.deaths.idle
        has_zeros = any(r.gradients is Gradients.ZERO or r.is_to_be_explained(self.patience) for r in holding)
        self._may_be_traced = has_zeros or self.is_faint or self.deaths.are_suspect
        has_settled = holding and not self.deaths.are_open and all(map(self._has_settled, holding))
        units = [record.units for record in holding]
        self._steady = Steady.of(units, seen.layer.num_units) if has_settled else None
        self.diagnosis = to_diagnosis(seen, groups, dead, self.orientations.update(seen))
        return _not_told(news, records) + ([died.to_finding(name)] if died else [])

    def _moves_in_parallel(self, sighting: Sighting) -> bool:
        """Return whether units of equal weights are known to have had equal gradients since before they were equal."""
        units = set(sighting.units)
        parallel = [
            record for record in self.holding if not record.has_equal_weights and record.streak >= self.patience
        ]
        is_equal = sighting.has_equal_weights and sighting.gradients is Gradients.EQUAL
        return is_equal and any(units <= set(record.units) for record in parallel)

    # ---------------------------------------------------------------- checkpoints

    def to_state(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return {
            "size": None if self.size is None else list(self.size),
            "groups": None if self.records is None else [record.to_state() for record in self.records],
            "deaths": self.deaths.to_state(),
            "orientations": asdict(self.orientations),
            "num_checks": self.num_checks,
            "stopped": [[unit, stopped_to_state(stopped)] for unit, stopped in self._stopped.items()],
            "traced_at": self.traced_at,
            "is_exact": self.is_exact,
        }

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Take over what :meth:`to_state` wrote.

        Raises:
            Exception: of any kind, if it did not write this.
        """
        groups = values["groups"]
        self.records = None if groups is None else [Record.from_state(each) for each in groups]
        if values["deaths"] is not None:
            self.deaths.load_state(values["deaths"])
        if values["orientations"] is not None:
            self.orientations = Orientations.from_state(values["orientations"])
        self.num_checks = operator.index(values["num_checks"])
        every = ((operator.index(unit), stopped_from_state(each)) for unit, each in values.get("stopped", ()))
        self._stopped = {unit: stopped for unit, stopped in every if stopped is not None}
        self.deaths.trace(self._stopped)
        traced_at = values.get("traced_at")
        self.traced_at = None if traced_at is None else operator.index(traced_at)
        self.is_exact, self._may_be_traced = bool(values.get("is_exact", False)), bool(self._stopped)
        if values["size"] is not None:
            num_units, fan_in = map(operator.index, values["size"])
            self.size = num_units, fan_in


def _is_detached(group: UnitGroup) -> bool:
    return group.stop is not None and group.stop.kind is StopKind.DETACHED


def _identities(layer: Comparable) -> tuple[tuple[int, int], ...]:
    """Return the identity of each parameter, and a number that grows with each of its updates.

    A new parameter may get the identity of one that is gone, but has hardly been updated.
    """
    return tuple((id(original), original._version) for original in layer.originals)


def _bounded(gone: list[Record]) -> list[Record]:
    """Return the latest of the records of groups that are gone, which stand in the order in which these were gone."""
    at_the_latest = sum(record.broken_step == gone[-1].broken_step for record in gone)
    return gone[-max(_MAX_GONE, at_the_latest) :]


def _not_told(news: Sequence[Finding], records: Sequence[Record]) -> list[Finding]:
    """Return the news but for those of a kind most of which was told before: pairs are judged one by one."""
    fresh = []
    for kind in dict.fromkeys((finding.verdict, finding.origin) for finding in news):
        alike = [finding for finding in news if (finding.verdict, finding.origin) == kind]
        known = [record for record in records if (record.warned, record.origin) == kind]
        told = sum(len(record.warned_units) for record in known) - sum(len(finding.units) for finding in alike)
        if sum(len(finding.units) for finding in alike) >= told:
            fresh += alike
    return fresh
