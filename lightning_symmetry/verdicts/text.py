"""A report as text and as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_symmetry.brief import printable
from lightning_symmetry.verdicts.advice import idle_texts
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, Reason
from lightning_symmetry.verdicts.model_diagnosis import ModelDiagnosis, describe_work
from lightning_symmetry.verdicts.tables import describe_groups, plain_table
from lightning_symmetry.verdicts.verdict import Verdict

# In healthy networks a smaller share of inputs often has no gradient, such as outputs of units that are always closed.
_IDLE_SHARE = 0.25
_MAX_IDLE = 5

if TYPE_CHECKING:
    from pandas import DataFrame


def report_text(report: ModelDiagnosis) -> str:
    """Return the whole report as text, for a console."""
    head, rows = layer_table(report)
    lines = [f"Symmetry at step {report.step}: {totals(report)}"]
    if rows:
        lines.append(plain_table(head, rows))
    others = notes(report)
    others += [f"copies: {group.describe()} ({group.verdict})" for group in report.copies]
    others += [f"not inspected: {name} ({reason})" for name, reason in report.skipped.items()]
    if report.status == "inconclusive":
        rest = len(report.reasons) - 1
        more = f" (and {rest} more reason{'s' if rest > 1 else ''})" if rest else ""
        others.append(f"inconclusive: {report.reasons[0]}{more}")
    return "\n".join([*lines, *map(printable, others)])


def totals(report: ModelDiagnosis) -> str:
    """Return one line on the whole model."""
    is_partial = report.layers and report.coverage < 1
    seen = f"; {percent_below(report.coverage)} % of the weights were looked at" if is_partial else ""
    return f"{describe_work(report)}{seen}."


def percent_below(share: float) -> int:
    """Return a share below 1 in per cent, rounded down."""
    return min(99, math.floor(100 * share + 1e-9))  # 100 * 0.29 is slightly less than 29


def layer_table(report: ModelDiagnosis) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the head and the rows of a table to print: one row per layer."""
    rows: list[tuple[str, ...]] = []
    for layer in report.distinct_layers:
        numbers = map(str, (layer.num_units, layer.working_units, layer.dead_units))
        rows.append((" = ".join([layer.name, *layer.also]), *numbers, summarise(layer)))
    return ("layer", "units", "working", "dead", "groups"), rows


def layer_frame(report: ModelDiagnosis) -> DataFrame:
    """Return the layers as a table of pandas."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`to_dataframe` expects pandas to be installed: pip install 'lightning-symmetry[plot]'"
        ) from error
    layers = report.distinct_layers
    columns: dict[str, list[int] | list[str]] = {
        "units": [layer.num_units for layer in layers],
        "working": [layer.working_units for layer in layers],
        "redundant": [layer.redundant_units for layer in layers],
        "distinct": [layer.effective_width for layer in layers],
        **{str(verdict): [layer.count(verdict) for layer in layers] for verdict in Verdict},
        "groups": [summarise(layer) for layer in layers],
    }
    return pandas.DataFrame(columns, index=pandas.Index([layer.name for layer in layers], name="layer"))


def notes(report: ModelDiagnosis) -> list[str]:
    """Return explanations of the verdicts in the table."""
    present = {group.verdict for layer in report.distinct_layers for group in layer.groups}
    lines = [f"{verdict}: {verdict.traits.note}" for verdict in Verdict if verdict in present and verdict.traits.note]
    lines += idle_notes(report)
    pruned = sum(
        len(group.units) for layer in report.distinct_layers for group in layer.groups if group.reason is Reason.PRUNED
    )
    if pruned:
        lines.append(
            f"{pruned} rows of zeros without gradients, in layers whose other rows are not zero: pruned or padded"
        )
    for name, number in report.idle_inputs.items():
        if name in report.layers and number >= _IDLE_SHARE * report.layers[name].fan_in:
            lines.append(
                f"{name}: {number} of the {report.layers[name].fan_in} weights of each unit have had no gradient, as "
                "those of inputs that are always zero"
            )
    if any(layer.slices_of and layer.groups for layer in report.distinct_layers):
        lines.append(
            "[dim 0]: slices of a parameter along its dimension 0, which were compared because no adapter knows "
            "the module; declare its units with `register_layer`"
        )
    return lines


def idle_notes(report: ModelDiagnosis) -> list[str]:
    """Return why idle units have no gradient and where it stops, a line per reason."""
    texts = idle_texts(report.distinct_layers)
    rest = len(texts) - _MAX_IDLE
    return [*texts[:_MAX_IDLE], *([f"and {rest} more reasons of idle units"] if rest > 0 else [])]


def summarise(layer: LayerDiagnosis) -> str:
    """Describe the groups of a layer in a line, such as ``locked: 4 of 64 units in 2 groups, {0, 32}, {1, 33}``."""
    return "; ".join(f"{verdict}: {text}" for verdict, text in groups_in_words(layer).items())


def groups_in_words(layer: LayerDiagnosis) -> dict[Verdict, str]:
    """Describe the groups of a layer in a few words, by verdict, the most serious verdict first.

    Example:
        >>> from lightning_symmetry.verdicts.diagnoses import Cause, UnitGroup
        >>> pair = UnitGroup((0, 1), Verdict.LOCKED, Cause.COPIED)
        >>> groups_in_words(LayerDiagnosis("fc", 4, 8, groups=[pair]))[Verdict.LOCKED]
        '2 of 4 units, {0, 1}'
    """
    units = {verdict: [group.units for group in layer.groups if group.verdict is verdict] for verdict in Verdict}
    return {verdict: describe_groups(groups, layer.num_units) for verdict, groups in units.items() if groups}
