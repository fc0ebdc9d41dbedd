"""Findings and pictures for TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.outputs.heatmap import draw_layer, draw_overview
from lightning_symmetry.verdicts.advice import alike_findings, describe_units, what, why
from lightning_symmetry.verdicts.evidence import Look
from lightning_symmetry.verdicts.report import Finding, LayerDiagnosis, SymmetryReport

_MAX_ROWS = 200


def write_scalars(writers: Iterable[SummaryWriter], scalars: Mapping[str, float], step: int) -> None:
    """Write all scalars as one event: an event each costs ten times as much."""
    add_summary(writers, [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()], step)


def add_summary(writers: Iterable[SummaryWriter], values: Sequence[Summary.Value], step: int) -> None:
    """Write values of any kind as one event."""
    summary = Summary(value=values)
    for writer in writers:
        writer._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]


def write_findings(
    writers: Iterable[SummaryWriter], findings: Sequence[Finding], report: SymmetryReport, step: int
) -> None:
    """Write the table under ``symmetry/findings`` and the picture of the model under ``symmetry/overview``."""
    text, overview = findings_table(findings, report), draw_overview(report)
    for writer in writers:
        writer.add_text("symmetry/findings", text, step)
        writer.add_image("symmetry/overview", overview, step, dataformats="HWC")
        writer.flush()  # so that news shows up at TensorBoard's next reload


def write_heatmap(writers: Iterable[SummaryWriter], layer: LayerDiagnosis, seen: Look, step: int) -> None:
    """Write the picture of a layer under ``symmetry/heatmap/<layer>``."""
    pixels = draw_layer(layer, seen.weights, seen.gradients)
    for writer in writers:
        writer.add_image(f"symmetry/heatmap/{layer.name}", pixels, step, dataformats="HWC")


def findings_table(findings: Sequence[Finding], report: SymmetryReport) -> str:
    """All findings in Markdown: a table, and what each means."""
    if not findings:
        so_far = "" if not report.redundant_units else " Units that are equal now may yet part by themselves."
        return f"Nothing to warn of: {report.totals()}{so_far}"
    rows = alike_findings(findings, report)
    table = ["| layer | units | verdict | since step |", "| --- | --- | --- | ---: |"]
    notes = []
    for alike in rows[:_MAX_ROWS]:
        first = alike[0]
        ended = "" if first.broken_step is None else f", broken at step {first.broken_step}"
        cells = [first.layer, describe_units(alike, report), f"{first.verdict}{ended}", str(first.first_step)]
        table.append("| " + " | ".join(map(_escape, cells)) + " |")
        # The long text stands below: it would squeeze the other columns.
        note = f"They {what(first, len(alike))} {why(first)}"
        notes.append(f"- **{_escape(first.layer)}**, {first.verdict}: {_escape(note)}")
    if len(rows) > _MAX_ROWS:
        notes.append(f"\n{len(rows) - _MAX_ROWS} more are in `monitor.findings`.")
    return "\n".join([*table, "", *notes])


def _escape(text: str) -> str:
    """Layer names may hold anything; none of it is markup."""
    return re.sub(r"[^\w .,:;(){}'+/=-]|_", lambda match: f"&#{ord(match[0])};", text)
