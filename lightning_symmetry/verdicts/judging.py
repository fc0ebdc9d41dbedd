"""From evidence to verdicts. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_symmetry.units.copies import Copies
from lightning_symmetry.verdicts.deadness import Dead
from lightning_symmetry.verdicts.diagnoses import Cause, CopyGroup, LayerDiagnosis, Origin, Reason, UnitGroup
from lightning_symmetry.verdicts.look import Gradients, Look, Sighting
from lightning_symmetry.verdicts.records import Record
from lightning_symmetry.verdicts.verdict import Verdict

# Equal gradients of a few units may be a passing coincidence of the optimizer; that of all units of a layer is not.
_LOCKSTEP_STEPS = 50
# Units that are still equal after a movement so many times larger than what is called equal have moved together.
_MOVED = 10.0


class Judgement(NamedTuple):
    """A verdict, and why it was given; :attr:`Reason.UNDECIDED` if the verdict is that of the check before."""

    verdict: Verdict
    reason: Reason


def judge(record: Record, sighting: Sighting, patience: int, *, is_whole_layer: bool) -> Judgement:
    """Conclude what becomes of a group, from its past and from what was seen at this check.

    The conditions stand in the order of the table in ``docs/architecture.md``; the first that holds decides.

    Args:
        record: the past of the group, with this check taken in.
        sighting: what was seen of the group at this check.
        patience: at how many checks in a row the gradients must say the same, where one look is no proof.
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
    has_moved = sighting.is_proof or _way(record, sighting) > _MOVED * sighting.resolution
    if gradients in (Gradients.EQUAL, Gradients.FAINT) and is_settled and has_moved:
        return Judgement(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    if gradients is Gradients.ZERO:
        if sighting.cause is Cause.ZERO and not is_whole_layer:
            return Judgement(record.verdict, Reason.PRUNED)
        # If the units have differed before, they have trained: they are dead now rather than symmetric.
        is_frozen = is_settled and not record.was_different
        return Judgement(Verdict.FROZEN, Reason.ZERO_AGAIN) if is_frozen else as_before
    if gradients is Gradients.DIFFERENT:
        is_breaking = is_settled or record.verdict is not Verdict.LOCKED
        return Judgement(Verdict.BREAKING, Reason.DIFFERENT) if is_breaking else as_before
    if _has_moved_as_one(record, sighting):
        return Judgement(Verdict.LOCKED, Reason.MOVED_AS_ONE)
    return as_before


def _has_moved_as_one(record: Record, sighting: Sighting) -> bool:
    """Whether the units have gone a long way together since they were first seen, and never differed in gradients.

    From zero any way is long, and proves nothing. Nor does a way that units went together after they were seen to
    differ: dead units that only a weight penalty moves go the same way.
    """
    is_far = _way(record, sighting) > _MOVED * sighting.reach > 0
    return is_far and record.cause is not Cause.ZERO and not record.was_different


def _way(record: Record, sighting: Sighting) -> float:
    """Return about how far the units have moved since they were first seen."""
    return abs(sighting.position - record.position)


def judge_one_look(sighting: Sighting) -> Verdict:
    """Conclude what a single look can tell; that zero gradients mean anything takes several."""
    if sighting.gradients is Gradients.EQUAL:
        return Verdict.LOCKED if sighting.is_proof else Verdict.DUPLICATE
    return Verdict.BREAKING if sighting.gradients is Gradients.DIFFERENT else Verdict.DUPLICATE


def to_diagnosis(
    seen: Look, groups: Sequence[UnitGroup], dead: Dead | None = None, orientations: int | None = None
) -> LayerDiagnosis:
    """The state of a layer: what a look showed of it, and what was concluded of its groups.

    Args:
        seen: the look.
        groups: what was concluded of its groups.
        dead: its dead units; None: there are no earlier looks, so that of one with a zero gradient more cannot be said.
        orientations: the number of directions at the latest look that counted them; None: what this look says.
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
        orientations=seen.orientations if orientations is None else orientations,
        slices_of=layer.slices_of,
        crowded_units=seen.crowd.num_units,
        crowd_radius=seen.crowd.radius,
    )


def copy_groups(found: Copies, diagnosis: LayerDiagnosis) -> list[CopyGroup]:
    """The modules that are still copies of one another."""
    return [
        CopyGroup(tuple(found.row_names[unit] for unit in group.units), group.verdict, group.first_step)
        for group in diagnosis.groups
        if group.verdict.traits.is_redundant
    ]


def told_copies(found: Copies, groups: Sequence[CopyGroup]) -> list[CopyGroup]:
    """Return the groups of copies that a report tells.

    Of single parameters that are equal, such as gates that start from zero, only those that stay so.
    """
    return [group for group in groups if group.verdict.is_warning or not found.are_parameters]
