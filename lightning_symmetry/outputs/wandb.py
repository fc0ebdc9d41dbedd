"""Scalars, pictures and findings for Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lightning_symmetry.outputs.findings import COLUMNS, findings_rows
from lightning_symmetry.outputs.output import Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps, heatmap_image, overview_image
from lightning_symmetry.outputs.scalars import ScalarChoice
from lightning_symmetry.verdicts.report import SymmetryReport


class WandbOutput(Output):
    """Writes to a run of Weights & Biases.

    A run takes rows in the order of its own steps, and drops those that come too late. So a raw run gets what is to be
    written as part of the row that its owner writes next, with the optimizer step as ``symmetry/step``. Lightning's
    logger counts the steps by itself and gets rows of its own.

    Args:
        target: a ``WandbLogger``, or a run as ``wandb.init`` returns it.
        heatmaps: the option of the monitor.
        scalars: the option of the monitor.
    """

    name = "output to Weights & Biases"

    def __init__(self, target: Any, heatmaps: Heatmaps, scalars: Scalars) -> None:
        self._target = target
        self._is_logger = hasattr(target, "log_metrics")
        self._heatmaps = heatmaps
        self._choice = ScalarChoice(scalars)
        self._has_axis = self._is_logger

    @override
    def write(self, check: Check) -> None:
        # Whoever has made a run has loaded the library; nobody else has to.
        wandb = sys.modules["wandb"]
        values: dict[str, Any] = dict(self._choice.of(check))
        if check.changed:
            rows = findings_rows(check.findings, check.report)
            values["symmetry/findings"] = wandb.Table(columns=list(COLUMNS), data=rows)
            values["symmetry/overview"] = wandb.Image(overview_image(check.report))
        for layer, seen in due_heatmaps(check, self._heatmaps):
            values[f"symmetry/heatmap/{layer.name}"] = wandb.Image(heatmap_image(layer, seen.weights, seen.gradients))
        if values:
            self._log(values, check.report.step)

    @override
    def close(self, report: SymmetryReport) -> None:
        run = self._target.experiment if self._is_logger else self._target
        run.summary["symmetry/status"] = report.status

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if self._is_logger:
            self._target.log_metrics(values, step=step)
            return
        if not self._has_axis:
            self._target.define_metric("symmetry/*", step_metric="symmetry/step")
            self._has_axis = True
        self._target.log({**values, "symmetry/step": step}, commit=False)
