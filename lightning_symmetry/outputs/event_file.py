"""The file of a ``SummaryWriter``: writes events into it whatever happens to the writer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.outputs.records import framed

_PATIENCE_S = 5.0


class EventFile:
    """The latest file of a ``SummaryWriter`` of PyTorch or of tensorboardX.

    A failure, such as a missing folder or a full disk, would end the writer's own thread, and with it everything that
    the user logs. A call of a writer that the user has closed, perhaps during the call, would open a second file. So
    local files are written without the writer, also when it is closed. What is left for a remote file is lost then.

    Args:
        writer: may be used and closed at any time by other threads.
    """

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer
        self._take(writer._get_file_writer())
        framed(b"")  # the tables of its checksums are computed now, not in the first step

    def add(self, values: Sequence[Summary.Value], step: int, walltime: float | None = None) -> None:
        """Write values of any kind as one event; ``walltime`` is in seconds since 1970, by default now.

        Raises:
            OSError: if the file cannot be written. It is unchanged then.
            TimeoutError: if the writer is still busy with earlier events.
        """
        open_file, summary = self._writer.file_writer, Summary(value=values)
        if open_file is not None and open_file is not self._latest:
            self._take(open_file)  # the user has closed the writer, and used it again
        if self._is_of_tensorboardx:
            # tensorboardX accepts the same message only in a class of its own.
            summary = sys.modules["tensorboardX.proto.summary_pb2"].Summary.FromString(summary.SerializeToString())
        if self._direct is not None:
            self._direct.add_summary(summary, step, walltime)
        elif open_file is not None:
            open_file.add_summary(summary, step, walltime)

    def _take(self, file_writer: Any) -> None:
        """Write to another file from now on."""
        direct = None
        events = getattr(file_writer, "event_writer", None)
        is_known = hasattr(events, "_async_writer") or hasattr(events, "_ev_writer")
        if is_known and "://" not in file_writer.get_logdir():
            direct = copy(file_writer)  # keeps the class, whose methods MLflow's autologging and others patch
            direct.event_writer = _DirectWriter(events)
        self._direct: Any = direct  # writes to the file itself; None if that is impossible
        self._is_of_tensorboardx = type(file_writer).__module__.startswith("tensorboardX.")
        self._latest = file_writer


class _DirectWriter:
    """Writes to the file of an ``EventFileWriter`` of TensorBoard or tensorboardX, without its queue and its thread."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def add_event(self, event: Any) -> None:
        """Write an event once the queue is empty; append it to the file if that is closed."""
        record = framed(event.SerializeToString())
        if hasattr(self._events, "_ev_writer"):
            self._add_for_tensorboardx(event, record)
            return
        writer, path = self._events._async_writer, self._events._file_name
        queue = writer._byte_queue
        with writer._lock:  # keeps others from writing and closing
            if writer._closed:
                _append(path, record)
                return
            writer._check_worker_status()
            with queue.all_tasks_done:
                if not queue.all_tasks_done.wait_for(lambda: not queue.unfinished_tasks, _PATIENCE_S):
                    raise TimeoutError(f"earlier events were not written within {_PATIENCE_S:g} s")
            with _undone_on_failure(path):
                writer._writer._writer.write(record)
                writer._writer.flush()

    def _add_for_tensorboardx(self, event: Any, record: bytes) -> None:
        writer = self._events._ev_writer
        try:
            writer.write_event(event)
        except ValueError:  # the file is closed
            with writer._lock:
                _append(writer._file_name, record)
            return
        with suppress(ValueError):  # it was closed meanwhile, and flushed
            writer.flush()


def _append(path: str, data: bytes) -> None:
    """Append to a file that exists."""
    with _undone_on_failure(path), open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(data)


@contextmanager
def _undone_on_failure(path: str) -> Iterator[None]:
    """Cut a file to the length that it had if what is done meanwhile fails: readers stop at an incomplete event."""
    size = os.path.getsize(path) if os.path.exists(path) else 0
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.truncate(path, size)
        raise
