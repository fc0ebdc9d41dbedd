"""What earlier checks found in one layer: its groups, its dead units, its directions."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lightning_symmetry.matrices.mirrors import Mirrored
from lightning_symmetry.matrices.numerics import Indices, Mask
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.deadness import DeadUnits
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis, Origin, UnitGroup
from lightning_symmetry.verdicts.judging import judge, to_diagnosis
from lightning_symmetry.verdicts.look import Gradients, Look, Sighting, Steady
from lightning_symmetry.verdicts.orientations import Orientations
from lightning_symmetry.verdicts.records import Lineage, Record, from_plain, to_plain
from lightning_symmetry.verdicts.stops import StopKind, Stopped, Traced, most_common
from lightning_symmetry.verdicts.verdict import Verdict

# At most this many ended groups are kept, or all that ended at the latest check if these are more.
_MAX_GONE = 100


class GroupsAtLook(NamedTuple):
    """The groups of a layer at a look."""

    groups: list[UnitGroup]  # the groups for the report
    news: list[Finding]


@dataclass
class LayerState:
    """The past of one layer, tied to its parameters."""

    patience: int  # as in `lightning_symmetry.engine.options.Options`
    dead_share: float  # likewise
    records: list[Record] | None = None  # the past of each group; None before the first look
    dead_units: DeadUnits = field(init=False)  # the dead units
    orientations: Orientations = field(default_factory=Orientations)  # the directions
    num_checks: int = 0  # number of checks at which the layer had a gradient and before which the weights had moved
    # number of units, and of weights per unit; None if a checkpoint of an earlier version lacks it
    size: tuple[int, int] | None = None
    # the conclusion of the latest look, the same object until it changes; None before the first look of this process
    diagnosis: LayerDiagnosis | None = None
    # hash of the weights at the latest check, and whether there was a gradient; None if the layer was read quickly
    last: tuple[int, bool] | None = None
    is_wanted: bool = False  # whether any parameter has ever required a gradient
    floor: float = 0.0  # norm up to which the latest look took gradients for zero
    # whether all gradients of the latest look may be rounding errors, and no trace has shown whether they are
    is_faint: bool = False
    is_exact: bool = False  # whether a trace has shown that its small gradients are no rounding errors
    traced_at: int | None = None  # the step before which its gradients were traced; None if they were not
    failure: str = ""  # why the layer is left out; empty while it is checked
    _may_be_traced: bool = False  # False for most layers: a cheap test rules them out
    _stopped: dict[int, Stopped] = field(default_factory=dict)  # by unit, where its gradient stops
    _layer: Comparable | None = None
    _released: tuple[tuple[int, int], ...] = ()
    _steady: Steady | None = None
    _basis: object = None  # what the diagnosis was made from

    def __post_init__(self) -> None:
        self.dead_units = DeadUnits(self.patience, self.dead_share)

    def __getstate__(self) -> dict[str, Any]:
        # The parameters stay in their process. A copy is tied to the next layer of the same name and size.
        return {**self.__dict__, "_layer": None, "_released": (), "diagnosis": None, "_basis": None, "last": None}

    # ---------------------------------------------------------------- which layer

    def belongs_to(self, layer: Comparable) -> bool:
        """Return whether this is the state of the parameters that a layer has now.

        After a checkpoint was loaded there are no parameters to compare; then the sizes must be the same.
        """
        if self.size is not None and self.size != (layer.num_units, layer.fan_in):
            return False  # the same parameter objects may hold a tensor of another size
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
        return last_unit < layer.num_units and self.dead_units.num_units in (None, layer.num_units)

    def tie_to(self, layer: Comparable) -> None:
        """Tie the state to the parameters of a layer; they are referenced until :meth:`release`."""
        self._layer, self._basis = layer, None
        self.size = layer.num_units, layer.fan_in

    def release(self) -> None:
        """Drop the references to the parameters, but recognise them later.

        Weak references would not do: ``torch.utils.swap_tensors``, with which ``nn.Module.to`` moves some parameters,
        refuses tensors that have any.
        """
        if self._layer is not None:
            self._released, self._layer = _identities(self._layer), None

    # ---------------------------------------------------------------- groups

    @property
    def current(self) -> list[Record]:
        """The records of the groups that held at the latest check."""
        return [record for record in self.records if record.broken_step is None] if self.records else []

    @property
    def known(self) -> list[Mirrored]:
        """The groups with equal weights at the latest check, with their mirror images."""
        return [Mirrored(record.units, record.mirrored) for record in self.current if record.has_equal_weights]

    @property
    def proven(self) -> list[tuple[int, ...]]:
        """The groups that are known to stay equal."""
        return [record.units for record in self.current if record.verdict is Verdict.LOCKED]

    @property
    def is_without_groups(self) -> bool:
        """Whether the layer was checked in this process and has no groups."""
        return self.diagnosis is not None and not self.current

    @property
    def can_be_quick(self) -> bool:
        """Whether a quick reading of a layer without groups is enough: after ``patience`` looks, if no count is due."""
        return self.orientations.num_looks >= self.patience and not self.orientations.is_due

    @property
    def is_open(self) -> bool:
        """Whether a quiet next check can still change the diagnosis, for example because `patience` has not run out."""
        return bool(self.current) or self.dead_units.are_open

    def findings(self, layer: str) -> list[Finding]:
        """Return the findings in the layer, whose name is ``layer``."""
        findings = [record.to_finding(layer) for record in self.records or () if record.warned]
        return [*findings, self.dead_units.warned.to_finding(layer)] if self.dead_units.warned else findings

    def steady(self) -> Steady | None:
        """Return the groups of the layer if all have settled as locked and nothing else is open; else None."""
        return None if self.diagnosis is None or self.orientations.is_due else self._steady

    def _has_settled(self, record: Record) -> bool:
        """Return whether the group is locked for good: more equal checks would not change its verdict."""
        is_locked = record.verdict is Verdict.LOCKED and record.gradients is Gradients.EQUAL
        is_plain = not record.mirrored and not record.row_names
        return is_locked and is_plain and record.streak >= self.patience

    # ---------------------------------------------------------------- a check

    def skip(self, layer: Comparable) -> None:
        """Record a check at which a quick reading found nothing, if the layer is not :attr:`is_open`."""
        self.last = None
        self.dead_units.skip(can_tell=layer.can_freeze or layer.dies_as_a_whole)
        self.orientations.num_looks += 1

    def keep_steady(self, seen: Look, step: int) -> None:
        """Record a check at which the steady groups were unchanged. Cheaper than :meth:`update`, to the same effect."""
        assert seen.fingerprint is not None
        self.skip(seen.layer)
        self.last = seen.fingerprint, seen.has_gradient
        for record in self.current:
            record.last_step = step

    @property
    def is_watched(self) -> bool:
        """Whether any of its units is to be watched at each step until the next check, see :meth:`suspected`."""
        return self.dead_units.are_watched or any(record.is_to_be_watched for record in self.current)

    def suspected(self, blocks: int) -> Indices:
        """Return the units to watch at each step until the next check, since they may be dead or frozen.

        Args:
            blocks: number of blocks of units. If there are several, all units are watched, since a block may go unused
                as a whole. All are watched too if they can only be dead together.
        """
        units = self.dead_units.suspected()
        in_groups = [unit for record in self.current if record.is_to_be_watched for unit in record.units]
        if in_groups:
            units = np.union1d(units, in_groups)
        if (blocks > 1 or self._dies_as_a_whole) and len(units) and self.size is not None:
            return np.arange(self.size[0])
        return units

    def watch_zeros(self) -> None:
        """Record that all suspected units have a gradient of zero at a step between two checks."""
        for record in self.current:
            record.num_watched += record.is_to_be_watched
        self.dead_units.watch_zeros()

    def watch(self, is_zero: Mask, is_unseen: Mask, step: int) -> None:
        """Record the gradients at a step between two checks.

        Args:
            is_zero: which units have a gradient of exactly zero, ``(num_units,)``.
            is_unseen: which have one that is not finite, ``(num_units,)``.
            step: completed optimizer steps.
        """
        for record in self.current:
            if record.is_to_be_watched:
                record.watch(is_zero, is_unseen)
        if self._dies_as_a_whole and not (is_zero | is_unseen).all():
            is_zero = is_unseen = np.zeros_like(is_zero)
        self.dead_units.watch(is_zero, is_unseen, self._layer.blocks if self._layer is not None else 1, step)
        self._forget_stops(is_zero | is_unseen)

    @property
    def _dies_as_a_whole(self) -> bool:
        return self._layer is not None and self._layer.dies_as_a_whole

    def _forget_stops(self, is_silent: Mask) -> None:
        """Forget the stops of units that have a gradient."""
        for unit in [unit for unit in self._stopped if not is_silent[unit]]:
            del self._stopped[unit]

    def unexplained(self) -> list[Mirrored]:
        """Return the groups that train as one, with mirror images, if no trace has looked for what keeps them equal."""
        return [Mirrored(r.units, r.mirrored) for r in self.current if r.is_to_be_explained(self.patience)]

    def explain(self, keepers: Mapping[tuple[int, ...], str]) -> None:
        """Record what keeps groups equal: by units, the name of a layer or of the loss; empty if it was not found."""
        for record in self.current:
            if record.units in keepers:
                record.kept_by, record.is_explained = keepers[record.units], True
        self._steady = None  # so that the next look updates the report

    def is_to_be_traced(self, step: int) -> bool:
        """Return whether to trace the next step, whose number is ``step``: a verdict on zero gradients is near.

        Idle units are traced again after twice as many steps each time.
        """
        if not self._may_be_traced:
            return False
        if self.is_faint or self.dead_units.is_about_to_conclude():
            return True
        for record in self.current:
            if record.is_to_be_explained(self.patience):
                return True
            is_near = record.is_to_be_watched and record.streak + 1 >= self.patience
            if is_near and not set(record.units) <= self._stopped.keys():
                return True
        is_due = self.traced_at is not None and step >= 2 * max(self.traced_at, 25)
        return is_due and bool(self.idle)

    @property
    def idle(self) -> list[UnitGroup]:
        """The groups of units without a gradient for a reason outside of them."""
        return [*(r.to_group() for r in self.current if r.verdict is Verdict.IDLE), *self.dead_units.idle]

    @property
    def is_detached(self) -> bool:
        """Whether the latest trace found no path from any of its units to the loss."""
        if self.size is None or len(self._stopped) < self.size[0]:
            return False
        detached = [group for group in self.idle if group.stop is not None and group.stop.kind is StopKind.DETACHED]
        return sum(len(group.units) for group in detached) == self.size[0]

    def units_without_gradient(self) -> Indices:
        """Return the units without a gradient, or with none but rounding errors, at the latest checks."""
        in_groups = [unit for record in self.current if record.gradients is Gradients.ZERO for unit in record.units]
        if self.is_faint and self.size is not None:
            return np.arange(self.size[0])
        idle = [unit for group in self.dead_units.idle for unit in group.units]
        units = {*self.dead_units.suspected().tolist(), *in_groups, *idle, *self.dead_units.units}
        return np.array(sorted(units), dtype=np.intp)

    def trace(self, traced: Sequence[Traced], step: int) -> None:
        """Record where the gradients of units stop, as a trace before ``step`` has shown."""
        if self.floor or self.is_faint:
            # A gradient that is erased later was no rounding error.
            self.is_exact = any(each.stopped.stop.kind is StopKind.ERASED for each in traced)
            traced = [] if self.is_exact else traced
            self.is_faint = False
        self._stopped = {unit: each.stopped for each in traced for unit in each.units}
        self.traced_at = step
        for record in self.current:
            if record.gradients is Gradients.ZERO:
                record.trace(most_common(map(self._stopped.get, record.units)))
        self.dead_units.trace(self._stopped)

    def update(self, seen: Look, step: int, *, is_fresh: bool = True, is_unused: bool = False) -> GroupsAtLook:
        """Record the groups and the directions of a look; :meth:`conclude` has to follow.

        Args:
            seen: the look.
            step: completed optimizer steps.
            is_fresh: whether this look is new evidence, see :meth:`History.is_fresh`.
            is_unused: whether the module of the layer takes no part in this step, so that zero gradients mean nothing.
        """
        self.floor = seen.floor
        # Later looks may be quick readings, which do not show whether gradients are faint.
        self.is_faint = seen.is_faint and not self.is_exact and self.orientations.num_looks < self.patience
        self.last = None if seen.fingerprint is None else (seen.fingerprint, seen.has_gradient)
        found = self._update_groups(seen, step, is_fresh=is_fresh, is_unused=is_unused)
        if self._stopped and seen.idle is not None:
            is_silent = seen.idle.copy()
            for sighting in seen.sightings:
                is_silent[list(sighting.units)] |= sighting.gradients in (Gradients.ZERO, Gradients.NONE)
            self._forget_stops(is_silent)
        self.orientations.update(seen, self.dead_units.units if self.orientations.is_due else ())
        return found

    def _update_groups(self, seen: Look, step: int, *, is_fresh: bool, is_unused: bool) -> GroupsAtLook:
        """Record the groups of a look."""
        if self.records is not None and not seen.sightings and not self.current:
            return GroupsAtLook([], [])
        origin = Origin.COLLAPSE
        if self.records is None:
            origin = Origin.START if step == 0 else Origin.FIRST_LOOK
        lineage = Lineage(self.records or [])
        current: list[Record] = []
        groups: list[UnitGroup] = []
        news: list[Finding] = []
        # The largest groups come first: when a group falls apart, its largest part continues the record.
        for sighting in sorted(seen.sightings, key=lambda sighting: -len(sighting.units)):
            if is_unused and sighting.gradients is Gradients.ZERO:
                sighting = replace(sighting, gradients=Gradients.NONE)
            if origin is Origin.COLLAPSE and self._moves_in_parallel(sighting):
                # The rows are as far apart as before: they are near only relative to their norms, which have grown.
                sighting = replace(sighting, has_equal_weights=False)
            record = lineage.resume(sighting, step) or lineage.begin(sighting, step, origin, seen.layer.row_names)
            current.append(record)
            record.update(sighting, is_fresh)
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
                news.append(record.to_finding(seen.layer.name))
        self.records = _bounded(lineage.end(current, step)) + current
        return GroupsAtLook(groups, _without_repeats(news, self.records))

    def conclude(self, seen: Look, step: int, found: GroupsAtLook, *, has_zeros: bool) -> list[Finding]:
        """Conclude from a look, for which :meth:`update` returned ``found``. Return the new findings.

        ``has_zeros`` says whether zeros of this look were recorded.
        """
        dead, new_dead = self.dead_units.conclude(seen, step) if has_zeros else (self.dead_units.dead(), None)
        groups = [*found.groups, *self.dead_units.groups]
        current = self.current
        self._may_be_traced, self._steady = self.is_faint or self.dead_units.are_suspect, None
        if current:
            if any(r.gradients is Gradients.ZERO or r.is_to_be_explained(self.patience) for r in current):
                self._may_be_traced = True
            if not self.dead_units.are_open and all(map(self._has_settled, current)):
                self._steady = Steady.of([record.units for record in current], seen.layer.num_units)
        basis = groups, dead, self.orientations.latest, seen.crowd
        if self.diagnosis is None or basis != self._basis:
            self._basis, self.diagnosis = basis, to_diagnosis(seen, groups, dead, self.orientations.latest)
        return found.news + ([new_dead.to_finding(seen.layer.name)] if new_dead else [])

    def _moves_in_parallel(self, sighting: Sighting) -> bool:
        """Return whether the units had equal gradients before their weights were equal."""
        units = set(sighting.units)
        parallel = [
            record for record in self.current if not record.has_equal_weights and record.streak >= self.patience
        ]
        is_equal = sighting.has_equal_weights and sighting.gradients is Gradients.EQUAL
        return is_equal and any(units <= set(record.units) for record in parallel)

    # ---------------------------------------------------------------- checkpoints

    def to_state(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {
            "size": None if self.size is None else list(self.size),
            "groups": None if self.records is None else [to_plain(record) for record in self.records],
            "deaths": self.dead_units.to_state(),
            "orientations": asdict(self.orientations),
            "num_checks": self.num_checks,
            "stopped": [[unit, [at.stop.to_dict(), at.follows]] for unit, at in self._stopped.items()],
            "traced_at": self.traced_at,
            "is_exact": self.is_exact,
        }

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_state` returned.

        Raises:
            Exception: of any kind, if the values are no state.
        """
        groups = values["groups"]
        self.records = None if groups is None else [from_plain(Record, each) for each in groups]
        if values["deaths"] is not None:
            self.dead_units.load_state(values["deaths"])
        if values["orientations"] is not None:
            self.orientations = Orientations.from_state(values["orientations"])
        self.num_checks = operator.index(values["num_checks"])
        stopped = values.get("stopped", ())
        self._stopped = {operator.index(unit): Stopped.from_plain(each) for unit, each in stopped}
        self.dead_units.trace(self._stopped)
        traced_at = values.get("traced_at")
        self.traced_at = None if traced_at is None else operator.index(traced_at)
        self.is_exact, self._may_be_traced = bool(values.get("is_exact", False)), bool(self._stopped)
        if values["size"] is not None:
            num_units, fan_in = map(operator.index, values["size"])
            self.size = num_units, fan_in


def _identities(layer: Comparable) -> tuple[tuple[int, int], ...]:
    """Return the identity and the version of each parameter; new ones may reuse identities, but at low versions."""
    return tuple((id(original), original._version) for original in layer.originals)


def _bounded(gone: list[Record]) -> list[Record]:
    """Return the latest records of ended groups; ``gone`` lists all, in the order in which they ended."""
    at_the_latest = sum(record.broken_step == gone[-1].broken_step for record in gone)
    return gone[-max(_MAX_GONE, at_the_latest) :]


def _without_repeats(news: Sequence[Finding], records: Sequence[Record]) -> list[Finding]:
    """Drop news if earlier warnings of the same kind were about more units: pairs get their verdicts one by one."""
    fresh = []
    for kind in dict.fromkeys((finding.verdict, finding.origin) for finding in news):
        alike = [finding for finding in news if (finding.verdict, finding.origin) == kind]
        num_new = sum(len(finding.units) for finding in alike)
        num_warned = sum(len(record.warned_units) for record in records if (record.warned, record.origin) == kind)
        if 2 * num_new >= num_warned:
            fresh += alike
    return fresh
