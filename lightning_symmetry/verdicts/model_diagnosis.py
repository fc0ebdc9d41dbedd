"""The conclusions about a whole model at one step, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from lightning_symmetry.verdicts.access import Access
from lightning_symmetry.verdicts.diagnoses import Cause, CopyGroup, Finding, LayerDiagnosis, UnitGroup, finding_of
from lightning_symmetry.verdicts.heads import Heads

Status = Literal["healthy", "symmetric", "inconclusive"]
"""The result of a report: nothing to warn of, something to warn of, or too little evidence."""


@dataclass(frozen=True)
class ModelDiagnosis:
    """The data of a report, with totals; :class:`lightning_symmetry.SymmetryReport` documents the fields."""

    step: int = 0
    layers: dict[str, LayerDiagnosis] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    copies: list[CopyGroup] = field(default_factory=list)
    coverage: float = 1.0
    reasons: list[str] = field(default_factory=list)
    untrained: dict[str, str] = field(default_factory=dict)
    idle_inputs: dict[str, int] = field(default_factory=dict)
    access: dict[str, Access] = field(default_factory=dict, repr=False, compare=False)
    heads: dict[str, Sequence[Heads]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def status(self) -> Status:
        """The result of the report.

        ``"symmetric"`` if there is anything to warn of; else ``"inconclusive"`` if there are :attr:`reasons`, else
        ``"healthy"``.
        """
        if self._num_findings:
            return "symmetric"
        return "inconclusive" if self.reasons else "healthy"

    @property
    def _num_findings(self) -> int:
        """The number of :attr:`findings`, without making them: a wide layer may have thousands."""
        of_units = sum(group.verdict.is_warning for layer in self.distinct_layers for group in layer.groups)
        return of_units + sum(group.verdict.is_warning for group in self.copies)

    @property
    def findings(self) -> list[Finding]:
        """The findings at this step, in the order of the layers, without those that are gone."""
        findings = [
            finding_of(group, layer.name, self.step)
            for layer in self.distinct_layers
            for group in layer.groups
            if group.verdict.is_warning
        ]
        for group in self.copies:
            if group.verdict.is_warning:
                places = tuple(range(len(group.modules)))
                rows = UnitGroup(places, group.verdict, Cause.COPIED, first_step=group.first_step)
                findings.append(finding_of(rows, ", ".join(group.modules), self.step, modules=group.modules))
        return findings

    @property
    def distinct_layers(self) -> list[LayerDiagnosis]:
        """The layers; of those that share a weight only the first."""
        return [layer for name, layer in self.layers.items() if name == layer.name]

    @property
    def counted_layers(self) -> list[LayerDiagnosis]:
        """The layers in the totals, in which every weight counts once.

        A parameter that no adapter knows is compared along each dimension. Only the dimension with the most redundant
        units counts, the first one if there are several.
        """
        counted: dict[str, LayerDiagnosis] = {}
        for layer in self.distinct_layers:
            known = counted.setdefault(layer.slices_of or layer.name, layer)
            if known is not layer and layer.redundant_units > known.redundant_units:
                counted[layer.slices_of] = layer
        return list(counted.values())

    @cached_property
    def num_units(self) -> int:
        """Number of units of all layers."""
        return sum(layer.num_units for layer in self.counted_layers)

    @cached_property
    def working_units(self) -> int:
        """Number of units of all layers that are neither redundant nor dead."""
        return sum(layer.working_units for layer in self.counted_layers)

    @cached_property
    def redundant_units(self) -> int:
        """Number of redundant units of all layers."""
        return sum(layer.redundant_units for layer in self.counted_layers)

    @cached_property
    def dead_units(self) -> int:
        """Number of dead units of all layers."""
        return sum(layer.dead_units for layer in self.counted_layers)

    @property
    def effective_width_fraction(self) -> float:
        """Share of the units that are distinct; 1 for a model without units."""
        return 1 - self.redundant_units / max(1, self.num_units)

    def metrics(self, layers: Iterable[str] | None = None) -> dict[str, float]:
        """Return the scalars of this report by tag: totals, and effective widths and orientations of layers.

        Args:
            layers: names of the layers; None: all. Names that are not in the report are ignored.
        """
        names = self.layers if layers is None else layers
        scalars = {
            "symmetry/working_units": float(self.working_units),
            "symmetry/redundant_units": float(self.redundant_units),
            "symmetry/effective_width_fraction": self.effective_width_fraction,
            "symmetry/dead_units": float(self.dead_units),
        }
        for name in names:
            layer = self.layers.get(name)
            if layer is not None and layer.name == name:
                scalars[f"symmetry/effective_width/{name}"] = float(layer.effective_width)
                if layer.orientations is not None:
                    scalars[f"symmetry/orientations/{name}"] = float(layer.orientations)
        return scalars

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for JSON.

        Fields may be added; none changes its meaning while ``schema`` is 1.

        Returns:
            A dict with these fields:

            - ``schema``: 1.
            - ``step``: completed optimizer steps.
            - ``num_units``, ``working_units``, ``redundant_units``, ``dead_units``: totals over all layers. Layers that
              share a weight count once, and so do slices of one parameter.
            - ``layers``: by layer name, also under each name of layers that share a weight, a dict of attributes of
              :class:`LayerDiagnosis`: ``num_units``, ``fan_in``, ``effective_width``, ``working_units``,
              ``redundant_units``, ``dead_units``, ``dead``, ``orientations``, ``crowded_units``, ``crowd_radius`` and
              ``groups``.
            - ``layers.*.groups``: a list of dicts of attributes of :class:`UnitGroup`: ``units``, ``verdict``,
              ``cause``, ``value``, ``first_step``, ``mirrored``, ``stop``, ``follows`` and ``kept_by``. ``stop`` is
              a dict of the attributes of :class:`GradientStop`.
            - ``copies``: a list of dicts of attributes of :class:`CopyGroup`: ``modules`` and ``verdict``.
            - ``status``, ``skipped``, ``coverage``, ``reasons``, ``untrained``, ``idle_inputs``: as in the report.

        Example:
            >>> from lightning_symmetry import LayerDiagnosis, SymmetryReport
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 4, 8)})
            >>> report.to_dict()["layers"]["fc"]["working_units"]
            4
        """
        return {
            "schema": 1,
            "step": self.step,
            "num_units": self.num_units,
            "working_units": self.working_units,
            "redundant_units": self.redundant_units,
            "dead_units": self.dead_units,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "skipped": dict(self.skipped),
            "copies": [group.to_dict() for group in self.copies],
            "coverage": self.coverage,
            "status": self.status,
            "reasons": list(self.reasons),
            "untrained": dict(self.untrained),
            "idle_inputs": dict(self.idle_inputs),
        }

    def __repr__(self) -> str:
        num_findings = self._num_findings
        summary = describe_work(self)
        if num_findings and self.working_units == self.num_units:  # they are about lockstep or whole modules
            summary = f"{num_findings:,} finding{'s' if num_findings > 1 else ''}, {summary}"
        return f"<{type(self).__name__} at step {self.step}: {self.status}; {summary}>"


