"""Groups over time: what was seen at earlier checks turns evidence into verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from lightning_symmetry.matrices.mirrors import Mirrored
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.deadness import Deaths
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis, Origin, UnitGroup
from lightning_symmetry.verdicts.judging import judge, to_diagnosis
from lightning_symmetry.verdicts.looks import Gradients, Look, Steady
from lightning_symmetry.verdicts.orientations import Orientations
from lightning_symmetry.verdicts.records import Lineage, Record
from lightning_symmetry.verdicts.verdict import Verdict


class _Seen(NamedTuple):
    """What the latest look at a layer has left open.

    Attributes:
        layer: the layer.
        has_groups: whether there are groups of equal units, or of units in lockstep.
        is_open: whether there is anything that the next look may change though it shows nothing.
    """

    layer: Comparable
    has_groups: bool
    is_open: bool


class History:
    """Carries groups and dead units from check to check.

    Args:
        patience: checks in a row that a group must hold before it is called frozen or lockstep, or locked if it was
            not there from the start; and at which the gradient of a unit must be zero before it is called dead.
        dead_share: the share of a layer's units that must be dead before the user is warned of them.
    """

    def __init__(self, patience: int, dead_share: float = 0.5) -> None:
        self._patience = patience
        self._dead_share = dead_share
        self._records: dict[str, list[Record]] = {}
        self._deaths: dict[str, Deaths] = {}
        self._orientations: dict[str, Orientations] = {}
        # By layer, if the last check looked at it, the fingerprint of its weights, and whether it had a gradient.
        self._last: dict[str, tuple[int, bool]] = {}
        self._seen: dict[str, _Seen] = {}  # by layer, the latest look
        self._steady: dict[str, Steady | None] = {}  # by layer, what :meth:`steady` has said since the latest update

    @property
    def findings(self) -> list[Finding]:
        """Every group that was warned of, in the order of the layers and of time."""
        findings = []
        for layer, records in self._records.items():
            dead = self._deaths[layer].finding if layer in self._deaths else None
            if records or dead:
                told = [*records, *([dead] if dead else [])]
                findings += [record.to_finding(layer) for record in told if record.warned]
        return findings

    def known(self, layer: str) -> list[Mirrored]:
        """The groups of equal weights in this layer that hold as far as is known; with signs, if there are two."""
        return [Mirrored(record.units, record.mirrored) for record in self._holding(layer) if record.has_equal_weights]

    def due_for_orientations(self, layers: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """The layers whose directions are to be counted at the next look, each with its dead units."""
        due = [name for name in layers if name not in self._orientations or self._orientations[name].is_due]
        return {name: self._deaths[name].units if name in self._deaths else () for name in due}

    def is_without_groups(self, layer: Comparable) -> bool:
        """Whether a layer has been looked at, and no groups in it are known."""
        last = self._seen.get(layer.name)
        return last is not None and last.layer is layer and not last.has_groups

    def can_be_quick(self, layer: Comparable) -> bool:
        """Whether it is enough to read a layer without groups quickly, after as many looks as verdicts take.

        Every now and then its directions are to be counted, for which it is looked at.
        """
        counted = self._orientations[layer.name]
        return counted.num_looks >= self._patience and not counted.is_due

    def can_pass_over(self, layer: Comparable) -> bool:
        """Whether all that is known of a layer stands as long as no gradient of it is zero."""
        return not self._seen[layer.name].is_open

    def pass_over(self, layer: Comparable) -> None:
        """Note that nothing is to be seen at a layer that :meth:`can_pass_over`."""
        self._last.pop(layer.name, None)
        self._deaths[layer.name].pass_over(can_tell=layer.can_freeze)
        self._orientations[layer.name].num_looks += 1

    def steady(self, layer: Comparable) -> Steady | None:
        """The groups of a layer if all of them have settled as locked and nothing else is open; else None."""
        name = layer.name
        if name not in self._seen or self._seen[name].layer is not layer or self._orientations[name].is_due:
            return None
        if name not in self._steady:
            records = self._holding(name)
            has_settled = records and not self._deaths[name].are_open and all(map(self._has_settled, records))
            self._steady[name] = Steady.of([x.units for x in records], layer.num_units) if has_settled else None
        return self._steady[name]

    def _holding(self, layer: str) -> list[Record]:
        """The records of a layer whose groups hold as far as is known."""
        return [record for record in self._records.get(layer, ()) if record.broken_step is None]

    def _has_settled(self, record: Record) -> bool:
        """Whether equal weights and gradients, again and again, would change nothing that is known of a group."""
        is_locked = record.verdict is Verdict.LOCKED and record.gradients is Gradients.EQUAL
        is_plain = record.has_equal_weights and not record.mirrored and not record.row_names
        return is_locked and is_plain and record.streak >= self._patience

    def hold(self, seen: Look, step: int, *, is_fresh: bool) -> None:
        """As :meth:`update` with a look that says that the groups of :meth:`steady` stand."""
        assert seen.fingerprint is not None
        name = seen.layer.name
        self.pass_over(seen.layer)
        self._last[name] = (seen.fingerprint, seen.has_gradient)
        for record in self._holding(name):
            record.last_step = step
            record.streak += is_fresh

    def is_fresh(self, looks: Sequence[Look], *, had_gradient: bool = False) -> bool:
        """Whether these looks tell more than the last ones at the same layers, which :meth:`update` has taken in.

        They do not if there were gradients, but no update moved anything: at a learning rate of zero, or when the
        gradient scaler skips a step.

        Args:
            looks: the looks.
            had_gradient: whether layers that were read quickly had a gradient.
        """
        closely = [seen for seen in looks if seen.fingerprint is not None]
        before = [(self._last[seen.layer.name], seen) for seen in closely if seen.layer.name in self._last]
        has_moved = any(fingerprint != seen.fingerprint for (fingerprint, _), seen in before)
        return has_moved or not (had_gradient or any(has_gradient for (_, has_gradient), _ in before))

    def update(
        self, seen: Look, step: int, is_fresh: bool = True, is_unused: bool = False
    ) -> tuple[LayerDiagnosis, list[Finding]]:
        """Take in a look at a layer.

        Args:
            seen: the look.
            step: completed optimizer steps.
            is_fresh: whether this look counts among those that must agree; :meth:`is_fresh` tells.
            is_unused: whether the module of the layer takes no part in the training at this check.

        Returns:
            The diagnosis, and the findings that the user has not been told of yet.
        """
        name = seen.layer.name
        origin = Origin.COLLAPSE
        if name not in self._records:
            origin = Origin.START if step == 0 else Origin.FIRST_LOOK
        records = self._records.setdefault(name, [])
        lineage = Lineage(records)
        holding: list[Record] = []
        groups: list[UnitGroup] = []
        news: list[Finding] = []
        # The largest groups come first: when a group falls apart, its largest part carries the record on.
        for sighting in sorted(seen.sightings, key=lambda sighting: -len(sighting.units)):
            record = lineage.carry_on(sighting, step) or lineage.begin(sighting, step, origin, seen.layer.row_names)
            holding.append(record)
            record.take_in(sighting, is_fresh)
            is_whole_layer = len(record.units) * seen.layer.blocks == seen.layer.num_units
            verdict, reason = judge(record, sighting, self._patience, is_whole_layer=is_whole_layer)
            is_news = verdict.is_warning and record.has_grown
            record.conclude(verdict, reason)
            if verdict is Verdict.LOCKSTEP or record.has_equal_weights:
                groups.append(record.to_group())
            if is_news:
                news.append(record.to_finding(name))
        self._records[name] = lineage.end(holding, step) + holding
        self._steady.pop(name, None)
        self._last.pop(name, None)
        if seen.fingerprint is not None:
            self._last[name] = (seen.fingerprint, seen.has_gradient)
        if name not in self._deaths:
            self._deaths[name] = Deaths(self._patience, self._dead_share)
            self._orientations.setdefault(name, Orientations())
        deaths = self._deaths[name]
        dead, died = deaths.update(seen, step, is_fresh=is_fresh, is_unused=is_unused)
        of_the_dead = deaths.group
        told = (self._untold(name, news) if news else []) + ([died.to_finding(name)] if died else [])
        counted = self._orientations[name].update(seen)
        has_groups = bool(self._holding(name))
        self._seen[name] = _Seen(seen.layer, has_groups, has_groups or deaths.are_open)
        return to_diagnosis(seen, groups + ([of_the_dead] if of_the_dead else []), dead, counted), told

    def _untold(self, layer: str, news: Sequence[Finding]) -> list[Finding]:
        """The news, without those of a kind of which most was told before: pairs reach their verdicts one by one."""
        untold = []
        for kind in dict.fromkeys((finding.verdict, finding.origin) for finding in news):
            alike = [finding for finding in news if (finding.verdict, finding.origin) == kind]
            known = [record for record in self._records[layer] if (record.warned, record.origin) == kind]
            told = sum(len(record.warned_units) for record in known) - sum(len(finding.units) for finding in alike)
            if sum(len(finding.units) for finding in alike) >= told:
                untold += alike
        return untold

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: ``groups``, ``deaths`` and ``orientations``, all by layer."""
        return {
            "groups": {name: [record.to_state() for record in records] for name, records in self._records.items()},
            "deaths": {name: deaths.to_state() for name, deaths in self._deaths.items()},
            "orientations": {name: asdict(counted) for name, counted in self._orientations.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what :meth:`state_dict` wrote."""
        self._seen, self._steady = {}, {}
        self._records = {
            name: [Record.from_state(values) for values in records] for name, records in state["groups"].items()
        }
        self._deaths = {name: Deaths(self._patience, self._dead_share) for name in state["deaths"]}
        for name, values in state["deaths"].items():
            self._deaths[name].load_state(values)
        self._orientations = {name: Orientations(**values) for name, values in state["orientations"].items()}
