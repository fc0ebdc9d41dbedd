"""The report of one step, and the forms in which it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lightning_symmetry.brief import brief
from lightning_symmetry.verdicts import advice, html, plotting, text
from lightning_symmetry.verdicts.model_diagnosis import ModelDiagnosis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class SymmetryReport(ModelDiagnosis):
    """The state of a model at one step.

    Attributes:
        step: completed optimizer steps at the time.
        layers: the layers by name; layers that share a weight are one, which is listed under each name.
        skipped: why modules with parameters were not inspected, by name.
        copies: whole modules that are equal.
        coverage: share of the model's weights, the numbers in parameters of two or more dimensions, that belong to
            these layers; between 0 and 1.
        reasons: why nothing can be concluded about parts of the model so far: too few optimizer steps, or layers that
            were not checked; empty if all is decided.
        untrained: why layers do not train, by name, or parameters if only some of a layer do not: no optimizer updates
            it, no gradient has reached it, it is not finite since a step, or it has not moved. Each is among the
            ``reasons`` too.
        idle_inputs: by layer, the number of inputs whose weights had no gradient in any unit at the first checks, such
            as inputs that are always zero.
        access: by name of a layer or module in a finding, how code reaches it.
        heads: by name of a layer of an attention module, the units of each head; empty without findings.
        draw_heatmaps: draws heatmaps of layers with groups, for notebooks: PNG files by layer name, from the current
            weights of the model. None in reports that were copied or come from another process.
    """

    draw_heatmaps: Callable[[], Mapping[str, bytes]] | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # `draw_heatmaps` refers to the model, which stays in its process.
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "draw_heatmaps"}

    def messages(self) -> list[str]:
        """Return the findings at this step in words: what was seen, why, and what to do.

        Example:
            >>> from lightning_symmetry import LayerDiagnosis, UnitGroup, Verdict
            >>> from lightning_symmetry.verdicts.diagnoses import Cause
            >>> group = UnitGroup((0, 1, 2), Verdict.LOCKED, Cause.ZERO, first_step=0)
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 3, 8, groups=[group])})
            >>> print(*report.messages())
            fc: all 3 units are identical in weights and gradients (locked since step 0): they train as 1 unit. ...
        """
        return advice.messages(self.findings, self)

    def to_dataframe(self) -> DataFrame:
        """Return the layers as a table of pandas.

        Returns:
            A row per layer, those that share a weight once. The index, ``layer``, is the name; the columns are
            ``units``, ``working``, ``redundant`` and ``distinct``, then one per verdict with the number of its units,
            such as ``dead``, and ``groups``, the groups in words.

        Raises:
            ModuleNotFoundError: if pandas is not installed.

        Example:
            >>> from lightning_symmetry import LayerDiagnosis
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 4, 8, dead=(0,))})
            >>> report.to_dataframe().loc["fc", ["units", "working", "dead"]].tolist()
            [4, 3, 1]
        """
        return text.layer_frame(self)

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw a bar per layer: the share of its units with each verdict.

        Layers to warn of come first, then others with groups. At most 40 layers are drawn.

        Args:
            ax: where to draw; None: in a figure of its own.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.

        Example:
            >>> from lightning_symmetry import LayerDiagnosis
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 4, 8, dead=(0,))})
            >>> figure, axes = report.plot()
            >>> axes.get_xlabel()
            'share of the units'
        """
        return plotting.plot_report(self, ax)

    def _repr_html_(self) -> str:
        """Return the report for notebooks: totals, a table of the layers, findings with advice, and heatmaps."""
        return html.report_html(self, self.draw_heatmaps() if self.draw_heatmaps is not None else {})

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the head and the rows of a table to print: one row per layer."""
        return text.layer_table(self)

    def __str__(self) -> str:
        return text.report_text(self)

    def notes(self) -> list[str]:
        """Return explanations of the verdicts in the table."""
        return text.notes(self)

    def totals(self) -> str:
        """Return one line on the whole model."""
        return text.totals(self)


def check_report(report: object, widths: Mapping[str, int]) -> None:
    """Check that an argument is a report of a model whose layers have these widths, by name."""
    if not isinstance(report, SymmetryReport):
        raise TypeError(
            f"Expected argument `report` to be a SymmetryReport, as diagnose(model) gives it, but got {brief(report)}."
        )
    for layer in report.distinct_layers:
        if widths.get(layer.name) != layer.num_units:
            raise ValueError(
                f"Expected argument `report` to be a report of `model` but its layer {layer.name!r} with "
                f"{layer.num_units} units is none of the model's."
            )
