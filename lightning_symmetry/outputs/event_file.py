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
    local files are written without the writer, also when it is closed.

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
            OSError: if the file cannot be written; one of PyTorch is unchanged then. Or if it is remote and closed.
            TimeoutError: if PyTorch's writer is still busy with earlier events.
        """
        open_file, summary = self._open_file, Summary(value=values)
        if open_file is not None and open_file is not self._latest:
            self._take(open_file)  # the user has closed the writer, and used it again
        if self._is_of_tensorboardx:
            # tensorboardX accepts the same message only in a class of its own.
            summary = sys.modules["tensorboardX.proto.summary_pb2"].Summary.FromString(summary.SerializeToString())
        if self._direct is not None:
            file_writer = copy(self._latest)  # keeps the class, whose methods MLflow's autologging and others patch
            file_writer.event_writer = self._direct
        elif open_file is not None:
            file_writer = open_file
        else:
            raise OSError(f"the SummaryWriter of {self._latest.get_logdir()} is closed")
        file_writer.add_summary(summary, step, walltime)

    def flush(self) -> None:
        """Upload what was added to a remote file; local ones show it at once."""
        open_file = self._open_file
        if self._direct is not None or open_file is None:
            return
        try:
            open_file.flush()
        except OSError:
            if self._open_file is open_file:
                raise  # else the user has closed it meanwhile, which uploads it

    @property
    def is_gone(self) -> bool:
        """Whether the user has closed the writer, and nothing can be appended: the file is remote, or was removed."""
        return self._open_file is None and (self._direct is None or not os.path.exists(self._direct.path))

    @property
    def _open_file(self) -> Any:
        return getattr(self._writer, "file_writer", self._latest)  # PyTorch and tensorboardX have the attribute

    def _take(self, file_writer: Any) -> None:
        """Write to another file from now on."""
        events = getattr(file_writer, "event_writer", None)
        is_known = hasattr(events, "_async_writer") or hasattr(events, "_ev_writer")
        is_local = "://" not in file_writer.get_logdir()
        # What writes to the file itself; None if that is impossible.
        self._direct = _DirectWriter(events) if is_known and is_local else None
        self._is_of_tensorboardx = type(file_writer).__module__.startswith("tensorboardX.")
        self._latest = file_writer


class _DirectWriter:
    """Writes to the file of an ``EventFileWriter`` of TensorBoard or tensorboardX, without its queue and its thread."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self.path = str(events._ev_writer._file_name if hasattr(events, "_ev_writer") else events._file_name)

    def add_event(self, event: Any) -> None:
        """Write an event once the queue is empty; append it to the file if that is closed."""
        if hasattr(self._events, "_ev_writer"):
            self._add_for_tensorboardx(event)
            return
        record = framed(event.SerializeToString())
        writer, path = self._events._async_writer, self.path
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

    def _add_for_tensorboardx(self, event: Any) -> None:
        writer = self._events._ev_writer
        try:
            writer.write_event(event)
        except ValueError:  # the file is closed
            with writer._lock:
                _append(self.path, framed(event.SerializeToString()))
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
