"""From evidence to verdicts, by functions without side effects."""

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

# Equal gradients of some units may be a passing coincidence; those of all units of a layer are not.
_LOCKSTEP_STEPS = 50
# Units that are still equal after moving this many times the tolerated distance have moved together.
_MOVED = 10.0


class Judgement(NamedTuple):
    """A verdict and its reason; :attr:`Reason.UNDECIDED` if the verdict of the check before is kept."""

    verdict: Verdict
    reason: Reason


def judge(record: Record, sighting: Sighting, patience: int, *, is_whole_layer: bool) -> Judgement:
    """Conclude what becomes of a group.

    The conditions are in the order of the table in ``docs/architecture.md``; the first that holds decides.

    Args:
        record: the past of the group, this check included.
        sighting: the group at this check.
        patience: number of checks in a row with the same gradients, where one look is no proof.
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
    has_moved = sighting.is_proof or _distance_moved(record, sighting) > _MOVED * sighting.resolution
    if gradients in (Gradients.EQUAL, Gradients.FAINT) and is_settled and has_moved:
        return Judgement(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    if gradients is Gradients.ZERO:
        if sighting.cause is Cause.ZERO and not is_whole_layer:
            return Judgement(record.verdict, Reason.PRUNED)
        # Units that have differed before have trained: they are dead rather than symmetric.
        is_frozen = is_settled and not record.was_different
        return Judgement(Verdict.FROZEN, Reason.ZERO_AGAIN) if is_frozen else as_before
    if gradients is Gradients.DIFFERENT:
        is_breaking = is_settled or record.verdict is not Verdict.LOCKED
        return Judgement(Verdict.BREAKING, Reason.DIFFERENT) if is_breaking else as_before
    if _has_moved_as_one(record, sighting):
        return Judgement(Verdict.LOCKED, Reason.MOVED_AS_ONE)
    return as_before


def _has_moved_as_one(record: Record, sighting: Sighting) -> bool:
    """Return whether the units have moved far together since they were first seen, and never differed in gradients.

    From zero any distance is far and proves nothing. Nor does a movement after the gradients have differed: dead units
    that only a weight penalty moves stay together.
    """
    is_far = _distance_moved(record, sighting) > _MOVED * sighting.reach > 0
    return is_far and record.cause is not Cause.ZERO and not record.was_different


def _distance_moved(record: Record, sighting: Sighting) -> float:
    """Estimate how far the units have moved since they were first seen."""
    return abs(sighting.position - record.position)


def judge_one_look(sighting: Sighting) -> Verdict:
    """Conclude from a single look, at which zero gradients mean nothing."""
    if sighting.gradients is Gradients.EQUAL:
        return Verdict.LOCKED if sighting.is_proof else Verdict.DUPLICATE
    return Verdict.BREAKING if sighting.gradients is Gradients.DIFFERENT else Verdict.DUPLICATE


def to_diagnosis(
    seen: Look, groups: Sequence[UnitGroup], dead: Dead | None = None, orientations: int | None = None
) -> LayerDiagnosis:
    """Return the state of a layer.

    Args:
        seen: a look at it.
        groups: its groups with their verdicts.
        dead: its dead units; None: those with a zero gradient at this look.
        orientations: its latest number of directions, if they were counted.
    """
    layer = seen.layer
    ordered = sorted(groups, key=lambda group: group.units)
    if dead is None:
        dead = Dead() if seen.idle is None else Dead(tuple(np.flatnonzero(seen.idle).tolist()))
    return LayerDiagnosis(
        name=layer.name,
        num_units=layer.num_units,
        fan_in=layer.fan_in,
        dead=dead.units,
        groups=ordered,
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
    """Return the modules that are still copies of one another."""
    return [
        CopyGroup(tuple(found.row_names[unit] for unit in group.units), group.verdict, group.first_step)
        for group in diagnosis.groups
        if group.verdict.traits.is_redundant
    ]


def reported_copies(found: Copies, groups: Sequence[CopyGroup]) -> list[CopyGroup]:
    """Return the copies for the report; single parameters, such as gates that start at 0, only if they stay equal."""
    return [group for group in groups if group.verdict.is_warning or not found.are_parameters]
