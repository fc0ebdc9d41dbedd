"""Work that the training need not wait for: drawing pictures and turning them into files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

P = ParamSpec("P")


class Background:
    """Does one task after the other on a thread of its own, which the end of the process waits for.

    A task must not touch what the training changes, such as weights.

    Example:
        >>> background, drawn = Background(), []
        >>> background.run(drawn.append, "picture")
        >>> background.wait()
        >>> drawn
        ['picture']
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._tasks: list[Future[None]] = []  # that are not known to have been done

    def run(self, task: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do a task some time later."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="symmetry")
        self._tasks.append(self._executor.submit(task, *args, **kwargs))

    def raise_failure(self) -> None:
        """Raise what a task has raised since it was asked last, if any has."""
        while self._tasks and self._tasks[0].done():
            self._tasks.pop(0).result()

    def wait(self) -> None:
        """Wait until all is done; raises what a task has raised."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()
        self.raise_failure()
