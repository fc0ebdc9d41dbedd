"""A single check of any module, without a training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from lightning_symmetry.arguments import check_module, check_patterns, check_tolerance
from lightning_symmetry.engine.attachments import HeatmapsOnDemand, access_to, heads_in
from lightning_symmetry.ranks.sketches import team_of
from lightning_symmetry.ranks.team import Team, attempt
from lightning_symmetry.units.comparable import FindLayers, rows_by_name
from lightning_symmetry.units.copies import find_copies, find_equal_parameters
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.naming import unmatched_text
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, UnitGroup, under_all_names
from lightning_symmetry.verdicts.doubts import crowded_layers, not_looked_at, undecided_layers
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import copy_groups, judge_one_look, reported_copies, to_diagnosis
from lightning_symmetry.verdicts.orientations import count_orientations
from lightning_symmetry.verdicts.report import SymmetryReport


def diagnose(
    model: nn.Module,
    *,
    tolerance: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> SymmetryReport:
    """Check any module once, without a Trainer.

    Gradients are used where ``.grad`` exists: call this after ``backward()`` to distinguish groups that train as one
    (``LOCKED``) from those that break by themselves (``BREAKING``). ``FROZEN`` and ``LOCKSTEP`` take several checks and
    are never returned here. The model is not changed. If it is sharded, call this on all ranks.

    Args:
        model: the module.
        tolerance: relative L2 distance of rows that count as equal; None: by dtype, as in :func:`duplicate_groups`.
        include: patterns (:mod:`fnmatch`) of the names of layers to check; None: all.
        exclude: patterns of the names of layers to leave out.

    Returns:
        The report, at step 0.

    Warns:
        UserWarning: if a pattern in ``include`` or ``exclude`` matches no layer.

    Raises:
        TypeError: if ``model`` is not a module or another argument is of the wrong type.
        ValueError: if ``tolerance`` is out of range.
        TeamError: on all ranks, if the model is sharded and something failed on any of them.

    Example:
        >>> import torch
        >>> from lightning_symmetry import diagnose
        >>> layer = torch.nn.Linear(3, 4)
        >>> _ = torch.nn.init.constant_(layer.weight, 0.5)
        >>> _ = torch.nn.init.zeros_(layer.bias)
        >>> print(diagnose(torch.nn.Sequential(layer)))
        Symmetry at step 0: 1 of 4 units of 1 layer are working (3 redundant).
        layer  units  working  dead  groups
        -----  -----  -------  ----  ----------------------
        0          4        1     0  duplicate: all 4 units
        duplicate: equal units whose gradients are inconclusive so far: ...
    """
    check_module(model)
    check_tolerance(tolerance)
    check_patterns(include=include, exclude=exclude)
    find = attempt(find_layers, model, include, exclude)
    team = team_of(model)
    examine = partial(_examine, model, find, tolerance, team)
    report = examine() if team is None else team.run(examine, lambda report: None, rows_by_name(model, find, None))
    if team is None or team.is_first:
        found = find()
        if found.unmatched:
            warnings.warn(unmatched_text(found.unmatched, found.names), stacklevel=2)
    if report.status == "symmetric":
        report = replace(report, access=access_to(model, find().layers), heads=heads_in(model, find().layers))
    draw = HeatmapsOnDemand(model, report.distinct_layers, include, exclude)
    return replace(report, draw_heatmaps=draw)


def _examine(model: nn.Module, find: FindLayers, tolerance: float | None, team: Team | None) -> SymmetryReport:
    found = find()
    copies = find_copies(model, found.layers, team) + find_equal_parameters(model, found.layers)
    diagnoses: dict[str, LayerDiagnosis] = {}
    gated = {layer.name for layer in found.layers}
    for seen in look([*found.layers, *copies], tolerance=tolerance, gated=gated, team=team):
        groups = [
            UnitGroup(
                sighting.units,
                judge_one_look(sighting),
                sighting.cause,
                sighting.value,
                mirrored=sighting.mirrored,
            )
            for sighting in seen.sightings
            if sighting.has_equal_weights
        ]
        diagnoses[seen.layer.name] = to_diagnosis(seen, groups, orientations=count_orientations(seen))
    groups_of_copies = [
        group for copy in copies for group in reported_copies(copy, copy_groups(copy, diagnoses[copy.name]))
    ]
    layers = under_all_names(diagnoses[layer.name] for layer in found.layers)
    reasons = [
        "a single look, without optimizer steps, cannot tell what becomes of all units"
        if layers
        else "nothing to look at",
        *undecided_layers(diagnoses[layer.name] for layer in found.layers),
        *crowded_layers(diagnoses[layer.name] for layer in found.layers),
        *not_looked_at(found.unread),
    ]
    return SymmetryReport(0, layers, found.skipped, groups_of_copies, found.coverage, reasons)
