"""Scans of checkpoints: read the tensors, find the layers, and report groups of equal units."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lightning_symmetry.brief import brief
from lightning_symmetry.disk import roles as roles  # registers the adapter for stand-ins
from lightning_symmetry.disk.checkpoints import read
from lightning_symmetry.disk.files import CheckpointError, StoredNumbers
from lightning_symmetry.disk.folders import checkpoints_at
from lightning_symmetry.disk.models import Model, as_modules, fill
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.engine.options import Options
from lightning_symmetry.modules import modules_of, parameters_of, parametrizations_of
from lightning_symmetry.units.copies import find_copies
from lightning_symmetry.units.discovery import Found, find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.registry import is_matrix
from lightning_symmetry.verdicts.diagnoses import CopyGroup, Finding, LayerDiagnosis, UnitGroup, under_all_names
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import judge_one_look, to_diagnosis
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

_MAX_LISTED = 5

Follow = Callable[[Sequence[Layer]], Iterable[Layer]]
"""Yields the layers one by one, for example to show progress."""


class Scan(NamedTuple):
    """The result of scanning one checkpoint."""

    path: Path  # the checkpoint
    report: SymmetryReport  # the report on its model
    findings: list[Finding]  # findings of the training's monitor, if the checkpoint holds one


def scan(path: str | os.PathLike[str], *, model: Model | None = None) -> SymmetryReport:
    """Find duplicate units in a checkpoint on disk.

    Reads safetensors files (``.safetensors``), Lightning checkpoints (``.ckpt``) and ``torch.save`` files (``.pt``,
    ``.pth``, ``.bin``). The latter two are read as with ``weights_only=True``: a file that would execute code is
    refused. Without a model, the names and shapes of the tensors determine which dimension counts units. Layers are
    read one by one, so a scan takes about as much memory as the largest layer. Tensors that claim more numbers than the
    file holds are left out, with a reason in ``skipped``.

    Args:
        path: a file, the index of a sharded checkpoint, or a folder with one checkpoint.
        model: a module, or a class or function that makes one; its layers then determine the units. A module is not
            changed, and its own numbers are ignored. A class is called with the hyperparameters of a Lightning
            checkpoint.

    Returns:
        The report. A file has no gradients, so all groups are ``DUPLICATE``. Its step is the one stored by Lightning, 0
        for other files.

    Raises:
        CheckpointError: (a ``ValueError``) if a file is damaged, foreign, or would execute code, if another program
            writes to it during the scan, or if it does not fit the model.
        ValueError: if the folder has several checkpoints, or none.
        FileNotFoundError: if the path does not exist.
        TypeError: if an argument has the wrong type, or the model cannot be built.

    Example:
        >>> import tempfile, torch
        >>> from lightning_symmetry import scan
        >>> file = tempfile.mkdtemp() + "/model.pt"
        >>> torch.save({"fc.weight": torch.full((4, 3), 0.5), "fc.bias": torch.zeros(4)}, file)
        >>> print(scan(file))
        Symmetry at step 0: 1 of 4 units of 1 layer are working (3 redundant).
        layer  units  working  dead  groups
        -----  -----  -------  ----  ----------------------
        fc         4        1     0  duplicate: all 4 units
        duplicate: equal units whose gradients are inconclusive so far: ...
    """
    if not isinstance(path, str | os.PathLike):
        text = f"Expected argument `path` to be a path, as a str or os.PathLike, but got {brief(path)}."
        is_class = isinstance(path, type) and issubclass(path, nn.Module)
        if is_class or isinstance(path, nn.Module | Mapping):
            text += " For a model in memory, with its state dict loaded, use lightning_symmetry.diagnose(model)."
        raise TypeError(text)
    found = checkpoints_at(Path(path))
    if len(found) > 1:
        rest = len(found) - _MAX_LISTED
        listed = ", ".join(str(file.relative_to(path)) for file in found[:_MAX_LISTED])
        listed += f" and {rest} more" if rest > 0 else ""
        raise ValueError(
            f"Expected argument `path` to be one checkpoint, but there are {len(found)} in {str(path)!r}: {listed}. "
            "Name one of them."
        )
    return scan_checkpoint(found[0], model).report


def scan_checkpoint(path: Path, model: Model | None = None, follow: Follow = iter) -> Scan:
    """Scan one checkpoint, a file or the index of a sharded one; ``model`` is as for :func:`scan`."""
    contents = read(path)
    filled = as_modules(contents.tensors, contents.places) if model is None else fill(model, contents, path)
    numbers = StoredNumbers(
        {id(filled.tensors[name]): place for name, place in contents.places.items() if name in filled.tensors}
    )
    for module in modules_of(filled.model):
        if parametrizations_of(module):  # `find_layers` computes the module's weights
            numbers.load([*module.parameters(), *module.buffers()])
    found = find_layers(filled.model)
    copies = [
        CopyGroup(same.row_names, Verdict.DUPLICATE)
        for same in find_copies(filled.model, found.layers, numbers=numbers)
    ]
    diagnoses = {layer.name: _diagnose(layer, numbers) for layer in follow(found.layers)}
    skipped = {**found.skipped, **filled.skipped, **contents.left_out}
    coverage = found.coverage
    # A model given by the user determines the coverage by itself.
    if model is None and (num_unread := contents.num_unread + filled.num_unread):
        num_weights = sum(p.numel() for p in parameters_of(filled.model) if is_matrix(p.shape))
        coverage *= num_weights / (num_weights + num_unread)
    report = SymmetryReport(
        contents.step, under_all_names(diagnoses.values()), skipped, copies, coverage, _reasons(found, diagnoses)
    )
    return Scan(path, report, _findings(path, contents.monitors))


def _diagnose(layer: Layer, numbers: StoredNumbers) -> LayerDiagnosis:
    with numbers.loaded(layer.originals):
        (seen,) = look([layer])  # without counting directions, which would take the most memory
    groups = [
        UnitGroup(sighting.units, judge_one_look(sighting), sighting.cause, sighting.value, mirrored=sighting.mirrored)
        for sighting in seen.sightings
    ]
    return to_diagnosis(seen, groups)


def _reasons(found: Found, diagnoses: Mapping[str, LayerDiagnosis]) -> list[str]:
    """Return why the report is inconclusive."""
    if not found.layers:
        return ["nothing to look at"]
    equal = {
        layer.name: describe_groups([group.units for group in layer.groups], layer.num_units)
        for layer in diagnoses.values()
        if layer.groups and not layer.slices_of
    }
    return [
        "a file has no gradients, which determine the verdict on equal units",
        *(f"{name}: {units} are equal; call `diagnose(model)` during a training" for name, units in equal.items()),
        *(f"{name} was not looked at: {reason}" for name, reason in found.unread.items()),
    ]


def _findings(path: Path, monitors: Iterable[dict[str, Any]]) -> list[Finding]:
    """Return the findings of the monitors in a checkpoint; raises a CheckpointError if a state cannot be read."""
    findings: list[Finding] = []
    for state in monitors:
        examiner = Examiner(Options(), lambda layer, reason: None)
        try:
            examiner.load_state_dict(state)
        except Exception as error:  # another version may have stored anything
            raise CheckpointError(
                f"Expected the SymmetryMonitor in {str(path)!r} to be from this version of lightning-symmetry or an "
                f"earlier one, but reading it failed with {type(error).__name__}: {error}. "
                "Update with: pip install -U lightning-symmetry"
            ) from error
        findings += examiner.history.findings
    return findings
