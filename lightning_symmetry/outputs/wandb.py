"""Scalars, pictures and findings for Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lightning_symmetry.outputs.findings import COLUMNS, findings_rows
from lightning_symmetry.outputs.output import NAME, Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps, heatmap_image, overview_image
from lightning_symmetry.outputs.scalars import ScalarChoice
from lightning_symmetry.verdicts.report import SymmetryReport


class WandbOutput(Output):
    """Writes to a run of Weights & Biases, one row per check, with the optimizer step as ``symmetry/step``.

    A ``WandbLogger`` counts rows by itself. A raw run also has rows of its user:

    - If the run counts the rows, every check gets its own row. Checks wait until the user's first row shows how rows
      are counted, or until the end.
    - If the user numbers the rows (``run.log(..., step=epoch)``), the run drops rows with lower numbers, so rows for
      checks would make it drop rows of the user. Each check is then written into the user's open row, where it replaces
      the previous check, and at the end all checks are written as the table ``symmetry/checks``.
    """

    name = "output to Weights & Biases"

    def __init__(self, target: Any, heatmaps: Heatmaps, scalars: Scalars, tag: str = NAME) -> None:
        self._heatmaps = heatmaps
        self._choice = ScalarChoice(scalars, tag)
        self._tag = tag
        is_logger = hasattr(target, "log_metrics")
        self._rows: _LoggerRows | _SharedRows = _LoggerRows(target) if is_logger else _SharedRows(target, tag)

    def write(self, check: Check) -> None:
        # The library is loaded, because there is a run.
        wandb = sys.modules["wandb"]
        scalars = self._choice.of(check)
        media: dict[str, Any] = {}
        if check.changed:
            rows = findings_rows(check.findings, check.report)
            media[f"{self._tag}/findings"] = wandb.Table(columns=list(COLUMNS), data=rows)
            media[f"{self._tag}/overview"] = wandb.Image(overview_image(check.report))
        for layer, seen in due_heatmaps(check, self._heatmaps):
            media[f"{self._tag}/heatmap/{layer.name}"] = wandb.Image(heatmap_image(layer, seen.weights, seen.gradients))
        if scalars or media:
            self._rows.add(check.report.step, scalars, media)

    def close(self, report: SymmetryReport) -> None:
        self._rows.close()
        self._rows.run.summary[f"{self._tag}/status"] = report.status


class _LoggerRows:
    """The rows of a ``WandbLogger``."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def run(self) -> Any:
        return self._logger.experiment

    def add(self, step: int, scalars: Mapping[str, float], media: Mapping[str, Any]) -> None:
        self._logger.log_metrics({**scalars, **media}, step=step)

    def close(self) -> None:
        """Do nothing: each check is written at once."""


class _SharedRows:
    """The rows of a raw run, to which the user writes as well."""

    def __init__(self, run: Any, tag: str) -> None:
        self.run = run
        self._tag = tag
        self._axis = f"{tag}/step"
        self._first_step = self._next_step()
        self._waiting: list[dict[str, Any]] = []  # rows, until it is known how the user's rows are counted
        self._is_known = False
        self._scalars: list[dict[str, float]] = []  # of the checks that may get no row of their own
        self._has_axis = False

    def add(self, step: int, scalars: Mapping[str, float], media: Mapping[str, Any]) -> None:
        if not self._has_axis:
            self.run.define_metric(f"{self._tag}/*", step_metric=self._axis)
            self._has_axis = True
        self._waiting.append({**scalars, **media, self._axis: step})
        self._scalars.append({self._axis: step, **scalars})
        self._is_known = self._is_known or self._has_numbered_rows() or self._next_step() != self._first_step
        if not self._is_known:
            return
        try:
            self._write_waiting()
        except Exception:
            del self._waiting[-1], self._scalars[-1]  # this check will be written again
            raise

    def close(self) -> None:
        self._write_waiting()
        if self._scalars:
            columns = list(dict.fromkeys(tag for scalars in self._scalars for tag in scalars))
            rows = [[scalars.get(tag) for tag in columns] for scalars in self._scalars]
            table = sys.modules["wandb"].Table(columns=columns, data=rows)
            self.run.log({f"{self._tag}/checks": table}, commit=False)
        self._scalars = []

    def _write_waiting(self) -> None:
        has_rows = not self._has_numbered_rows()
        while self._waiting:
            self.run.log(self._waiting[0], commit=has_rows)
            del self._waiting[0]
        if has_rows:
            self._scalars = []

    def _next_step(self) -> Any:
        return getattr(self.run, "step", None)

    def _has_numbered_rows(self) -> bool:
        """Return whether the user has numbered a row; only the library's telemetry knows."""
        feature = getattr(getattr(self.run, "_telemetry_obj", None), "feature", None)
        return bool(getattr(feature, "set_step_log", False))
