"""Scalars, pictures and findings for MLflow."""

from __future__ import annotations

import sys
from typing import Any

from typing_extensions import override

from lightning_symmetry.outputs.findings import findings_json
from lightning_symmetry.outputs.output import Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps, file_name, heatmap_image, overview_image
from lightning_symmetry.outputs.scalars import ScalarChoice
from lightning_symmetry.verdicts.report import Finding, SymmetryReport


class MLflowOutput(Output):
    """Writes metrics, and the artifacts ``symmetry/findings.json``, ``overview.png`` and ``heatmaps/*.png``.

    Args:
        target: an ``MLFlowLogger``, or a run as ``mlflow.start_run`` returns it.
        heatmaps: the option of the monitor.
        scalars: the option of the monitor.
    """

    name = "output to MLflow"

    def __init__(self, target: Any, heatmaps: Heatmaps, scalars: Scalars) -> None:
        self._target = target
        self._heatmaps = heatmaps
        self._choice = ScalarChoice(scalars)
        self._findings: list[Finding] = []

    @override
    def write(self, check: Check) -> None:
        client, run_id = self._client_and_run()
        for key, value in self._choice.of(check).items():
            client.log_metric(run_id, key, value, step=check.report.step)
        self._findings = list(check.findings)
        if check.changed:
            self._write_findings(check.report)
            client.log_image(run_id, overview_image(check.report), artifact_file="symmetry/overview.png")
        for layer, seen in due_heatmaps(check, self._heatmaps):
            file = f"symmetry/heatmaps/{file_name(layer.name)}.png"
            client.log_image(run_id, heatmap_image(layer, seen), artifact_file=file)

    @override
    def close(self, report: SymmetryReport) -> None:
        self._write_findings(report)

    def _write_findings(self, report: SymmetryReport) -> None:
        client, run_id = self._client_and_run()
        client.log_text(run_id, findings_json(self._findings, report), "symmetry/findings.json")

    def _client_and_run(self) -> tuple[Any, str]:
        if hasattr(self._target, "log_metrics"):
            return self._target.experiment, self._target.run_id
        # Whoever has made a run has loaded the library; nobody else has to.
        return sys.modules["mlflow"].MlflowClient(), self._target.info.run_id
