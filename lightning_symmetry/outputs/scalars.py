"""The scalars of a report that are written as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_symmetry.outputs.output import NAME, Check, Scalars
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis

_MAX_LAYERS = 8


class ScalarChoice:
    """Chooses the scalars of every check, by the option of the monitor. A layer that has a curve keeps it.

    Example:
        >>> from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis
        >>> from lightning_symmetry.verdicts.report import SymmetryReport
        >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 8, 4)})
        >>> for tag, value in ScalarChoice("summary").of(Check(report, [], [], set())).items():
        ...     print(tag, value)
        symmetry/working_units 8.0
        symmetry/redundant_units 0.0
        symmetry/effective_width_fraction 1.0
        symmetry/dead_units 0.0
        >>> list(ScalarChoice("layers").of(Check(report, [], [], set())))[-1]
        'symmetry/effective_width/fc'
    """

    def __init__(self, scalars: Scalars, name: str = NAME) -> None:
        self._scalars = scalars
        self._name = name
        self._named: dict[str, None] = {}  # layers with a curve, in the order of their first points
        self._latest: tuple[Mapping[str, LayerDiagnosis], Sequence[Finding], dict[str, float]] = {}, [], {}

    def of(self, check: Check) -> dict[str, float]:
        """Return the scalars of a check by tag."""
        if self._scalars == "none":
            return {}
        layers, findings, scalars = self._latest
        if check.report.layers is not layers or check.findings != findings:  # at most checks nothing has changed
            scalars = self._compute(check)
            self._latest = check.report.layers, check.findings, scalars
        return dict(scalars)

    def _compute(self, check: Check) -> dict[str, float]:
        if self._scalars == "layers":
            return renamed(check.report.metrics(), self._name)
        named = [finding.layer for finding in check.findings if not finding.modules]
        if self._scalars == "summary":
            named += [layer.name for layer in check.report.distinct_layers if layer.is_condensed]
        limit = _MAX_LAYERS if self._scalars == "summary" else None
        self._named = dict.fromkeys(list(dict.fromkeys([*self._named, *named]))[:limit])
        return renamed(check.report.metrics(self._named), self._name)


def renamed(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Return the metrics of a report with another prefix in their tags.

    >>> renamed({"symmetry/dead_units": 0.0}, "symmetry-2")
    {'symmetry-2/dead_units': 0.0}
    """
    return {name + tag.removeprefix(NAME): value for tag, value in metrics.items()}
