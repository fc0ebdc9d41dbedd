"""Findings for other programs: as JSON, as the rows of a table, and as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from lightning_symmetry.verdicts.advice import alike_findings, describe_units, what, why
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport

COLUMNS = ("layer", "units", "verdict", "since step", "broken at step", "what", "why")
"""The columns of :func:`findings_rows`."""

_MAX_ROWS = 200
_FIELDS = (  # fields of a finding that need no conversion for JSON
    *("code", "layer", "units", "verdict", "cause", "value", "origin", "reason", "first_step", "last_step"),
    *("broken_step", "modules", "mirrored"),
)


def findings_json(findings: Sequence[Finding], report: SymmetryReport) -> str:
    """Return all findings of a training so far and its latest report, as JSON.

    The fields are ``schema``, ``status``, ``reasons``, ``step``, ``working_units``, ``redundant_units``,
    ``effective_width_fraction``, ``report`` (:meth:`SymmetryReport.to_dict`) and ``findings``, a list of objects with
    ``code``, ``layer``, ``units``, ``verdict``, ``cause``, ``value``, ``origin``, ``reason``, ``first_step``,
    ``last_step``, ``broken_step`` (null while the finding holds), ``modules``, ``mirrored``, ``stop`` (null or an
    object with ``kind``, ``at`` and ``detail``), ``follows`` and ``message``. Fields may be added; none changes its
    meaning while ``schema`` is 1.
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
    """Return at most 200 rows with :data:`COLUMNS`. Findings that differ only in their units share a row."""
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


def findings_table(findings: Sequence[Finding], report: SymmetryReport) -> str:
    """Return at most 200 findings in Markdown: a table, and what each means."""
    if not findings:
        so_far = "" if not report.redundant_units else " Units that are equal now may yet part by themselves."
        return f"Nothing to warn of: {report.totals()}{so_far}"
    rows = findings_rows(findings, report)
    table = ["| layer | units | verdict | since step |", "| --- | --- | --- | ---: |"]
    notes = []
    for layer, units, verdict, since, broken, effect, reason in rows:
        ended = "" if broken is None else f", broken at step {broken}"
        table.append("| " + " | ".join(map(_escape, (layer, units, f"{verdict}{ended}", since))) + " |")
        # The long text goes below the table, where it does not squeeze the other columns.
        notes.append(f"- **{_escape(layer)}**, {verdict}: {_escape(f'{effect} {reason}')}")
    if num_more := len(alike_findings(findings, report)) - len(rows):
        notes.append(f"\n{num_more} more are in the list `findings`.")
    return "\n".join([*table, "", *notes])


def _escape(value: object) -> str:
    """Return a value as text, with escaped markup."""
    return re.sub(r"[^\w .,:;(){}'+/=-]|_", lambda match: f"&#{ord(match[0])};", str(value))


def _to_dict(finding: Finding, report: SymmetryReport) -> dict[str, Any]:
    units = describe_units([finding], report)
    who = units if finding.modules else f"{finding.layer}, {units}"
    return {
        **{name: getattr(finding, name) for name in _FIELDS},
        "stop": None if finding.stop is None else finding.stop.to_dict(),
        "follows": finding.follows,
        "message": f"{who}: they {what([finding])} {why([finding], report)}",
    }
