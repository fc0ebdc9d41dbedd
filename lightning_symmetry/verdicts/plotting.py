"""A report as a figure of matplotlib.

Nothing here imports torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_symmetry.verdicts.report import LayerDiagnosis, SymmetryReport, shorten, worst_first
from lightning_symmetry.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LAYERS = 40
_MAX_NAME = 40
_DISTINCT = "#c9ced6"
_INCHES_PER_BAR = 0.27
_INCHES_AROUND = 1.7  # title, axis and legend


def plot_report(report: SymmetryReport, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw a bar per layer: the share of its units that each verdict was given to.

    Args:
        report: the report.
        ax: where to draw; None: in a figure of its own.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`plot` expects matplotlib to be installed: pip install 'lightning-symmetry[plot]'"
        ) from error
    layers = worst_first(report.distinct_layers)
    shown = layers[:_MAX_LAYERS]
    if ax is None:
        height = _INCHES_AROUND + _INCHES_PER_BAR * max(2, len(shown))
        _, ax = plt.subplots(figsize=(8, height), layout="constrained")
    figure = ax.get_figure(root=True)
    assert figure is not None
    _draw_bars(ax, shown)
    lines = textwrap.wrap(f"Step {report.step}, {report.status}: {report.totals()}", 80)
    left_out = len(layers) - len(shown)
    if left_out:
        lines.append(f"{left_out} more layers are not shown")
    ax.set_title("\n".join(lines), fontsize="medium", loc="left")
    return figure, ax


def _draw_bars(ax: Axes, layers: Sequence[LayerDiagnosis]) -> None:
    places = range(len(layers))
    starts = [0.0] * len(layers)
    series = {str(verdict): (verdict.traits.colour, [layer.count(verdict) for layer in layers]) for verdict in Verdict}
    grouped = [sum(counts[i] for _, counts in series.values()) for i in places]
    series["in no group"] = (_DISTINCT, [layer.num_units - grouped[i] for i, layer in enumerate(layers)])
    for label, (colour, counts) in series.items():
        if any(counts):
            widths = [count / max(1, layer.num_units) for count, layer in zip(counts, layers, strict=True)]
            ax.barh(places, widths, left=starts, height=0.72, color=colour, label=label)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, layer in zip(places, layers, strict=True):
        ax.text(1.01, place, f"{layer.effective_width:,} / {layer.num_units:,}", va="center", fontsize="small")
    # A name may hold what matplotlib would take for a formula.
    names = [shorten(layer.name, _MAX_NAME).replace("$", r"\$") for layer in layers]
    ax.set_yticks(places, names, fontsize="small")
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    ax.set_xlabel("share of the units")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    if layers:
        ax.text(1.01, -0.75, "distinct / units", va="bottom", fontsize="small", color="#6b7280")
        ax.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=6)
