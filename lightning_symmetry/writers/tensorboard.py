"""Findings and pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.advice import what, why
from lightning_symmetry.diagnosis import LayerDiagnosis, SymmetryReport, describe_groups
from lightning_symmetry.evidence import Look
from lightning_symmetry.heatmap import draw_layer, draw_overview
from lightning_symmetry.history import Finding

_MAX_ROWS = 200


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
    pixels = draw_layer(layer, seen.layer.weights(), seen.gradients)
    for writer in writers:
        writer.add_image(f"symmetry/heatmap/{layer.name}", pixels, step, dataformats="HWC")


def findings_table(findings: Sequence[Finding], report: SymmetryReport) -> str:
    """All findings as a table in Markdown."""
    if not findings:
        return f"No findings: {report.totals()}"
    lines = [
        "| layer | units | verdict | since step | last seen | broken at step | what it means |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for finding in findings[:_MAX_ROWS]:
        layer = report.layers.get(finding.layer)
        units = describe_groups([finding.units], layer.num_units) if layer else str(len(finding.units))
        broken = "" if finding.broken_step is None else str(finding.broken_step)
        cells = [
            finding.layer,
            units,
            str(finding.verdict),
            str(finding.first_step),
            str(finding.last_step),
            broken,
            f"They {what(finding)} {why(finding)}",
        ]
        lines.append("| " + " | ".join(_escape(cell) for cell in cells) + " |")
    if len(findings) > _MAX_ROWS:
        lines.append(f"\n{len(findings) - _MAX_ROWS} more findings are in `monitor.findings`.")
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Layer names may hold anything; none of it is markup."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"&#{ord(character)};")
    return text.replace("\n", " ")
