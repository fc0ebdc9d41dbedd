"""Checks on several ranks: the first rank decides, the others answer from their parts of the tensors.

Only the first rank makes decisions that depend on data. It sends requests, each with the size of its answer; every
rank, including the first, writes its part into a vector of that size, and one reduction of these vectors to the first
rank gives the answer. So every rank reaches every collective, whatever the data are and whatever fails on a rank: a
part that fails is left out, and a flag marks it. At the end, the first rank sends its conclusion to all, and all agree
whether anything has failed on any rank.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_symmetry.matrices.numerics import CPU, exact_arithmetic

P = ParamSpec("P")
T = TypeVar("T")
Name = tuple[str, ...]
"""The name of a matrix, the same on every rank."""

# Every message begins with a part of this size: the length of the message, and as much of it as fits. If it is longer,
# a second part follows.
_HEAD_BYTES = 1024
_LENGTH_BYTES = 8


class TeamError(RuntimeError):
    """A failure on some rank; raised on all ranks."""


class Reduction(Enum):
    """The reduction of all ranks' parts to one answer: its name in ``dist.ReduceOp``, and its neutral element."""

    SUM = ("SUM", 0.0)
    LARGEST = ("MAX", -torch.inf)


@runtime_checkable
class Shared(Protocol):
    """A matrix of which every rank holds a part."""

    def answer(self, query: str, numbers: Tensor, *arguments: Any) -> None:
        """Add this rank's part of the answer to ``numbers``, which are filled with the neutral element.

        Raises a ValueError if there is no such query.
        """


Find = Callable[[Name], Shared | None]
"""Finds a matrix by its name; None if this rank has no such matrix."""


class Request(NamedTuple):
    """A request of the first rank, with all that a rank needs for the reduction, even if it cannot answer."""

    query: str  # name of the query
    sizes: dict[int, int]  # size of the answer for each matrix, by the number of the matrix
    arguments: tuple[Any, ...] = ()  # arguments of the query
    dtype: torch.dtype = torch.float64  # dtype of the answer
    reduction: Reduction = Reduction.SUM  # the reduction over all ranks
    names: Sequence[Name] = ()  # names of matrices without a number on the other ranks; they get the next numbers


class Answer(NamedTuple):
    """The answer of all ranks for one matrix."""

    numbers: Tensor  # the answer as a vector on the CPU
    is_missing: bool  # whether some rank does not have the matrix
    has_failed: bool  # whether some rank failed to answer


class _WhatFailed(NamedTuple):
    """A message that asks all ranks for the reason of a failure."""


class _End(NamedTuple):
    """The last message of the first rank: its conclusion, or None if it failed."""

    conclusion: Any


