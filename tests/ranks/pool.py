"""Reusable processes, because starting them and importing PyTorch takes longer than a test."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tests.distributed import _on_rank, process_context
from tests.serving import free_port


class RankPool:
    """Ranks that call functions of a module on request.

    Args:
        num_ranks: number of processes.
        folder: folder for their error messages.
        limit: seconds that a call may take.
    """

    def __init__(self, num_ranks: int, folder: Path, limit: float = 60.0) -> None:
        self._num_ranks, self._folder, self._limit = num_ranks, folder, limit
        self._start()

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function on all ranks.

        Returns:
            The result on each rank.

        Raises:
            AssertionError: if it raised on any rank.
            TimeoutError: if it takes too long, for example in a deadlock; the next call starts new ranks.
        """
        for connection in self._connections:
            connection.send((function, arguments))
        answers = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(self._limit):
                self._kill()
                self._start()
                raise TimeoutError(f"rank {rank} still runs after {self._limit:.0f} s")
            answers.append(connection.recv())
        failures = [failure for _, failure in answers if failure]
        assert not failures, "\n".join(failures)
        return [result for result, _ in answers]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def _start(self) -> None:
        context = process_context()
        port = free_port()
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(self._num_ranks):
            here, there = context.Pipe()
            work = partial(_serve, there)
            arguments = (rank, self._num_ranks, port, work, self._folder)
            process = context.Process(target=_on_rank, args=arguments, daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(connection: Connection, folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    while True:
        function, arguments = connection.recv()
        result, failure = None, ""
        try:
            result = function(*arguments)
        except Exception:
            failure = traceback.format_exc()
        connection.send((result, failure))
