"""The base of all outputs, and the check that they write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.verdict import Verdict

__all__ = ["Check", "Output"]

Heatmaps = Literal["findings", "all", "none"]
"""Which layers get pictures: those with findings when these change, all at every check, or none."""

Scalars = Literal["summary", "layers", "findings", "none"]
"""The layers whose effective width and orientations are written beside the totals: the first few that have findings or
are condensed, all, or all with findings. ``"none"``: no scalars."""

NAME = "symmetry"
"""The name of tags and folders; a second monitor in one training has a name of its own."""


@dataclass(frozen=True)
class Check:
    """One check, as outputs see it.

    Attributes:
        report: the state of the model.
        findings: everything that the user was warned of so far.
        looks: one for each layer that this check looked at.
        changed: names of the layers that need a new picture.
    """

    report: SymmetryReport
    findings: Sequence[Finding]
    looks: Sequence[Look]
    changed: Set[str]


class Output(ABC):
    """A destination of checks.

    An exception in :meth:`write` or :meth:`close` affects neither the training nor other outputs. A check that could
    not be written is written again before the next one or at the end of the training. Its ``looks`` are empty then,
    since the weights have changed; the layers in its ``changed`` are added to the next check. After three failures in a
    row an output is not called any more.

    Attributes:
        name: the name of the output in messages.
        keeps_findings: whether it stores findings and pictures, not only numbers.
        is_foreign: whether ``write`` runs code of other packages, which may draw random numbers at any check. The
            random generators are then restored after every check, otherwise only after checks with changes.
    """

    name: str
    keeps_findings = True
    is_foreign = True

    @abstractmethod
    def write(self, check: Check) -> None:
        """Write one check."""

    def close(self, report: SymmetryReport) -> None:  # noqa: B027 # most outputs write nothing at the end
        """Finish at the end of the training, with its last report."""


class Changes:
    """Detects which layers need a new picture: those with groups or findings that are new, changed or ended.

    A new verdict alone needs no picture: as ReLUs open and close, groups alternate between locked and frozen.
    """

    def __init__(self) -> None:
        self._subjects: dict[str, object] = {}
        self._latest: tuple[Mapping[str, LayerDiagnosis], Sequence[Finding]] = {}, []

    def update(self, report: SymmetryReport, findings: Sequence[Finding]) -> frozenset[str]:
        """Return the names of the layers that have changed since the previous call; at the first call, all."""
        layers_before, findings_before = self._latest
        self._latest = report.layers, findings
        if report.layers is layers_before and findings == findings_before:  # the usual case
            return frozenset()
        found: dict[str, list[object]] = {}
        for finding in findings:
            found.setdefault(finding.layer, []).append((finding.units, finding.broken_step))
        # Units die and revive one by one, so only the presence of a dead group counts, not its units.
        groups = {
            name: [None if group.verdict is Verdict.DEAD else group.units for group in layer.groups]
            for name, layer in report.layers.items()
        }
        subjects: dict[str, object] = {name: (groups.get(name), found.get(name)) for name in {**groups, **found}}
        before, self._subjects = self._subjects, subjects
        return frozenset(name for name in {**before, **subjects} if before.get(name) != subjects.get(name))
