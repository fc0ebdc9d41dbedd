"""Which numbers of a report become curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_symmetry.outputs.output import NAME, Check, Scalars
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis

_MAX_LAYERS = 8


class ScalarChoice:
    """Chooses the scalars of every check; a layer that has got a curve keeps it.

    Args:
        scalars: "summary": totals, and the effective widths and orientations of the first eight layers that have
            findings or are condensed; "findings": of all layers with findings; "layers": of all layers; "none":
            nothing.
        name: what the tags begin with.

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
        self._named: dict[str, None] = {}  # layers with a curve, in the order in which they got it
        self._latest: tuple[Mapping[str, LayerDiagnosis], Sequence[Finding], dict[str, float]] = {}, [], {}

    def of(self, check: Check) -> dict[str, float]:
        """The scalars of a check by tag."""
        if self._scalars == "none":
            return {}
        layers, findings, scalars = self._latest
        if check.report.layers is not layers or check.findings != findings:  # at most checks nothing has changed
            scalars = self._of(check)
            self._latest = check.report.layers, check.findings, scalars
        return dict(scalars)

    def _of(self, check: Check) -> dict[str, float]:
        if self._scalars == "layers":
            return renamed(check.report.metrics(), self._name)
        told = dict.fromkeys(finding.layer for finding in check.findings if not finding.modules)
        if self._scalars == "summary":
            told.update({layer.name: None for layer in check.report.distinct_layers if layer.is_condensed})
        self._named.update(self._new(told))
        return renamed(check.report.metrics(self._named), self._name)

    def _new(self, layers: Iterable[str]) -> dict[str, None]:
        new = [name for name in layers if name not in self._named]
        if self._scalars == "summary":
            new = new[: _MAX_LAYERS - len(self._named)]
        return dict.fromkeys(new)


def renamed(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Return metrics of a report under tags that begin with another name.

    >>> renamed({"symmetry/dead_units": 0.0}, "symmetry-2")
    {'symmetry-2/dead_units': 0.0}
    """
    return {name + tag.removeprefix(NAME): value for tag, value in metrics.items()}
