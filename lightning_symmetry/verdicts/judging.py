"""From evidence to verdicts: functions without side effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_symmetry.units.copies import Copies
from lightning_symmetry.verdicts.diagnoses import Cause, CopyGroup, LayerDiagnosis, Origin, Reason, UnitGroup
from lightning_symmetry.verdicts.look import Gradients, Look, Sighting
from lightning_symmetry.verdicts.records import Record
from lightning_symmetry.verdicts.streaks import Dead
from lightning_symmetry.verdicts.verdict import Verdict

# For this many steps, equal gradients of only some units of a layer may be a coincidence; those of all are none.
_LOCKSTEP_STEPS = 50
# Units that have moved by this many times the tolerated distance and are still equal have moved together.
_MOVED = 10.0


class Judgement(NamedTuple):
    """A verdict and its reason, which is ``UNDECIDED`` if the verdict of the check before is kept."""

    verdict: Verdict
    reason: Reason


def judge(record: Record, sighting: Sighting, patience: int, *, is_whole_layer: bool) -> Judgement:
    """Return the verdict on a group, from its record, which includes this check, and its sighting at this check.

    The conditions are in the order of the table in ``docs/architecture.md``; the first that holds decides.

    Args:
        record: the history of the group.
        sighting: the group at this check.
        patience: number of checks in a row with the same evidence that a verdict needs where one look is no proof.
        is_whole_layer: whether the group holds all units that can be compared with one another.
    """
    gradients = sighting.gradients
    if gradients is Gradients.ZERO and record.gradients is Gradients.FAINT:
        gradients = Gradients.FAINT
    is_settled = record.streak >= patience
    as_before = Judgement(record.verdict, Reason.UNDECIDED)
    if not record.has_equal_weights:
        has_lasted = is_whole_layer or record.last_step - record.first_step >= _LOCKSTEP_STEPS
        return Judgement(Verdict.LOCKSTEP, Reason.PARALLEL_AGAIN) if is_settled and has_lasted else as_before
    is_proof = sighting.is_proof and record.origin is Origin.START and not record.was_different
    if gradients is Gradients.EQUAL and is_proof:
        return Judgement(Verdict.LOCKED, Reason.EQUAL_FROM_START)
    if gradients is Gradients.FAINT and is_settled and record.cause is Cause.ZERO and not record.was_different:
        return Judgement(Verdict.FROZEN, Reason.ROUNDING_AGAIN)
    distance = abs(sighting.position - record.position)  # about the distance that the units have moved
    has_moved = sighting.is_proof or distance > _MOVED * sighting.resolution
    if gradients in (Gradients.EQUAL, Gradients.FAINT) and is_settled and has_moved:
        return Judgement(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    if gradients is Gradients.ZERO:
        if sighting.cause is Cause.ZERO and not is_whole_layer:
            return Judgement(record.verdict, Reason.PRUNED)
        # Units whose gradients have differed have trained: they are dead rather than symmetric.
        is_frozen = is_settled and not record.was_different
        return Judgement(Verdict.FROZEN, Reason.ZERO_AGAIN) if is_frozen else as_before
    if gradients is Gradients.DIFFERENT:
        is_breaking = is_settled or record.verdict is not Verdict.LOCKED
        return Judgement(Verdict.BREAKING, Reason.DIFFERENT) if is_breaking else as_before
    # Moving far together is no proof if the units started at zero, from where any distance is far, or if their
    # gradients have ever differed: a weight penalty alone moves dead units together.
    if distance > _MOVED * sighting.reach > 0 and record.cause is not Cause.ZERO and not record.was_different:
        return Judgement(Verdict.LOCKED, Reason.MOVED_AS_ONE)
    return as_before


def judge_one_look(sighting: Sighting) -> Verdict:
    """Return the verdict from a single look, at which zero gradients are no evidence."""
    if sighting.gradients is Gradients.EQUAL and sighting.is_proof:
        return Verdict.LOCKED
    return Verdict.BREAKING if sighting.gradients is Gradients.DIFFERENT else Verdict.DUPLICATE


def to_diagnosis(
    seen: Look, groups: Sequence[UnitGroup], dead: Dead | None = None, orientations: int | None = None
) -> LayerDiagnosis:
    """Return the state of a layer, from a look at it and its groups with their verdicts.

    Without ``dead``, units with a zero gradient at this look count as dead. ``orientations`` is None if the directions
    were not counted.
    """
    layer = seen.layer
    if dead is None:
        dead = Dead() if seen.idle is None else Dead(tuple(np.flatnonzero(seen.idle).tolist()))
    return LayerDiagnosis(
        name=layer.name,
        num_units=layer.num_units,
        fan_in=layer.fan_in,
        dead=dead.units,
        groups=sorted(groups, key=lambda group: group.units),
        also=layer.also,
        died_at=dead.died_at,
        woke_at=dict(dead.woke_at),
        idle_units=dead.num_idle,
        orientations=orientations,
        slices_of=layer.slices_of,
        crowded_units=seen.crowd.num_units,
        crowd_radius=seen.crowd.radius,
    )


def copy_groups(found: Copies, diagnosis: LayerDiagnosis) -> list[CopyGroup]:
    """Return the sets of modules that are still copies of one another."""
    return [
        CopyGroup(tuple(found.row_names[unit] for unit in group.units), group.verdict, group.first_step)
        for group in diagnosis.groups
        if group.verdict.traits.is_redundant
    ]


def reported_copies(found: Copies, groups: Sequence[CopyGroup]) -> list[CopyGroup]:
    """Return the copies to report. Parameters, such as gates, may start equal on purpose: they must stay equal."""
    return [group for group in groups if group.verdict.is_warning or not found.are_parameters]