class Team:
    """All ranks of a training, which send tensors from ``device``; all must make the same calls of :meth:`run`."""

    def __init__(self, device: torch.device) -> None:
        self.is_first = dist.get_rank() == 0  # the first rank decides
        self._device = device
        self._matrices: list[Shared | Exception | None] = []
        self._errors: list[str] = []

    def run(self, decide: Callable[[], T], follow: Callable[[T], None], find: Find) -> T:
        """Make a decision on the first rank, which may query the others; must be called on all ranks.

        If anything failed on any rank, all ranks raise a TeamError.

        Args:
            decide: called on the first rank, where it may :meth:`ask` all ranks; its result is returned on all ranks.
            follow: called on the other ranks with the result of ``decide``.
            find: finds matrices by their names in requests.
        """
        self._errors = []
        conclusion: T | None = None
        try:
            if self.is_first:
                conclusion = self._decide(decide)
            else:
                conclusion = self._serve(find)
                if conclusion is not None:
                    follow(conclusion)
        except Exception as error:
            self._record(error)
        self._matrices = []  # so that gradients can be freed
        has_failed = torch.tensor([bool(self._errors)], dtype=torch.int32, device=self._device)
        dist.all_reduce(has_failed, dist.ReduceOp.MAX)
        if has_failed.item():
            raise TeamError(self._collect_errors())
        return cast("T", conclusion)

    @property
    def num_matrices(self) -> int:
        """Number of registered matrices; the next one that a request names gets this number."""
        return len(self._matrices)

    def ask(self, request: Request, find: Find = lambda name: None) -> list[Answer]:
        """Send a request, and return an answer for each matrix in ``request.sizes``.

        For the first rank only, within :meth:`run`. ``find`` finds this rank's matrices by ``request.names``.
        """
        self._send(_encoded(request))
        return self._answer(request, find)

    def what_failed(self) -> str:
        """Return why an answer failed, and clear the failure; for the first rank only, within :meth:`run`."""
        self._send(_encoded(_WhatFailed()))
        return self._collect_errors()

    def _decide(self, decide: Callable[[], T]) -> T:
        end = _encoded(_End(None))
        try:
            conclusion = decide()
            end = _encoded(_End(conclusion))
            return conclusion
        finally:  # even after a failure, because the others wait for it
            self._send(end)

    def _serve(self, find: Find) -> Any:
        """Answer all requests of the first rank; return its conclusion."""
        while True:
            message = self._receive()
            match message:
                case _End():
                    return message.conclusion
                case _WhatFailed():
                    self._collect_errors()
                case Request():
                    self._answer(message, find)

    def _answer(self, request: Request, find: Find) -> list[Answer]:
        # Every failure must be caught here, because all ranks have to reach the reduction.
        for name in request.names:
            try:
                self._matrices.append(find(name))
            except Exception as error:
                self._matrices.append(error)
        operation, neutral = request.reduction.value
        total = sum(request.sizes.values())
        numbers = torch.full((total + 2 * len(request.sizes),), neutral, dtype=request.dtype, device=self._device)
        flags = numbers[total:].view(-1, 2).zero_()
        start = 0
        for (number, size), flag in zip(request.sizes.items(), flags, strict=True):
            matrix, part = self._matrices[number], numbers[start : start + size]
            start += size
            try:
                if isinstance(matrix, Exception):
                    raise matrix
                if matrix is None:
                    flag[0] = 1
                    continue
                with exact_arithmetic(self._device):
                    matrix.answer(request.query, part, *request.arguments)
            except Exception as error:
                part.fill_(neutral)
                flag[1] = 1
                self._record(error)
        dist.reduce(numbers, 0, getattr(dist.ReduceOp, operation))
        if not self.is_first:
            return []
        numbers = numbers.cpu()
        parts = torch.split(numbers[:total], list(request.sizes.values()))
        marks = (numbers[total:].view(-1, 2) > 0).tolist()
        return [Answer(part, *mark) for part, mark in zip(parts, marks, strict=True)]

    def _send(self, data: bytes) -> None:
        """Send a message to all ranks; for the first rank only."""
        head = torch.zeros(_HEAD_BYTES, dtype=torch.uint8, device=CPU)
        room = _HEAD_BYTES - _LENGTH_BYTES
        start = len(data).to_bytes(_LENGTH_BYTES, "little") + data[:room]
        head[: len(start)] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
        self._broadcast(head)
        if len(data) > room:
            self._broadcast(torch.frombuffer(bytearray(data[room:]), dtype=torch.uint8))

    def _receive(self) -> object:
        """Receive the next message of the first rank."""
        head = self._broadcast(torch.zeros(_HEAD_BYTES, dtype=torch.uint8, device=CPU)).numpy().tobytes()
        length = int.from_bytes(head[:_LENGTH_BYTES], "little")
        data = head[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if length > len(data):
            data += self._broadcast(torch.zeros(length - len(data), dtype=torch.uint8, device=CPU)).numpy().tobytes()
        return pickle.loads(zlib.decompress(data))

    def _broadcast(self, data: Tensor) -> Tensor:
        data = data.to(self._device)
        dist.broadcast(data, 0)
        return data.cpu()

    def _record(self, error: Exception) -> None:
        """Record a failure for :meth:`_collect_errors`, with this rank unless the error already names one."""
        self._errors.append(describe(error) + ("" if isinstance(error, TeamError) else f" (rank {dist.get_rank()})"))

    def _collect_errors(self) -> str:
        """Return the first failure of the first rank that has any, and clear the failures of all ranks."""
        collected: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(collected, self._errors)
        self._errors = []
        return next((errors[0] for errors in collected if errors), "no reason")


def _encoded(message: object) -> bytes:
    return zlib.compress(pickle.dumps(message), 1)


def describe(error: Exception) -> str:
    """Return the type and message of an error; only the message of a team error, which contains the type."""
    return str(error) if isinstance(error, TeamError) else f"{type(error).__name__}: {error}"


def attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Call ``step`` now, and return a function that returns its result or raises its exception later.

    So this rank takes part in the collectives in between, even if the step has failed on it alone.
    """
    outcome: Future[T] = Future()
    try:
        outcome.set_result(step(*args, **kwargs))
    except Exception as error:
        outcome.set_exception(error)
    return outcome.result
