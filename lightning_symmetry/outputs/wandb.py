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
    """Writes to a run of Weights & Biases, a row per check, with the optimizer step as ``symmetry/step``.

    Lightning's logger counts the rows by itself. A raw run is shared with its owner, in one of two ways:

    - The owner lets the run count its rows. Then checks may have rows of their own. They are kept back until the
      owner's first row has shown how rows are counted, or until the end.
    - The owner numbers the rows, ``run.log(..., step=epoch)``. A run drops rows whose number is too low, so a row for
      each check would cost rows of the owner's. A check is then written into the owner's open row, in place of the
      check before, and all checks are written at the end as the table ``symmetry/checks``.

    Args:
        target: a ``WandbLogger``, or a run as ``wandb.init`` returns it.
        heatmaps: the option of the monitor.
        scalars: the option of the monitor.
        tag: what the names of all values begin with.
    """

    name = "output to Weights & Biases"

    def __init__(self, target: Any, heatmaps: Heatmaps, scalars: Scalars, tag: str = NAME) -> None:
        self._heatmaps = heatmaps
        self._choice = ScalarChoice(scalars, tag)
        self._tag = tag
        is_logger = hasattr(target, "log_metrics")
        self._rows: _LoggerRows | _SharedRows = _LoggerRows(target) if is_logger else _SharedRows(target, tag)

    def write(self, check: Check) -> None:
        # Whoever has made a run has loaded the library; nobody else has to.
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
        """Nothing: each check is written at once."""


class _SharedRows:
    """The rows of a raw run, to which its owner writes as well."""

    def __init__(self, run: Any, tag: str) -> None:
        self.run = run
        self._tag = tag
        self._axis = f"{tag}/step"
        self._first_step = self._next_step()
        self._waiting: list[dict[str, Any]] = []  # rows, until it is known how the owner's are counted
        self._is_known = False
        self._scalars: list[dict[str, float]] = []  # of the checks that may have no row of their own
        self._has_axis = False

    def add(self, step: int, scalars: Mapping[str, float], media: Mapping[str, Any]) -> None:
        if not self._has_axis:
            self.run.define_metric(f"{self._tag}/*", step_metric=self._axis)
            self._has_axis = True
        self._waiting.append({**scalars, **media, self._axis: step})
        self._scalars.append({self._axis: step, **scalars})
        self._is_known = self._is_known or self._owner_numbers_rows() or self._next_step() != self._first_step
        if not self._is_known:
            return
        try:
            self._write_waiting()
        except Exception:
            del self._waiting[-1], self._scalars[-1]  # this check will be handed over again
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
        has_rows = not self._owner_numbers_rows()
        while self._waiting:
            self.run.log(self._waiting[0], commit=has_rows)
            del self._waiting[0]
        if has_rows:
            self._scalars = []

    def _next_step(self) -> Any:
        return getattr(self.run, "step", None)

    def _owner_numbers_rows(self) -> bool:
        """Return whether the owner has given a row a number; nothing but the library's own record tells."""
        feature = getattr(getattr(self.run, "_telemetry_obj", None), "feature", None)
        return bool(getattr(feature, "set_step_log", False))
