"""Scalars, pictures and findings for MLflow."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning_symmetry.outputs.findings import findings_json
from lightning_symmetry.outputs.output import NAME, Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps, file_name, overview_image
from lightning_symmetry.outputs.scalars import ScalarChoice
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport

_MAX_METRICS = 1000  # in one request


class MLflowOutput(Output):
    """Writes metrics, and the artifacts ``symmetry/findings.json``, ``overview.png`` and ``heatmaps/*.png``.

    The target is an ``MLFlowLogger``, or a run that ``mlflow.start_run`` returned. Names of artifacts and metrics begin
    with ``folder``. MLflow refuses special characters in names; they are replaced, as in file names.
    """

    name = "output to MLflow"

    def __init__(self, target: Any, heatmaps: Heatmaps, scalars: Scalars, folder: str = NAME) -> None:
        self._target = target
        self._is_logger = hasattr(target, "log_metrics")
        self._heatmaps = heatmaps
        self._choice = ScalarChoice(scalars, folder)
        self._folder = folder
        self._findings: list[Finding] = []

    def write(self, check: Check) -> None:
        client, run_id = self._client_and_run()
        step, scalars = check.report.step, list(self._choice.of(check).items())
        for start in range(0, len(scalars), _MAX_METRICS):
            part = {_metric_name(tag): value for tag, value in scalars[start : start + _MAX_METRICS]}
            if self._is_logger:
                self._target.log_metrics(part, step=step)  # adds the user's prefix
            else:
                metric, now = sys.modules["mlflow"].entities.Metric, int(time.time() * 1000)
                client.log_batch(run_id, metrics=[metric(name, value, now, step) for name, value in part.items()])
        self._findings = list(check.findings)
        if check.changed:
            self._write_findings(check.report)
            client.log_image(run_id, overview_image(check.report), artifact_file=f"{self._folder}/overview.png")
        for layer, picture in due_heatmaps(check, self._heatmaps):
            client.log_image(run_id, picture, artifact_file=f"{self._folder}/heatmaps/{file_name(layer)}.png")

    def close(self, report: SymmetryReport) -> None:
        self._write_findings(report)

    def _write_findings(self, report: SymmetryReport) -> None:
        client, run_id = self._client_and_run()
        client.log_text(run_id, findings_json(self._findings, report), f"{self._folder}/findings.json")

    def _client_and_run(self) -> tuple[Any, str]:
        if self._is_logger:
            return self._target.experiment, self._target.run_id
        # The library is loaded, because there is a run.
        return sys.modules["mlflow"].MlflowClient(), self._target.info.run_id


def _metric_name(tag: str) -> str:
    """Return a name that MLflow accepts.

    >>> _metric_name("symmetry/redundant_units"), _metric_name("symmetry/effective_width/a/b")
    ('symmetry/redundant_units', 'symmetry/effective_width/a_b-c14cddc0')
    """
    *folders, name = tag.split("/", 2)  # the third part is the name of a layer, which may have slashes
    return "/".join([*folders, file_name(name)])
