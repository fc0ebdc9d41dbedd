"""Several ranks at one check: the first thinks, the others lend it what they hold.

All that depends on data is decided on the first rank alone. It asks requests, each with the size of its answer; every
rank, the first too, adds its part to a vector of that size, and the sum goes to the first. So every rank reaches every
collective, whatever the data are and whatever fails on one of them: a part that fails is left out, and a flag says so.
At the end the first rank tells all what it has concluded, and all agree whether every rank has come that far.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_symmetry.matrices.rows import exact_arithmetic

P = ParamSpec("P")
T = TypeVar("T")
Name = tuple[str, ...]
"""What a matrix is called on every rank."""

# The global default device is the user's.
_CPU = torch.device("cpu")
# A message that fits is sent by one broadcast, a longer one by two.
_HEAD_BYTES = 1024
_LENGTH_BYTES = 8


class TeamError(RuntimeError):
    """Something failed on some rank; raised on all of them."""


@runtime_checkable
class Shared(Protocol):
    """A matrix of which every rank holds a part."""

    def answer(self, kind: str, numbers: Tensor, *arguments: Any) -> None:
        """Put this rank's part of the answer into ``numbers``, which holds what changes nothing."""
        ...


Find = Callable[[Name], Shared | None]


@dataclass(frozen=True)
class Request:
    """What the first rank asks of all.

    Attributes:
        kind: what is asked.
        sizes: by number of the matrix in question, how many numbers the answer has.
        arguments: what else there is to know.
        dtype: of the answer.
        is_largest: the largest of the parts is the answer, not their sum.
        names: of matrices that were not asked of before.
    """

    kind: str
    sizes: dict[int, int]
    arguments: tuple[Any, ...] = ()
    dtype: torch.dtype = torch.float64
    is_largest: bool = False
    names: Sequence[Name] = ()


@dataclass(frozen=True)
class Answer:
    """What all have answered.

    Attributes:
        numbers: on the CPU.
        is_missing: some rank has no such matrix.
        has_failed: some rank could not answer.
    """

    numbers: Tensor
    is_missing: bool
    has_failed: bool


@dataclass(frozen=True)
class _WhatFailed:
    """Asks for the reason of a failure."""


@dataclass(frozen=True)
class _End:
    """The last word of the first rank: its conclusion, or None if it failed itself."""

    conclusion: Any


