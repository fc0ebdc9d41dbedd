"""Which numbers of a report become curves."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_symmetry.outputs.output import Check, Scalars

_MAX_LAYERS = 10


class ScalarChoice:
    """Chooses the scalars of every check; a layer that has got a curve keeps it.

    Args:
        scalars: "summary": totals, and the effective widths of the first ten layers with findings; "findings": of all
            layers with findings; "layers": of all layers; "none": nothing.

    Example:
        >>> from lightning_symmetry.verdicts.report import LayerDiagnosis, SymmetryReport
        >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 8, 4)})
        >>> ScalarChoice("summary").of(Check(report, [], [], set()))
        {'symmetry/redundant_units': 0.0, 'symmetry/effective_width_fraction': 1.0, 'symmetry/dead_units': 0.0}
        >>> list(ScalarChoice("layers").of(Check(report, [], [], set())))[-1]
        'symmetry/effective_width/fc'
    """

    def __init__(self, scalars: Scalars) -> None:
        self._scalars = scalars
        self._named: dict[str, None] = {}  # layers with a curve, in the order in which they got it

    def of(self, check: Check) -> dict[str, float]:
        """The scalars of a check by tag."""
        if self._scalars == "none":
            return {}
        if self._scalars == "layers":
            return check.report.metrics()
        with_findings = dict.fromkeys(finding.layer for finding in check.findings if not finding.modules)
        self._named.update(self._new(with_findings))
        return check.report.metrics(self._named)

    def _new(self, with_findings: Iterable[str]) -> dict[str, None]:
        new = [name for name in with_findings if name not in self._named]
        if self._scalars == "summary":
            new = new[: _MAX_LAYERS - len(self._named)]
        return dict.fromkeys(new)
