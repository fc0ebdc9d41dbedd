"""Findings as data for other programs: JSON, and table rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lightning_symmetry.verdicts.advice import alike_findings, describe_units, what, why
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport

COLUMNS = ("layer", "units", "verdict", "since step", "broken at step", "what", "why")
"""The columns of :func:`findings_rows`."""

_MAX_ROWS = 200


def findings_json(findings: Sequence[Finding], report: SymmetryReport) -> str:
    """Return all findings of a training so far and its latest report, as JSON.

    Fields may be added; none changes its meaning while ``schema`` is 1: ``schema``, ``status``, ``reasons``, ``step``,
    ``working_units``, ``redundant_units``, ``effective_width_fraction``, ``report``
    (:meth:`SymmetryReport.to_dict`) and ``findings``, a list of objects with ``code``, ``layer``, ``units``,
    ``verdict``, ``cause``, ``value``, ``origin``, ``reason``, ``first_step``, ``last_step``, ``broken_step`` (null
    while it holds), ``modules``, ``mirrored``, ``stop`` (null or an object with ``kind``, ``at`` and ``detail``),
    ``follows`` and ``message``.
    """
    values = {
        "schema": 1,
        "status": report.status,
        "reasons": report.reasons,
        "step": report.step,
        "working_units": report.working_units,
        "redundant_units": report.redundant_units,
        "effective_width_fraction": report.effective_width_fraction,
        "findings": [_to_dict(finding, report) for finding in findings],
        "report": report.to_dict(),
    }
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def findings_rows(findings: Sequence[Finding], report: SymmetryReport) -> list[list[str | int | None]]:
    """Return at most 200 rows of text; findings that differ only in their units share a row."""
    return [
        [
            alike[0].layer,
            describe_units(alike, report),
            str(alike[0].verdict),
            alike[0].first_step,
            alike[0].broken_step,
            f"They {what(alike)}",
            why(alike, report),
        ]
        for alike in alike_findings(findings, report)[:_MAX_ROWS]
    ]


def _to_dict(finding: Finding, report: SymmetryReport) -> dict[str, Any]:
    units = describe_units([finding], report)
    who = units if finding.modules else f"{finding.layer}, {units}"
    return {
        "code": finding.code,
        "layer": finding.layer,
        "units": list(finding.units),
        "verdict": str(finding.verdict),
        "cause": str(finding.cause),
        "value": finding.value,
        "origin": str(finding.origin),
        "reason": str(finding.reason),
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "broken_step": finding.broken_step,
        "modules": list(finding.modules),
        "mirrored": list(finding.mirrored),
        "stop": None if finding.stop is None else finding.stop.to_dict(),
        "follows": finding.follows,
        "message": f"{who}: they {what([finding])} {why([finding], report)}",
    }
