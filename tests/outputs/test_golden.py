"""The console, the findings in words, and the report for machines, of one network with something of everything."""

from __future__ import annotations

import json
import sys
import warnings

import pytest
import torch
from torch import nn

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.outputs.console import print_summary
from lightning_symmetry.outputs.tensorboard import findings_table
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.report import Finding, SymmetryReport
from tests import golden
from tests.training import Classifier, fill, fit


class Patient(nn.Module):
    """Constant, copied, dead and zero units, a layer without an adapter, and copies of a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.constant = fill(nn.Linear(12, 8), 0.25)
        self.copied = nn.Linear(12, 8)
        self.dead = fill(nn.Linear(12, 4), -0.5)
        self.branches = nn.ModuleList([nn.Linear(12, 4) for _ in range(2)])
        self.branches[1].load_state_dict(self.branches[0].state_dict())
        self.head = fill(nn.Linear(24, 4), 0.0)
        self.kernel = nn.Parameter(torch.randn(4, 4))
        with torch.no_grad():
            self.copied.weight[4:] = self.copied.weight[:4]
            self.copied.bias[4:] = self.copied.bias[:4]
            self.head.weight[:, 1:8] = 0.1  # nothing tells these units of the constant layer apart
            self.head.weight[:, 0] = torch.tensor([0.4, -0.3, 0.2, -0.1])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = [torch.tanh(self.constant(inputs)), torch.tanh(self.copied(inputs)), torch.relu(self.dead(inputs))]
        branches = self.branches[0](inputs) + self.branches[1](inputs)
        outputs: torch.Tensor = self.head(torch.cat([*hidden, branches], dim=1)) @ self.kernel
        return outputs


@pytest.fixture(scope="module")
def diagnosed() -> tuple[SymmetryReport, list[Finding]]:
    monitor = SymmetryMonitor(every_n_steps=1, on_symmetry="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Classifier(Patient()), monitor, max_steps=8)
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
