"""What every output has in common, and what it is handed at a check."""

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

NAME = "symmetry"
"""What tags and folders are called; those of a second monitor in one training have a name of their own."""

Scalars = Literal["summary", "layers", "findings", "none"]
"""Which scalars are written: totals, and effective width and orientations of the first few layers that have findings or
are condensed; of every layer; of every layer with findings; or none."""


@dataclass(frozen=True)
class Check:
    """One check, as outputs see it.

    Attributes:
        report: the state of the model.
        findings: all that was warned of so far.
        looks: what this check saw, a look per layer that it looked at.
        changed: names of the layers that are worth another picture.
    """

    report: SymmetryReport
    findings: Sequence[Finding]
    looks: Sequence[Look]
    changed: Set[str]


class Output(ABC):
    """A place where checks are written.

    What :meth:`write` or :meth:`close` raises ends neither the training nor the other outputs. The checks that an
    output has failed to write are handed to it again, in order, before the next one, or at the end of the training;
    their ``looks`` are empty then, since the weights have moved on, but ``changed`` of later checks holds what was
    missed. After three failures in a row an output is handed nothing any more.

    Attributes:
        name: what messages call the output.
        keeps_findings: whether findings and pictures can be read there, and not only numbers.
        is_foreign: whether ``write`` runs code of other packages, which may draw random numbers at any check: the
            generators are then restored after every check, else after those with news.
    """

    name: str
    keeps_findings = True
    is_foreign = True

    @abstractmethod
    def write(self, check: Check) -> None:
        """Write one check."""

    def close(self, report: SymmetryReport) -> None:  # noqa: B027 # most outputs have nothing to say at the end
        """Write what is to be said at the end of the training, of which this is the last report."""


class Changes:
    """Notes which layers are worth another picture: those whose groups or findings have other units, or have ended.

    That a verdict changes is not worth a picture: locked and frozen take turns as ReLUs open.
    """

    def __init__(self) -> None:
        self._subjects: dict[str, object] = {}
        self._latest: tuple[Mapping[str, LayerDiagnosis], Sequence[Finding]] = {}, []

    def take_in(self, report: SymmetryReport, findings: Sequence[Finding]) -> frozenset[str]:
        """The names of the layers that have changed since the call before; all of them at the first call."""
        layers_before, findings_before = self._latest
        self._latest = report.layers, findings
        if report.layers is layers_before and findings == findings_before:  # as at most checks
            return frozenset()
        told: dict[str, list[object]] = {}
        for finding in findings:
            told.setdefault(finding.layer, []).append((finding.units, finding.broken_step))
        # Units die and wake one by one; that there are many of them is worth one picture.
        groups = {
            name: [None if group.verdict is Verdict.DEAD else group.units for group in layer.groups]
            for name, layer in report.layers.items()
        }
        subjects: dict[str, object] = {name: (groups.get(name), told.get(name)) for name in {**groups, **told}}
        before, self._subjects = self._subjects, subjects
        return frozenset(name for name in {**before, **subjects} if before.get(name) != subjects.get(name))
