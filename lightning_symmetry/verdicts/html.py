"""A report as a fragment of HTML, for notebooks.

The fragment has no scripts, style sheets, ids or external files. Its text has the colour and font of the page, which
may be light or dark. Everything that colours show is also said in words.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, worst_first
from lightning_symmetry.verdicts.model_diagnosis import ModelDiagnosis, Status
from lightning_symmetry.verdicts.tables import shorten
from lightning_symmetry.verdicts.text import groups_in_words, idle_notes, summarise, totals
from lightning_symmetry.verdicts.verdict import Verdict

_MAX_ROWS = 40
_MAX_LINES = 40  # of each list
_MAX_TIED_NAMES = 2
_MAX_NAME = 120

# Both greys are visible on white and on black.
_LINE = "1px solid rgba(128,128,128,.4)"
_IN_NO_GROUP = "rgba(128,128,128,.3)"
_PALE = "opacity:.75"
# Override every property that the styles of notebooks set for tables.
_CELL = f"padding:3px 10px 3px 0;border:0;border-bottom:{_LINE};vertical-align:top;background:none;white-space:normal"
_TEXT = f"{_CELL};text-align:left"
_NUMBER = f"{_CELL};text-align:right;font-variant-numeric:tabular-nums"

_STATUS_COLOURS: dict[Status, str] = {
    "symmetric": Verdict.LOCKED.traits.colour,
    "healthy": Verdict.BREAKING.traits.colour,
    "inconclusive": Verdict.DUPLICATE.traits.colour,
}


def report_html(report: ModelDiagnosis, heatmaps: Mapping[str, bytes]) -> str:
    """Return a report as a fragment of HTML, the worst layers first; ``heatmaps`` are PNG files by layer name.

    Example:
        >>> html = report_html(ModelDiagnosis(3, {"<b>": LayerDiagnosis("<b>", 4, 8)}), {})
        >>> "&lt;b&gt;" in html, "<b>" in html
        (True, False)
    """
    # Copies with a warning are among the findings.
    copies = [f"{copy.describe()} ({copy.verdict})" for copy in report.copies if not copy.verdict.is_warning]
    parts = [
        _heading(report),
        _table(report),
        _legend(report),
        _list("Findings", messages(report.findings, report)),
        _list("Idle", idle_notes(report)),
        _list("Copies", copies),
        _heatmaps(report, heatmaps),
        _details("Inconclusive", report.reasons, is_open=report.status == "inconclusive"),
        _details("Not inspected", [f"{name}: {reason}" for name, reason in report.skipped.items()]),
    ]
    return f'<div style="line-height:1.45;max-width:72em;text-align:left">{"".join(parts)}</div>'


def _heading(report: ModelDiagnosis) -> str:
    colour = _STATUS_COLOURS[report.status]
    status = (
        f'<strong style="border:2px solid {colour};border-radius:4px;padding:1px 7px;margin-right:8px">'
        f"{report.status}</strong>"
    )
    return f'<div style="margin:4px 0 10px">{status} Step {report.step:,}: {escape(totals(report))}</div>'


def _table(report: ModelDiagnosis) -> str:
    layers = worst_first(report.distinct_layers)
    if not layers:
        return ""
    has_dead = any(layer.dead_units for layer in layers)
    numbers = ["units", "working", *(["dead"] if has_dead else [])]
    styles = {"layer": _TEXT, **dict.fromkeys(numbers, _NUMBER), "share of the units": _TEXT, "groups": _TEXT}
    head = [f'<th scope="col" style="{style};font-weight:600">{name}</th>' for name, style in styles.items()]
    rows = [_row(head), *(_layer_row(layer, has_dead) for layer in layers[:_MAX_ROWS])]
    left_out = layers[_MAX_ROWS:]
    if left_out:
        with_groups = sum(bool(layer.groups) for layer in left_out)
        text = f"and {len(left_out):,} more layers, {f'{with_groups:,}' if with_groups else 'none'} of them with groups"
        rows.append(_row([f'<td colspan="{len(head)}" style="{_TEXT}"><span style="{_PALE}">{text}</span></td>']))
    return (
        '<div style="overflow-x:auto">'
        '<table style="border-collapse:collapse;table-layout:auto;border:0;margin:0;font-size:inherit">'
        f"{''.join(rows)}</table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    return f'<tr style="background:none">{"".join(cells)}</tr>'


def _layer_row(layer: LayerDiagnosis, has_dead: bool) -> str:
    names = [_name(name) for name in (layer.name, *layer.also[:_MAX_TIED_NAMES])]
    more = len(layer.also) - _MAX_TIED_NAMES
    shown = " = ".join([*names, f"{more:,} more"] if more > 0 else names)
    numbers = [layer.num_units, layer.working_units, *([layer.dead_units] if has_dead else [])]
    cells = [
        f'<td style="{_TEXT};overflow-wrap:anywhere;min-width:8em">{shown}</td>',
        *(f'<td style="{_NUMBER}">{number:,}</td>' for number in numbers),
        f'<td style="{_TEXT}">{_bar(layer)}</td>',
        f'<td style="{_TEXT};min-width:16em">{_groups(layer)}</td>',
    ]
    return _row(cells)


def _name(name: str) -> str:
    """Return the name of a layer, with line breaks allowed after dots."""
    text = escape(shorten(name, _MAX_NAME)).replace(".", ".<wbr>")
    return f'<code style="background:none;color:inherit;padding:0;white-space:normal">{text}</code>'


def _bar(layer: LayerDiagnosis) -> str:
    """Return a bar for all units of a layer, with a coloured share per verdict."""
    counts = {verdict: layer.count(verdict) for verdict in Verdict}
    shares = {verdict: number / max(1, layer.num_units) for verdict, number in counts.items() if number}
    segments = [
        f'<div style="flex:0 0 auto;width:{100 * share:.2f}%;min-width:2px;background:{verdict.traits.colour}"></div>'
        for verdict, share in shares.items()
    ]
    parts = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in shares) or "no groups"
    label = f"{parts}, of {layer.num_units:,} units"
    return (
        f'<div role="img" aria-label="{label}" title="{label}" style="display:flex;width:160px;height:12px;'
        f'margin-top:3px;overflow:hidden;border-radius:3px;background:{_IN_NO_GROUP}">{"".join(segments)}</div>'
    )


def _groups(layer: LayerDiagnosis) -> str:
    lines = [f"{_mark(verdict)}{verdict}: {escape(text)}" for verdict, text in groups_in_words(layer).items()]
    # Lines break between sets of units, but not inside a set.
    return re.sub(r"{[^}]*}", lambda match: match[0].replace(" ", "&nbsp;"), "<br>".join(lines))


def _mark(verdict: Verdict) -> str:
    """Return the symbol of a verdict; its shape is distinct even without the colour."""
    return (
        '<svg width="10" height="10" viewBox="0 0 12 12" aria-hidden="true" style="margin-right:5px">'
        f'<path fill="{verdict.traits.colour}" fill-rule="evenodd" d="{verdict.traits.mark}"/></svg>'
    )


def _legend(report: ModelDiagnosis) -> str:
    """Return the meanings of the verdicts in the table."""
    present = {group.verdict for layer in report.distinct_layers for group in layer.groups}
    keys = [
        f'<span style="margin-right:18px">{_mark(verdict)}{verdict}: {escape(verdict.traits.meaning)}</span>'
        for verdict in Verdict
        if verdict in present
    ]
    return f'<div style="margin:6px 0;font-size:90%;{_PALE}">{" ".join(keys)}</div>' if keys else ""


def _list(heading: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    return f'<div style="margin:10px 0 0"><strong>{heading}</strong>{_items(texts)}</div>'


def _details(heading: str, texts: Sequence[str], *, is_open: bool = False) -> str:
    """Return a list that can be collapsed."""
    if not texts:
        return ""
    summary = f'<summary style="cursor:pointer">{heading} ({len(texts):,})</summary>'
    return f'<details{" open" if is_open else ""} style="margin:8px 0 0">{summary}{_items(texts)}</details>'


def _items(texts: Sequence[str]) -> str:
    shown = [*texts[:_MAX_LINES], *([f"and {len(texts) - _MAX_LINES:,} more"] if len(texts) > _MAX_LINES else [])]
    items = "".join(f'<li style="margin:2px 0">{escape(text)}</li>' for text in shown)
    return f'<ul style="margin:2px 0 0;padding-left:1.5em;overflow-wrap:anywhere">{items}</ul>'


def _heatmaps(report: ModelDiagnosis, heatmaps: Mapping[str, bytes]) -> str:
    if not heatmaps:
        return ""
    figures = "".join(_figure(name, png, report.layers.get(name)) for name, png in heatmaps.items())
    note = "Cosine similarity of the units, from the weights and gradients that the model has now."
    return (
        f'<div style="margin:12px 0 0"><strong>Heatmaps</strong> <span style="{_PALE}">{note}</span>'
        f'<div style="display:flex;flex-wrap:wrap;gap:12px;margin-top:6px">{figures}</div></div>'
    )


def _figure(name: str, png: bytes, layer: LayerDiagnosis | None) -> str:
    groups = ("" if layer is None else summarise(layer)) or "no groups"
    alt = f"Heatmap of layer {escape(name)}; {escape(groups)}"
    return (
        '<figure style="margin:0;max-width:100%">'
        f'<figcaption style="max-width:400px;overflow-wrap:anywhere">{_name(name)}</figcaption>'
        f'<img alt="{alt}" src="data:image/png;base64,{b64encode(png).decode()}" '
        'style="max-width:100%;height:auto;border-radius:4px"></figure>'
    )
