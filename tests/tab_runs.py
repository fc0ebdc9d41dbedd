"""Difficult runs for the Symmetry tab: events of a long training, malicious names, damaged events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.outputs.output import Changes, Check, Heatmaps
from lightning_symmetry.outputs.tab import SymmetryTab, add_event
from lightning_symmetry.tensorboard_plugin.events import SUMMARY_TAG
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, UnitGroup
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import to_diagnosis
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.verdict import Verdict
from tests.training import Classifier, batches, fill, make_trainer

HOSTILE = "<img src=x onerror=alert(1)>"
BREAKOUT = "</script><script>alert(2)</script><!--"


class TabWriter:
    """Writes invented checks for the Symmetry tab; to new writers, everything from the start."""

    def __init__(self) -> None:
        self._tabs: list[SymmetryTab] = []
        self._folders: list[str] = []
        self._changes = Changes()

    def write(
        self,
        writers: Sequence[SummaryWriter],
        report: SymmetryReport,
        findings: Sequence[Finding],
        looks: Sequence[Look],
        heatmaps: Heatmaps,
    ) -> None:
        folders = [writer.log_dir for writer in writers]
        if folders != self._folders:
            self._folders, self._changes = folders, Changes()
            self._tabs = [SymmetryTab(writer, heatmaps) for writer in writers]
        changed = self._changes.update(report, findings)
        for tab in self._tabs:
            tab.write(Check(report, findings, looks, changed))
            tab.flush()


def write_all(logdir: Path) -> None:
    """Write all checks."""
    write_story(logdir / "story")
    write_hostile(logdir / "hostile")
    with SummaryWriter(str(logdir / "damaged")) as writer:
        add_event(writer, SUMMARY_TAG, b"{damaged", 0)


def write_story(folder: Path) -> None:
    """Write three layers of 16 units: one collapses at step 20, one breaks at step 30, one ends in lockstep."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(8, 16) for name in ("collapsing", "parting", "marching")})
    looks = look(find_layers(model, None, ()).layers)
    layers = {seen.layer.name: to_diagnosis(seen, ()) for seen in looks}
    tab = TabWriter()
    with SummaryWriter(str(folder)) as writer:
        for step in range(0, 60, 10):
            now, findings = dict(layers), list[Finding]()
            if step >= 20:
                now["collapsing"] = replace(now["collapsing"], groups=[_group(range(4, 8), Verdict.LOCKED, 20)])
                findings.append(_finding("collapsing", range(4, 8), Verdict.LOCKED, 20, origin=Origin.COLLAPSE))
            if step < 30:
                now["parting"] = replace(now["parting"], groups=[_group(range(16), Verdict.LOCKED, 0)])
            broken = 30 if step >= 30 else None
            findings.append(_finding("parting", range(16), Verdict.LOCKED, 0, broken=broken))
            if step >= 40:
                now["marching"] = replace(now["marching"], groups=[_group((2, 9), Verdict.LOCKSTEP, 40)])
                findings.append(_finding("marching", (2, 9), Verdict.LOCKSTEP, 40))
            tab.write([writer], SymmetryReport(step, now), findings, looks, "findings")
        add_event(writer, SUMMARY_TAG, b"{damaged", 60)


def write_hostile(folder: Path) -> None:
    """Write a training whose layer names contain markup."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({HOSTILE: nn.Linear(12, 100), BREAKOUT: nn.Linear(100, 4)})

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            for layer in self.layers.values():
                inputs = layer(inputs)
            return inputs

    logger = TensorBoardLogger(folder, name="", version="")
    make_trainer([SymmetryMonitor(every_n_steps=4)], logger=logger).fit(Classifier(fill(Named(), 0.5)), batches())


def _group(units: Sequence[int], verdict: Verdict, since: int) -> UnitGroup:
    return UnitGroup(tuple(units), verdict, Cause.COPIED, None, since)


def _finding(
    layer: str,
    units: Sequence[int],
    verdict: Verdict,
    since: int,
    broken: int | None = None,
    origin: Origin = Origin.START,
) -> Finding:
    return Finding(layer, tuple(units), verdict, Cause.COPIED, None, since, since, broken, origin)
