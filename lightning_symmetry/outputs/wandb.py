"""Scalars, pictures and findings for Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lightning_symmetry.outputs.findings import COLUMNS, findings_rows
from lightning_symmetry.outputs.output import NAME, Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps, overview_image
from lightning_symmetry.outputs.scalars import ScalarChoice
from lightning_symmetry.verdicts.report import SymmetryReport


class WandbOutput(Output):
    """Writes to a run of Weights & Biases, one row per check, with the optimizer step as ``symmetry/step``.

    A ``WandbLogger`` counts the rows itself. The user of a raw run also writes rows:

    - If the run counts the rows, each check gets a row of its own. Checks are kept until the user's first row shows who
      counts, or until the end.
    - If the user numbers the rows (``run.log(..., step=epoch)``), the run drops rows with lower numbers, so rows for
      checks would make it drop rows of the user. Each check is then written into the user's open row, where it replaces
      the previous check, and at the end all checks are written as the table ``symmetry/checks``.
    """

    name = "output to Weights & Biases"

    def __init__(self, target: Any, heatmaps: Heatmaps, scalars: Scalars, tag: str = NAME) -> None:
        self._target = target
        self._heatmaps = heatmaps
        self._choice = ScalarChoice(scalars, tag)
        self._tag = tag
        self._rows = None if hasattr(target, "log_metrics") else _SharedRows(target, tag)  # None for a logger

    def write(self, check: Check) -> None:
        # The library is loaded, since there is a run.
        wandb = sys.modules["wandb"]
        scalars = self._choice.of(check)
        media: dict[str, Any] = {}
        if check.changed:
            rows = findings_rows(check.findings, check.report)
            media[f"{self._tag}/findings"] = wandb.Table(columns=list(COLUMNS), data=rows)
            media[f"{self._tag}/overview"] = wandb.Image(overview_image(check.report))
        for layer, picture in due_heatmaps(check, self._heatmaps):
            media[f"{self._tag}/heatmap/{layer}"] = wandb.Image(picture)
        if not scalars and not media:
            return
        if self._rows is None:
            self._target.log_metrics({**scalars, **media}, step=check.report.step)
        else:
            self._rows.add(check.report.step, scalars, media)

    def close(self, report: SymmetryReport) -> None:
        if self._rows is not None:
            self._rows.close()
        run = self._target.experiment if self._rows is None else self._target
        run.summary[f"{self._tag}/status"] = report.status


class _SharedRows:
    """The rows of a raw run, to which the user writes as well."""

    def __init__(self, run: Any, tag: str) -> None:
        self._run = run
        self._tag = tag
        self._axis = f"{tag}/step"
        self._first_step = self._next_step()
        self._waiting: list[dict[str, Any]] = []  # rows, until it is known who counts
        self._is_known = False
        self._scalars: list[dict[str, float]] = []  # of the checks that may not get a row of their own
        self._has_axis = False

    def add(self, step: int, scalars: Mapping[str, float], media: Mapping[str, Any]) -> None:
        if not self._has_axis:
            self._run.define_metric(f"{self._tag}/*", step_metric=self._axis)
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
            self._run.log({f"{self._tag}/checks": table}, commit=False)
        self._scalars = []

    def _write_waiting(self) -> None:
        has_rows = not self._has_numbered_rows()
        while self._waiting:
            self._run.log(self._waiting[0], commit=has_rows)
            del self._waiting[0]
        if has_rows:
            self._scalars = []

    def _next_step(self) -> Any:
        return getattr(self._run, "step", None)

    def _has_numbered_rows(self) -> bool:
        """Return whether the user has numbered a row, which only the library's telemetry records."""
        feature = getattr(getattr(self._run, "_telemetry_obj", None), "feature", None)
        return bool(getattr(feature, "set_step_log", False))
