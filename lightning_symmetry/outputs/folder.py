"""A folder with everything: for loops without a logger, and for loggers that keep nothing but numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from typing_extensions import override

from lightning_symmetry.outputs.findings import findings_json
from lightning_symmetry.outputs.output import Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps, file_name, heatmap_image, overview_image, png
from lightning_symmetry.verdicts.report import Finding, SymmetryReport


class FolderOutput(Output):
    """Writes findings, pictures, TensorBoard events and, at the end, a report.

    These are ``findings.json``, ``overview.png``, ``heatmaps/*.png`` and ``report.html``; nothing is written before the
    first check.

    Args:
        path: the folder, which need not exist.
        heatmaps: the option of the monitor.
        scalars: the option of the monitor.
        only_findings: whether nothing is written before something is found.

    Raises:
        OSError: if the folder cannot be written.
    """

    is_foreign = False

    def __init__(self, path: Path, heatmaps: Heatmaps, scalars: Scalars, *, only_findings: bool = False) -> None:
        self.name = f"output to {path}"
        self._path = path
        self._heatmaps = heatmaps
        self._scalars = scalars
        self._only_findings = only_findings
        self._events: Sequence[Output] = ()  # open once the first check is written
        self._findings: Sequence[Finding] = ()
        self._told: object = None  # what `findings.json` says of the report
        _check_writable(path)

    @override
    def write(self, check: Check) -> None:
        if self._only_findings and not check.findings and not self._findings_file.exists():
            return  # but what an earlier training has left there must not be taken for what is found in this one
        try:
            self._write(check)
        except Exception:
            # A writer of events that has failed once never writes again: the next check opens another one.
            with suppress(Exception):
                self._close_events()
            raise

    def _write(self, check: Check) -> None:
        is_first = not self._events
        if is_first:
            self._open()
        for output in self._events:
            output.write(check)
        self._writer.flush()  # or it would fail at some later check, with this one among what is lost
        self._findings = check.findings
        told = (check.report.status, check.report.reasons)
        if check.changed or is_first or told != self._told:
            _replace(self._findings_file, findings_json(check.findings, check.report).encode())
            self._told = told
        if check.changed or is_first:
            _replace(self._path / "overview.png", png(overview_image(check.report)))
        for layer, seen in due_heatmaps(check, self._heatmaps):
            _replace(
                self._path / "heatmaps" / f"{file_name(layer.name)}.png",
                png(heatmap_image(layer, seen.weights, seen.gradients)),
            )

    @override
    def close(self, report: SymmetryReport) -> None:
        if not self._events:
            return
        from lightning_symmetry.tensorboard_plugin.report import build_report

        try:
            for output in self._events:
                output.close(report)
            _replace(self._findings_file, findings_json(self._findings, report).encode())
            _replace(self._path / "overview.png", png(overview_image(report)))
        finally:
            self._close_events()
        _replace(self._path / "report.html", build_report(self._path).encode())

    @property
    def _findings_file(self) -> Path:
        return self._path / "findings.json"

    def _close_events(self) -> None:
        if self._events:
            self._events = ()
            self._writer.close()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        from lightning_symmetry.outputs.tab import SymmetryTab
        from lightning_symmetry.outputs.tensorboard import TensorBoardScalars

        self._path.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(self._path))
        self._events = [TensorBoardScalars(self._writer, self._scalars), SymmetryTab(self._writer, self._heatmaps)]


def folder_outputs(path: Path, heatmaps: Heatmaps, scalars: Scalars, *, only_findings: bool = False) -> list[Output]:
    """The outputs that write into a folder: none if neither pictures nor scalars are wanted.

    Args:
        path: the folder, which need not exist.
        heatmaps: the option of the monitor.
        scalars: the option of the monitor.
        only_findings: whether nothing is written before something is found.

    Raises:
        OSError: if the folder cannot be written.
    """
    if heatmaps == scalars == "none":
        return []
    return [FolderOutput(path, heatmaps, scalars, only_findings=only_findings)]


def _check_writable(path: Path) -> None:
    """Refuse a path at which no folder can be made or written; nothing is made yet."""
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"Expected a folder to write to but {str(existing)!r} is a file (got {str(path)!r}).")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"Expected a folder that can be written but got {str(path)!r}.")


def _replace(path: Path, data: bytes) -> None:
    """Write a file in one go: whoever reads it meanwhile sees all of the old one or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