def describe_work(report: ModelDiagnosis) -> str:
    """Return how many units of a model work, and why the others do not, in a few words.

    Example:
        >>> describe_work(ModelDiagnosis(3, {"fc": LayerDiagnosis("fc", 4, 8, dead=(0,))}))
        '3 of 4 units of 1 layer are working (1 dead)'
        >>> describe_work(ModelDiagnosis(3, {"fc": LayerDiagnosis("fc", 1, 8)}))
        '1 of 1 unit of 1 layer is working'
    """
    num_layers = len(report.counted_layers)
    if not num_layers:
        return "no layer was inspected"
    is_all = report.working_units == report.num_units > 1
    working = "all" if is_all else f"{report.working_units:,} of"
    units = "unit" if report.num_units == 1 else "units"
    layers = f"{num_layers:,} layer{'s' if num_layers > 1 else ''}"
    others = {"redundant": report.redundant_units, "dead": report.dead_units}
    why = ", ".join(f"{number:,} {kind}" for kind, number in others.items() if number)
    verb = "is" if report.working_units == report.num_units == 1 else "are"
    return f"{working} {report.num_units:,} {units} of {layers} {verb} working{f' ({why})' if why else ''}"


ModelDiagnosisT = TypeVar("ModelDiagnosisT", bound=ModelDiagnosis)


def at_step(diagnosis: ModelDiagnosisT, step: int) -> ModelDiagnosisT:
    """Return the same conclusions for another step, with the totals that were computed from them before."""
    other = object.__new__(type(diagnosis))
    vars(other).update(vars(diagnosis), step=step)
    return other
