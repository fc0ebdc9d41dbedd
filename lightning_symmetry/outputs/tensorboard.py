"""Scalars, findings and pictures for TensorBoard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import ParamSpec

import numpy as np
from PIL.Image import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import image, text

from lightning_symmetry.outputs.event_file import EventFile
from lightning_symmetry.outputs.findings import findings_table
from lightning_symmetry.outputs.heatmap import draw_overview
from lightning_symmetry.outputs.output import Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.pictures import due_heatmaps
from lightning_symmetry.outputs.scalars import ScalarChoice
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport

MAX_SPACING = 1 << 10
"""The longest gap between two repetitions that are written, in checks."""
_MAX_UNTHINNED = 64  # repetitions in a row that are all written
_HEAD_START_S = 0.05  # longer than most checks

P = ParamSpec("P")


class Thinning:
    """Decides which repetitions of a check are written, so that a long quiet training takes few events.

    Of repetitions in a row, the first 64 are written, every second up to 128, every fourth up to 256, and so on, and at
    least every 1024th. No gap in a flat curve is longer than 1/32 of its length, so it looks complete.

    Example:
        >>> thinning = Thinning()
        >>> _ = thinning.is_due(is_repetition=False)
        >>> [number for number in range(1, 300) if thinning.is_due(is_repetition=True)][60:70]
        [61, 62, 63, 64, 66, 68, 70, 72, 74, 76]
    """

    def __init__(self) -> None:
        self._num_repetitions = 0

    def is_due(self, *, is_repetition: bool) -> bool:
        """Count the next check. Return whether it is written."""
        self._num_repetitions = self._num_repetitions + 1 if is_repetition else 0
        spacing = 1 << max(0, self._num_repetitions.bit_length() - _MAX_UNTHINNED.bit_length() + 1)
        return self._num_repetitions % min(spacing, MAX_SPACING) == 0


class Background:
    """Runs tasks one after the other on a thread of its own, while the training goes on.

    The thread starts when this object is made: amid a training, whose threads keep all cores busy, starting one takes
    milliseconds. The process ends only after the last task. A task must not read what the training changes, such as
    weights.

    Example:
        >>> background, drawn = Background(), []
        >>> background.run(drawn.append, "picture")
        >>> background.wait()
        >>> drawn
        ['picture']
    """

    def __init__(self) -> None:
        self._tasks: list[Future[None]] = []  # whose results have not been read
        self._is_waited_for = Event()
        self._executor: ThreadPoolExecutor | None = None
        self._process = -1
        self._start()

    def _start(self) -> ThreadPoolExecutor:
        """Return the executor; start its thread if there is none in this process, which may be a fork."""
        if self._executor is None or self._process != os.getpid():
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="symmetry")
            self._executor.submit(int)
            self._process = os.getpid()
        return self._executor

    def run(self, task: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Enqueue a task."""
        executor = self._start()
        # A thread with work to do keeps the GIL for 5 ms at a time, so it begins when the check of the caller is over.
        self._is_waited_for.clear()
        executor.submit(self._is_waited_for.wait, _HEAD_START_S)
        self._tasks.append(executor.submit(task, *args, **kwargs))

    @property
    def is_busy(self) -> bool:
        """Whether a task is running or waiting."""
        return not all(task.done() for task in self._tasks)

    def raise_failure(self) -> None:
        """Raise the exception of the first task that has failed since the last call, if any has."""
        done = [task for task in self._tasks if task.done()]
        self._tasks = [task for task in self._tasks if task not in done]
        for task in done:
            task.result()

    def wait(self) -> None:
        """Wait for all tasks and end the thread; then do as :meth:`raise_failure`."""
        executor, self._executor = self._executor, None
        self._is_waited_for.set()
        if executor is not None:
            executor.shutdown()
        self.raise_failure()


