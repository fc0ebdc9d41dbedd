"""Several ranks at one check: the first rank decides, the others answer from what they hold.

All that depends on data is decided on the first rank alone. It sends requests, each with the size of its answer; every
rank, the first one too, puts its part into a vector of that size, and one reduction of these vectors to the first rank
gives the answer. So every rank reaches every collective, whatever the data are and whatever fails on one of them: a
part that fails is left out, and a flag says so. At the end the first rank sends what it has concluded to all, and all
agree whether anything has failed on any of them.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_symmetry.matrices.numerics import CPU, exact_arithmetic

P = ParamSpec("P")
T = TypeVar("T")
Name = tuple[str, ...]
"""What a matrix is called on every rank."""

# Every message has a first part of this size, which holds the length of the message and as much of it as fits; a second
# part follows if that is not all.
_HEAD_BYTES = 1024
_LENGTH_BYTES = 8


class TeamError(RuntimeError):
    """Something failed on some rank; raised on all of them."""


class Reduction(Enum):
    """How the parts of an answer become one."""

    SUM = "sum"
    LARGEST = "largest"

    @property
    def neutral(self) -> float:
        """The number that changes no answer."""
        return 0.0 if self is Reduction.SUM else -torch.inf

    @property
    def operation(self) -> dist.ReduceOp.RedOpType:
        """What does it in :mod:`torch.distributed`."""
        return dist.ReduceOp.SUM if self is Reduction.SUM else dist.ReduceOp.MAX


@runtime_checkable
class Shared(Protocol):
    """A matrix of which every rank holds a part."""

    def answer(self, query: str, numbers: Tensor, *arguments: Any) -> None:
        """Put this rank's part of the answer to a query into ``numbers``, filled with what changes no answer."""
        ...


Find = Callable[[Name], Shared | None]
"""Finds a matrix by its name; None if this rank has no such matrix."""


class Request(NamedTuple):
    """What the first rank asks of all ranks; all they need to know for the reduction, whether they can answer or not.

    Attributes:
        query: what is asked.
        sizes: how many numbers the answer of each matrix has, by the number of the matrix.
        arguments: of the query.
        dtype: of the answer.
        reduction: how the parts of all ranks become one.
        names: of matrices that the ranks do not know yet; they get the next numbers.
    """

    query: str
    sizes: dict[int, int]
    arguments: tuple[Any, ...] = ()
    dtype: torch.dtype = torch.float64
    reduction: Reduction = Reduction.SUM
    names: Sequence[Name] = ()


@dataclass(frozen=True)
class Answer:
    """What all ranks have answered for one matrix.

    Attributes:
        numbers: the answer, as a vector on the CPU.
        is_missing: whether some rank has no such matrix.
        has_failed: whether some rank could not answer.
    """

    numbers: Tensor
    is_missing: bool
    has_failed: bool


@dataclass(frozen=True)
class _WhatFailed:
    """Asks all ranks for the reason of a failure."""


@dataclass(frozen=True)
class _End:
    """The last message of the first rank: what it has concluded, or None if it failed itself."""

    conclusion: Any


class Team:
    """All ranks of a training; the same calls must be made on each of them.

    Args:
        device: where tensors must lie to be sent.

    Attributes:
        is_first: whether this is the rank that decides.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_first = dist.get_rank() == 0
        self._device = device
        self._matrices: list[Shared | Exception | None] = []
        self._errors: list[str] = []

    def run(self, decide: Callable[[], T], follow: Callable[[T], None], find: Find) -> T:
        """Decide something on the first rank, which asks the others for what they hold; to be called on all ranks.

        Args:
            decide: called on the first rank, which may :meth:`ask` all ranks meanwhile.
            follow: called on the other ranks with what ``decide`` returned.
            find: finds the matrices that the first rank asks of.

        Returns:
            What ``decide`` returned.

        Raises:
            TeamError: on all ranks, if anything failed on any of them.
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
            self._note(error)
        self._matrices = []  # else gradients that are no longer needed would live on
        self._raise_if_any_failed()
        return cast("T", conclusion)

    @property
    def num_matrices(self) -> int:
        """How many matrices the ranks know; the next one that a request names gets this number."""
        return len(self._matrices)

    def ask(self, request: Request, find: Find = lambda name: None) -> list[Answer]:
        """Ask all ranks; for the first rank only, within :meth:`run`.

        Args:
            request: what to ask.
            find: finds the matrices that the request names, as this rank has them.

        Returns:
            One answer for each matrix in ``request.sizes``.
        """
        self._send(_encoded(request))
        return self._answer(request, find)

    def what_failed(self) -> str:
        """Ask all ranks why an answer failed, and forget the failure; for the first rank only, within :meth:`run`."""
        self._send(_encoded(_WhatFailed()))
        return self._collect_errors()

    def _decide(self, decide: Callable[[], T]) -> T:
        end = _encoded(_End(None))
        try:
            conclusion = decide()
            end = _encoded(_End(conclusion))
            return conclusion
        finally:  # the others wait for this, whatever happened
            self._send(end)

    def _serve(self, find: Find) -> Any:
        """Answer all requests of the first rank; returns what it has concluded."""
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
        # Nothing may fail here but what is caught: all ranks have to reach the reduction.
        for name in request.names:
            try:
                self._matrices.append(find(name))
            except Exception as error:
                self._matrices.append(error)
        neutral = request.reduction.neutral
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
                self._note(error)
        dist.reduce(numbers, 0, request.reduction.operation)
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
        """The next message of the first rank."""
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

    def _raise_if_any_failed(self) -> None:
        """Raise on all ranks if anything has failed on any of them."""
        has_failed = torch.tensor([bool(self._errors)], dtype=torch.int32, device=self._device)
        dist.all_reduce(has_failed, dist.ReduceOp.MAX)
        if has_failed.item():
            raise TeamError(self._collect_errors())

    def _note(self, error: Exception) -> None:
        """Keep a failure of this rank until :meth:`_collect_errors`; an error of the team says already whose it is."""
        self._errors.append(describe(error) + ("" if isinstance(error, TeamError) else f" (rank {dist.get_rank()})"))

    def _collect_errors(self) -> str:
        """The first failure of the first rank that has any; forgets the failures of all ranks."""
        collected: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(collected, self._errors)
        self._errors = []
        return next((errors[0] for errors in collected if errors), "no reason")


def _encoded(message: object) -> bytes:
    return zlib.compress(pickle.dumps(message), 1)


def describe(error: Exception) -> str:
    """What went wrong: the type and the message, or the message alone if it has come from another rank."""
    return str(error) if isinstance(error, TeamError) else f"{type(error).__name__}: {error}"


def attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Do now something that may fail on this rank alone, and deal with the failure later.

    Args:
        step: what to do.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        A function that returns what ``step`` returned, or raises what it raised.
    """
    try:
        result = step(*args, **kwargs)
    except Exception as error:
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: result
