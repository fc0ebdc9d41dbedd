"""The console, the findings in words, and the JSON report of one network with every kind of finding."""

from __future__ import annotations

import json
import sys

import pytest

from lightning_symmetry.outputs.console import print_summary
from lightning_symmetry.outputs.findings import findings_table
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport
from tests import golden
from tests.patient import monitored


@pytest.fixture(scope="module")
def diagnosed() -> tuple[SymmetryReport, list[Finding]]:
    monitor = monitored()
    assert monitor.report is not None
    return monitor.report, monitor.findings


def test_console(
    diagnosed: tuple[SymmetryReport, list[Finding]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    print_summary(diagnosed[0])
    golden.check("console.txt", capsys.readouterr().out)


def test_messages(diagnosed: tuple[SymmetryReport, list[Finding]]) -> None:
    report, findings = diagnosed
    golden.check("messages.txt", "".join(f"{text}\n" for text in messages(findings, report)))


def test_findings_in_markdown(diagnosed: tuple[SymmetryReport, list[Finding]]) -> None:
    report, findings = diagnosed
    golden.check("findings.md", findings_table(findings, report) + "\n")


def test_report_as_text(diagnosed: tuple[SymmetryReport, list[Finding]]) -> None:
    golden.check("report.txt", f"{diagnosed[0]}\n")


def test_report_as_json(diagnosed: tuple[SymmetryReport, list[Finding]]) -> None:
    golden.check("report.json", json.dumps(diagnosed[0].to_dict(), indent=1) + "\n")