class Team:
    """All ranks of a training; the same calls must be made on each of them.

    Args:
        device: where tensors must lie to be sent.

    Attributes:
        is_first: whether this rank thinks.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_first = dist.get_rank() == 0
        self._device = device
        self._matrices: list[Shared | Exception | None] = []
        self._errors: list[str] = []

    def run(self, think: Callable[[], T], follow: Callable[[T], None], find: Find) -> T:
        """Think on the first rank, and let the others follow.

        Args:
            think: run on the first rank, which may :meth:`ask` all meanwhile.
            follow: run on the others with what ``think`` returned.
            find: a matrix by its name, or None if this rank has no such matrix.

        Returns:
            What ``think`` returned.

        Raises:
            TeamError: on all ranks, if anything failed on any of them.
        """
        self._errors = []
        conclusion: T | None = None
        try:
            if self.is_first:
                conclusion = self._lead(think)
            else:
                conclusion = self._serve(find)
                if conclusion is not None:
                    follow(conclusion)
        except Exception as error:
            self._errors.append(describe(error))
        self._matrices = []  # else gradients that are no longer needed would live on
        self._agree()
        return cast("T", conclusion)

    @property
    def num_matrices(self) -> int:
        """How many have been asked of by name; the next gets this number."""
        return len(self._matrices)

    def ask(self, request: Request, find: Find = lambda name: None) -> list[Answer]:
        """The answers of all ranks, one for each matrix in question; for the first rank only.

        Args:
            request: what to ask.
            find: the matrices that the request names, as this rank has them.
        """
        self._tell(_encoded(request))
        return self._answer(request, find)

    def what_failed(self) -> str:
        """Why an answer failed; for the first rank only. The failure is thereby dealt with."""
        self._tell(_encoded(_WhatFailed()))
        return self._collect_errors()

    def _lead(self, think: Callable[[], T]) -> T:
        end = _encoded(_End(None))
        try:
            conclusion = think()
            end = _encoded(_End(conclusion))
            return conclusion
        finally:  # the others wait for this, whatever happened
            self._tell(end)

    def _serve(self, find: Find) -> Any:
        while True:
            message = self._hear()
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
        neutral = -torch.inf if request.is_largest else 0.0
        total = sum(request.sizes.values())
        numbers = torch.full((total + 2 * len(request.sizes),), neutral, dtype=request.dtype, device=self._device)
        flags = numbers[total:].view(-1, 2).zero_()
        start = 0
        for (place, size), flag in zip(request.sizes.items(), flags, strict=True):
            matrix, part = self._matrices[place], numbers[start : start + size]
            start += size
            try:
                if isinstance(matrix, Exception):
                    raise matrix
                if matrix is None:
                    flag[0] = 1
                    continue
                with exact_arithmetic(self._device):
                    matrix.answer(request.kind, part, *request.arguments)
            except Exception as error:
                part.fill_(neutral)
                flag[1] = 1
                self._errors.append(describe(error))
        dist.reduce(numbers, 0, dist.ReduceOp.MAX if request.is_largest else dist.ReduceOp.SUM)
        if not self.is_first:
            return []
        numbers = numbers.cpu()
        parts = torch.split(numbers[:total], list(request.sizes.values()))
        marks = (numbers[total:].view(-1, 2) > 0).tolist()
        return [Answer(part, *mark) for part, mark in zip(parts, marks, strict=True)]

    def _tell(self, data: bytes) -> None:
        head = torch.zeros(_HEAD_BYTES, dtype=torch.uint8, device=_CPU)
        room = _HEAD_BYTES - _LENGTH_BYTES
        start = len(data).to_bytes(_LENGTH_BYTES, "little") + data[:room]
        head[: len(start)] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
        self._broadcast(head)
        if len(data) > room:
            self._broadcast(torch.frombuffer(bytearray(data[room:]), dtype=torch.uint8))

    def _hear(self) -> object:
        head = self._broadcast(torch.zeros(_HEAD_BYTES, dtype=torch.uint8, device=_CPU)).numpy().tobytes()
        length = int.from_bytes(head[:_LENGTH_BYTES], "little")
        data = head[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if length > len(data):
            data += self._broadcast(torch.zeros(length - len(data), dtype=torch.uint8, device=_CPU)).numpy().tobytes()
        return pickle.loads(zlib.decompress(data))

    def _broadcast(self, data: Tensor) -> Tensor:
        data = data.to(self._device)
        dist.broadcast(data, 0)
        return data.cpu()

    def _agree(self) -> None:
        """Raise on all ranks if any has failed."""
        has_failed = torch.tensor([bool(self._errors)], dtype=torch.int32, device=self._device)
        dist.all_reduce(has_failed, dist.ReduceOp.MAX)
        if has_failed.item():
            raise TeamError(self._collect_errors())

    def _collect_errors(self) -> str:
        collected: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(collected, self._errors)
        self._errors = []
        return next((f"{errors[0]} (rank {rank})" for rank, errors in enumerate(collected) if errors), "no reason")


def _encoded(message: object) -> bytes:
    return zlib.compress(pickle.dumps(message), 1)


def describe(error: Exception) -> str:
    """What went wrong, and on which rank if that is known."""
    return str(error) if isinstance(error, TeamError) else f"{type(error).__name__}: {error}"


def attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Do something now that may fail on this rank alone; what it returns or raises comes when the result is called."""
    try:
        result = step(*args, **kwargs)
    except Exception as error:
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: result
