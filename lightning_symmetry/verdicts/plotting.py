"""A report as a figure of matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, worst_first
from lightning_symmetry.verdicts.model_diagnosis import ModelDiagnosis
from lightning_symmetry.verdicts.tables import shorten
from lightning_symmetry.verdicts.text import totals
from lightning_symmetry.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LAYERS = 40
_NAME_LENGTHS = range(32, 81, 4)  # characters; the smallest that keeps all names distinct is used
_MAX_LINE = 60  # characters in a line of the title
_IN_NO_GROUP = "#c9ced6"
_INCHES_OF_BARS = 6  # with the numbers beside them
_INCHES_PER_CHARACTER = 0.07
_INCHES_PER_BAR = 0.27
_INCHES_AROUND = 1.7  # title, axis and legend
_INCHES_TO_LEGEND = 0.5


def plot_report(report: ModelDiagnosis, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw a bar per layer; see :meth:`lightning_symmetry.SymmetryReport.plot`."""
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`plot` expects matplotlib to be installed: pip install 'lightning-symmetry[plot]'"
        ) from error
    layers = worst_first(report.distinct_layers)
    shown = layers[:_MAX_LAYERS]
    labels = _labels([layer.name for layer in shown])
    if ax is None:
        width = _INCHES_OF_BARS + _INCHES_PER_CHARACTER * max(map(len, labels), default=0)
        height = _INCHES_AROUND + _INCHES_PER_BAR * max(2, len(shown))
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    _draw_bars(ax, shown, labels)
    lines = textwrap.wrap(f"Step {report.step}, {report.status}: {totals(report)}", _MAX_LINE)
    left_out = len(layers) - len(shown)
    if left_out:
        lines.append(f"{left_out} more layers are not shown.")
    ax.set_title("\n".join(lines), fontsize="medium", loc="left")
    return cast("Figure", ax.figure), ax


def _draw_bars(ax: Axes, layers: Sequence[LayerDiagnosis], labels: Sequence[str]) -> None:
    places = range(len(layers))
    starts = [0.0] * len(layers)
    for label, (colour, counts) in _series(layers).items():
        widths = [count / max(1, layer.num_units) for count, layer in zip(counts, layers, strict=True)]
        ax.barh(places, widths, left=starts, height=0.72, color=colour, label=label)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    ax.set_yticks(places, labels, fontsize="small")
    ax.set_ylim(max(1, len(layers)) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the units")
    ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    for place, layer in zip(places, layers, strict=True):
        ax.text(1.01, place, f"{layer.working_units:,} / {layer.num_units:,}", va="center", fontsize="small")
    if layers:
        ax.annotate("working / units", (1.01, 1), (0, 3), "axes fraction", "offset points", fontsize="small")
        _draw_legend(ax)


def _labels(names: Sequence[str]) -> list[str]:
    """Shorten names as far as they stay distinct."""
    cut = [[shorten(name, length) for name in names] for length in _NAME_LENGTHS]
    labels = next((labels for labels in cut if len(set(labels)) == len(names)), cut[-1])
    return [label.replace("$", r"\$") for label in labels]  # matplotlib reads $ as the start of a formula


def _series(layers: Sequence[LayerDiagnosis]) -> dict[str, tuple[str, list[int]]]:
    """Map the label of each verdict in use to its colour and its number of units in each layer."""
    series = {str(verdict): (verdict.traits.colour, [layer.count(verdict) for layer in layers]) for verdict in Verdict}
    grouped = [sum(counts) for counts in zip(*(counts for _, counts in series.values()), strict=True)]
    rest = [layer.num_units - number for layer, number in zip(layers, grouped, strict=True)]
    series["in no group"] = (_IN_NO_GROUP, rest)
    return {label: (colour, counts) for label, (colour, counts) in series.items() if any(counts)}


def _draw_legend(ax: Axes) -> None:
    """Explain the colours below the axis, at the same distance whatever the height of the figure."""
    from matplotlib.transforms import ScaledTranslation

    below = ax.transAxes + ScaledTranslation(0, -_INCHES_TO_LEGEND, ax.figure.dpi_scale_trans)
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=3, frameon=False, borderaxespad=0)
