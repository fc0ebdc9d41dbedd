"""From what was seen to verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_symmetry.units.copies import Copies
from lightning_symmetry.verdicts.evidence import Gradients, Look, Sighting
from lightning_symmetry.verdicts.report import CopyGroup, LayerDiagnosis, UnitGroup
from lightning_symmetry.verdicts.verdict import Verdict


def verdict_at_one_look(sighting: Sighting) -> Verdict:
    """What a single look can tell; zero gradients need several."""
    if sighting.gradients is Gradients.EQUAL:
        return Verdict.LOCKED
    return Verdict.BREAKING if sighting.gradients is Gradients.DIFFERENT else Verdict.DUPLICATE


def to_diagnosis(seen: Look, groups: Sequence[UnitGroup]) -> LayerDiagnosis:
    """A look, concluded."""
    layer = seen.layer
    ordered = sorted(groups, key=lambda group: group.units)
    return LayerDiagnosis(layer.name, layer.num_units, layer.fan_in, seen.dead_units, ordered, layer.also)


def copy_groups(found: Copies, diagnosis: LayerDiagnosis) -> list[CopyGroup]:
    """The copies that are still equal."""
    return [
        CopyGroup(tuple(found.row_names[unit] for unit in group.units), group.verdict)
        for group in diagnosis.groups
        if group.verdict.traits.is_redundant
    ]
