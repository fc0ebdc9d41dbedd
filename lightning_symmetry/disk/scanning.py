"""A look at a checkpoint on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_symmetry.brief import brief
from lightning_symmetry.disk import roles as roles  # so that the stand-ins of stored modules have an adapter
from lightning_symmetry.disk.checkpoints import read
from lightning_symmetry.disk.files import CheckpointError
from lightning_symmetry.disk.folders import EXPECTED, checkpoints_in
from lightning_symmetry.disk.models import Model, fill
from lightning_symmetry.disk.pages import Pages
from lightning_symmetry.disk.stored import as_modules
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.engine.options import Options
from lightning_symmetry.modules import modules_of, parameters_of, parametrizations_of
from lightning_symmetry.units.copies import find_copies
from lightning_symmetry.units.discovery import Found, find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.slices import is_matrix
from lightning_symmetry.verdicts.diagnoses import CopyGroup, Finding, LayerDiagnosis, UnitGroup, under_all_names
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import judge_one_look, to_diagnosis
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

_MAX_LISTED = 5

Follow = Callable[[Sequence[Layer]], Iterable[Layer]]
"""Passes layers on, and may show how far they are."""


@dataclass(frozen=True)
class Scan:
    """What a checkpoint has come to.

    Attributes:
        path: the checkpoint.
        report: the state of the model in it.
        findings: what the monitor of the training, if there was one, has found.
    """

    path: Path
    report: SymmetryReport
    findings: list[Finding]


def scan(path: str | os.PathLike[str], *, model: Model | None = None) -> SymmetryReport:
    """Look for duplicate units in a checkpoint on disk.

    Read are files of safetensors (``.safetensors``), of Lightning (``.ckpt``) and of ``torch.save`` (``.pt``, ``.pth``,
    ``.bin``), the latter with ``weights_only=True``: a file that wants to run code is refused. Without a model, the
    names and shapes of the tensors say which of their dimensions counts units. Layers are read one by one:
    besides PyTorch itself, it takes about as much memory as the largest of them. Tensors that claim more numbers than
    the file holds are left out, with a reason in ``skipped``.

    Args:
        path: a file, the index of a checkpoint in shards, or a folder with one checkpoint.
        model: the model, of which the layers then say what their units are: a module, whose own numbers do not count
            and which stays as it is, or a class or function that makes one. A class gets the hyperparameters that a
            checkpoint of Lightning holds.

    Returns:
        The report. A file has no gradients, so all groups are ``DUPLICATE``. Its step is that of Lightning, 0 in other
        files.

    Raises:
        CheckpointError: (a ``ValueError``) if a file is damaged, foreign, or wants to run code, if it is written to
            meanwhile, or if it does not fit the model.
        ValueError: if there are several checkpoints in a folder, or none.
        FileNotFoundError: if there is nothing at the path.
        TypeError: if an argument is of the wrong type, or the model cannot be built.

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
        duplicate: equal units whose gradients say nothing so far: ...
    """
    if not isinstance(path, str | os.PathLike):
        text = f"Expected argument `path` to be a path, as a str or os.PathLike, but got {brief(path)}."
        is_class = isinstance(path, type) and issubclass(path, nn.Module)
        if is_class or isinstance(path, nn.Module | Mapping):
            text += " For a model in memory, with its state dict loaded, use lightning_symmetry.diagnose(model)."
        raise TypeError(text)
    found = checkpoints(Path(path))
    if len(found) > 1:
        rest = len(found) - _MAX_LISTED
        listed = ", ".join(str(file.relative_to(path)) for file in found[:_MAX_LISTED])
        listed += f" and {rest} more" if rest > 0 else ""
        raise ValueError(
            f"Expected argument `path` to be one checkpoint, but there are {len(found)} in {str(path)!r}: {listed}. "
            "Name one of them."
        )
    return scan_checkpoint(found[0], model).report


def checkpoints(path: Path) -> list[Path]:
    """The checkpoints at a path, at least one.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        CheckpointError: if it is a folder without checkpoints.
    """
    found = checkpoints_in(path)
    if not found:
        raise CheckpointError(f"Expected the folder {str(path)!r} to hold {EXPECTED}, but there is none.")
    return found


def scan_checkpoint(path: Path, model: Model | None = None, follow: Follow = iter) -> Scan:
    """Look at one checkpoint.

    Args:
        path: a file, or the index of a checkpoint in shards.
        model: as for :func:`scan`.
        follow: is given all layers, and passes them on one after the other.
    """
    contents = read(path)
    filled = as_modules(contents.tensors, contents.places) if model is None else fill(model, contents, path)
    pages = Pages(
        {id(filled.tensors[name]): place for name, place in contents.places.items() if name in filled.tensors}
    )
    for module in modules_of(filled.model):
        if parametrizations_of(module):  # its weights are computed when layers are looked for
            pages.load([*module.parameters(), *module.buffers()])
    found = find_layers(filled.model)
    # Copies are equal to the last number, and without gradients there is no more to be seen of them.
    sets = find_copies(filled.model, found.layers, numbers=pages)
    copies = [CopyGroup(same.row_names, Verdict.DUPLICATE) for same in sets]
    diagnoses = {layer.name: _diagnose(layer, pages) for layer in follow(found.layers)}
    skipped = {**found.skipped, **filled.skipped, **contents.left_out}
    coverage = found.coverage
    if model is None and (num_unread := contents.num_unread + filled.num_unread):  # else the model says what there is
        num_weights = sum(p.numel() for p in parameters_of(filled.model) if is_matrix(p.shape))
        coverage *= num_weights / (num_weights + num_unread)
    report = SymmetryReport(
        contents.step, under_all_names(diagnoses.values()), skipped, copies, coverage, _reasons(found, diagnoses)
    )
    return Scan(path, report, _findings(path, contents.monitors))


def _diagnose(layer: Layer, pages: Pages) -> LayerDiagnosis:
    with pages.loaded(layer.originals):
        (seen,) = look([layer])  # directions are not counted: that would take more memory than all else
    groups = [
        UnitGroup(sighting.units, judge_one_look(sighting), sighting.cause, sighting.value, mirrored=sighting.mirrored)
        for sighting in seen.sightings
    ]
    return to_diagnosis(seen, groups)


def _reasons(found: Found, diagnoses: Mapping[str, LayerDiagnosis]) -> list[str]:
    """Why nothing can be concluded: as in a report of :func:`~lightning_symmetry.diagnose`, but of a file."""
    if not found.layers:
        return ["nothing to look at"]
    equal = {
        layer.name: describe_groups([group.units for group in layer.groups], layer.num_units)
        for layer in diagnoses.values()
        if layer.groups and not layer.slices_of
    }
    return [
        "a file on disk has no gradients, which tell what becomes of equal units",
        *(f"{name}: {units} are equal; `diagnose` tells more in a training" for name, units in equal.items()),
        *(f"{name} was not looked at: {reason}" for name, reason in found.unread.items()),
    ]


def _findings(path: Path, monitors: Iterable[dict[str, Any]]) -> list[Finding]:
    """What the monitors of a training have found.

    Raises:
        CheckpointError: if what they have left is not understood.
    """
    findings: list[Finding] = []
    for state in monitors:
        examiner = Examiner(Options(), lambda layer, reason: None)
        try:
            examiner.load_state_dict(state)
        except Exception as error:  # whatever another version has written
            raise CheckpointError(
                f"Expected the SymmetryMonitor in {str(path)!r} to be one of this version or before, but reading it "
                f"failed with {type(error).__name__}: {error}"
            ) from error
        findings += examiner.history.findings
    return findings