class TensorBoardScalars(Output):
    """Writes the scalars of checks; of many checks in a row with the same scalars, only some."""

    name = "scalars in TensorBoard"
    is_foreign = False

    def __init__(self, writer: SummaryWriter, scalars: Scalars) -> None:
        self._file = EventFile(writer)
        self._choice = ScalarChoice(scalars)
        self._thinning = Thinning()
        self._latest: tuple[int, dict[str, float]] = -1, {}  # the step of the latest check, and its scalars
        self._skipped_at: float | None = None  # the time of the latest check, if it was not written

    def write(self, check: Check) -> None:
        step, scalars = check.report.step, self._choice.of(check)
        latest_step, latest = self._latest
        is_repetition = scalars == latest and step > latest_step
        if self._thinning.is_due(is_repetition=is_repetition):
            if not is_repetition:
                self._write_skipped()  # so that the curve stays flat up to the change
            self._write(scalars, step)
            self._skipped_at = None
        else:
            self._skipped_at = time.time()
        self._latest = step, scalars

    def close(self, report: SymmetryReport) -> None:
        if not self._file.is_gone:
            self._write_skipped()

    def _write_skipped(self) -> None:
        if self._skipped_at is not None:
            step, scalars = self._latest
            self._write(scalars, step, self._skipped_at)
            self._skipped_at = None

    def _write(self, scalars: Mapping[str, float], step: int, walltime: float | None = None) -> None:
        # One event contains all scalars: an event for each would cost ten times as much.
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        if values:
            self._file.add(values, step, walltime)


class TensorBoardPictures(Output):
    """Writes a table of findings, a picture of the model, and heatmaps of layers, whenever they have changed.

    The table and the picture of the model need no weights, so they are drawn in the background.
    """

    name = "findings and pictures in TensorBoard"
    is_foreign = False

    def __init__(self, writer: SummaryWriter, heatmaps: Heatmaps) -> None:
        self._file = EventFile(writer)
        self._heatmaps = heatmaps
        self._background = Background()
        self._has_failed = False
        self._findings: Sequence[Finding] = ()  # at the latest check

    def write(self, check: Check) -> None:
        self._findings = check.findings
        self._note_failure(self._background.raise_failure)
        if self._has_failed:
            self._write_again(check.report)
        elif check.changed:
            self._background.run(write_findings, self._file, check.report, check.findings)
        for layer, picture in due_heatmaps(check, self._heatmaps):
            write_heatmap(self._file, layer, picture, check.report.step)

    def close(self, report: SymmetryReport) -> None:
        self._note_failure(self._background.wait)
        if self._has_failed:
            self._write_again(report)

    def _note_failure(self, raise_failure: Callable[[], None]) -> None:
        try:
            raise_failure()
        except Exception:
            self._has_failed = True

    def _write_again(self, report: SymmetryReport) -> None:
        """Write in the foreground what failed in the background, so that the caller gets the exception."""
        write_findings(self._file, report, self._findings)
        self._has_failed = False


def add_summary(writer: SummaryWriter, values: Sequence[Summary.Value], step: int) -> None:
    """Write values of any kind as one event into the file of a writer; see :meth:`EventFile.add`."""
    EventFile(writer).add(values, step)


def write_findings(file: EventFile, report: SymmetryReport, findings: Sequence[Finding]) -> None:
    """Write the table under ``symmetry/findings`` and the picture of the model under ``symmetry/overview``."""
    table, pixels = findings_table(findings, report), draw_overview(report)
    if file.is_gone:
        return
    file.add(text("symmetry/findings", table).value, report.step)
    file.add(image("symmetry/overview", pixels, dataformats="HWC").value, report.step)
    file.flush()


def write_heatmap(file: EventFile, layer: str, picture: Image, step: int) -> None:
    """Write the picture of a layer under ``symmetry/heatmap/<layer>``."""
    file.add(image(f"symmetry/heatmap/{layer}", np.asarray(picture), dataformats="HWC").value, step)
