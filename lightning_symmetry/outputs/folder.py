"""A folder with all results: for loops without a logger, and for loggers that store only numbers."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from lightning_symmetry.outputs.findings import findings_json
from lightning_symmetry.outputs.output import Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps, file_name, overview_image, png
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport

_FINDINGS = "findings.json"
# One slash, since `Path` merges two. At least two letters before it, since one is a Windows drive.
_REMOTE = re.compile(r"[A-Za-z][\w+.-]+:/")

logger = logging.getLogger(__name__)


class FolderOutput(Output):
    """Writes findings, pictures and TensorBoard events at checks, and a report at the end.

    The files are ``findings.json``, ``overview.png``, ``heatmaps/*.png``, the events and ``report.html``. None is
    written before the first check. A folder holds one training: if ``path`` has a ``findings.json``, a new training
    writes to the first free folder of ``path_1``, ``path_2``, ..., and logs a warning. A resumed training continues in
    the last of them.

    Args:
        path: the folder, which need not exist.
        heatmaps: which layers get pictures, an option of the monitor.
        scalars: which scalars are written, an option of the monitor.
        only_findings: whether to write nothing before the first finding, and never to continue in an existing folder:
            for a default folder, which many trainings may share.

    Raises:
        ValueError: if the path is a remote address, or below an unknown home directory.
        OSError: if the folder cannot be written.
    """

    is_foreign = False

    def __init__(
        self, path: str | os.PathLike[str], heatmaps: Heatmaps, scalars: Scalars, *, only_findings: bool = False
    ) -> None:
        if is_remote(path):
            raise ValueError(f"Expected a local folder to write to but got {os.fspath(path)!r}.")
        self.name = f"output to {os.fspath(path)}"
        try:
            self._path = Path(path).expanduser().absolute()  # the training may change its working directory
        except RuntimeError as error:
            raise ValueError(f"Expected a folder below a known home directory but got {os.fspath(path)!r}.") from error
        self._is_claimed = False
        self._heatmaps = heatmaps
        self._scalars = scalars
        self._only_findings = only_findings
        self._events: Sequence[Output] = ()  # opened at the first check that is written
        self._findings: Sequence[Finding] = ()
        self._written: object = None  # status and reasons in `findings.json`
        _check_writable(self._path)

    def write(self, check: Check) -> None:
        if self._only_findings and not check.findings:
            return
        try:
            self._write(check)
        except Exception:
            # The folder may have been deleted. The next check makes it again, with all files.
            with suppress(Exception):
                self._close_events()
            raise

    def _write(self, check: Check) -> None:
        is_first = not self._events
        self._findings = check.findings
        outcome = (check.report.status, check.report.reasons)
        if check.changed or is_first or outcome != self._written:
            findings = findings_json(check.findings, check.report).encode()
            if not self._is_claimed:
                self._claim(is_resumed=check.report.step > 0 and not self._only_findings)
            _replace(self._path / _FINDINGS, findings)
            self._written = outcome
        if is_first:
            self._open()
        for output in self._events:
            output.write(check)
        if check.changed or is_first:
            _replace(self._path / "overview.png", png(overview_image(check.report)))
        for layer, picture in due_heatmaps(check, self._heatmaps):
            _replace(self._path / "heatmaps" / f"{file_name(layer)}.png", png(picture))

    def close(self, report: SymmetryReport) -> None:
        if not self._events:
            return
        from lightning_symmetry.tensorboard_plugin.report import build_report

        try:
            for output in self._events:
                output.close(report)
            _replace(self._path / _FINDINGS, findings_json(self._findings, report).encode())
            _replace(self._path / "overview.png", png(overview_image(report)))
        finally:
            self._close_events()
        _replace(self._path / "report.html", build_report(self._path, is_single=True).encode())

    def _claim(self, *, is_resumed: bool) -> None:
        """Choose a folder by creating ``findings.json``: of several concurrent trainings only one succeeds."""
        path = self._path
        for number in count(1):
            following = self._path.with_name(f"{self._path.name}_{number}")
            path.mkdir(parents=True, exist_ok=True)
            try:
                (path / _FINDINGS).touch(exist_ok=False)
                break
            except FileExistsError:
                if is_resumed and not (following / _FINDINGS).exists():
                    break
                path = following
        taken, self._path, self._is_claimed = self._path, path, True
        if path != taken and not is_resumed:
            logger.warning("%s holds another training; this one is written to %s.", taken, path)

    def _close_events(self) -> None:
        if self._events:
            self._events = ()
            self._writer.close()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        from lightning_symmetry.outputs.tab import SymmetryTab
        from lightning_symmetry.outputs.tensorboard import TensorBoardScalars

        self._writer = SummaryWriter(str(self._path))
        self._events = [TensorBoardScalars(self._writer, self._scalars), SymmetryTab(self._writer, self._heatmaps)]


def folder_outputs(
    path: str | os.PathLike[str], heatmaps: Heatmaps, scalars: Scalars, *, only_findings: bool = False
) -> list[Output]:
    """Return a list with a :class:`FolderOutput`; an empty list if neither pictures nor scalars are wanted."""
    if heatmaps == scalars == "none":
        return []
    return [FolderOutput(path, heatmaps, scalars, only_findings=only_findings)]


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is an address such as ``s3://bucket/run``."""
    return _REMOTE.match(os.fspath(path)) is not None


def _check_writable(path: Path) -> None:
    """Check that a path is, or could become, a folder that can be written. Create nothing."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"Expected a folder to write to but {str(existing)!r} is a file (got {str(path)!r}).")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"Expected a folder that can be written but got {str(path)!r}.")


def _replace(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
