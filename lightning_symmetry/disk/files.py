"""Where in a file the numbers of tensors lie, and how they are read: with ``read``, never through a memory map.

If another program truncates a mapped file, the system kills the process that reads it; ``read`` only fails.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import stat
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_LARGE = 1 << 20  # bytes
_CHUNK = 1 << 22  # numbers that are converted for a comparison at once
_HEAD = 16


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and what was expected."""

    __module__ = "lightning_symmetry.disk.checkpoints"


class StoredFile:
    """A file that is open for reading, and notices when another program writes to it.

    If the file is replaced by another one of the same name, the old content is read to the end. Raises a
    :class:`CheckpointError` if the path is not a regular file, and an OSError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        # Without O_NONBLOCK, opening a pipe waits for a writer. O_BINARY exists on Windows only.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(path, flags)
        except ValueError as error:  # a path with a zero byte
            raise CheckpointError(f"Expected the path of a file, but got {str(path)!r}: {error}.") from error
        self.path = path
        weakref.finalize(self, os.close, handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CheckpointError(f"Expected {str(path)!r} to be a file, but it is a folder, a pipe or a device.")
        self.raw = io.FileIO(handle, closefd=False)  # reads without a check for changes
        self._version = self._stamp()
        self.size = self._version[0]  # number of bytes when the file was opened

    def read(self, start: int, length: int) -> bytearray:
        """Read ``length`` bytes; raises a :class:`CheckpointError` if the file has changed since it was opened."""
        content = bytearray(length)
        self.read_into(memoryview(content), start)
        return content

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from the file; raises as :meth:`read` does."""
        self.raw.seek(start)
        while buffer:
            length = self.raw.readinto(buffer)
            if not length:
                break
            buffer = buffer[length:]
        if buffer or self._stamp() != self._version:
            raise CheckpointError(
                f"{str(self.path)!r} was changed while it was read. Scan it again once it is complete."
            )

    def _stamp(self) -> tuple[int, int]:
        status = os.fstat(self.raw.fileno())
        return status.st_size, status.st_mtime_ns


class Place(NamedTuple):
    """Where the numbers of a tensor lie in a file."""

    file: StoredFile
    start: int  # position in the file at which the tensor's storage begins
    num_bytes: int  # size of the storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # of the tensor in its storage
    offset: int = 0  # index of the tensor's first number in its storage
    is_conj: bool = False  # whether the tensor is the complex conjugate of the stored numbers
    is_neg: bool = False  # whether the tensor is the negative of the stored numbers
    is_swapped: bool = False  # whether the file's byte order differs from this machine's

    @classmethod
    def of(cls, tensor: Tensor, file: StoredFile, start: int, num_bytes: int, *, is_swapped: bool = False) -> Place:
        """Return the place of a tensor whose storage has ``num_bytes`` bytes and begins at ``start``."""
        shape, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        flags = tensor.is_conj(), tensor.is_neg(), is_swapped
        return cls(file, start, num_bytes, tensor.dtype, shape, stride, offset, *flags)

    @property
    def claimed(self) -> int:
        """Number of bytes that the tensor would take if no two of its numbers shared memory."""
        return prod(self.shape) * self.dtype.itemsize

    def fault(self) -> str:
        """Return why the tensor cannot be read; empty if it can."""
        if not all(self.shape):
            return "it holds no numbers"
        if self.offset < 0 or min(self.stride, default=0) < 0 or self._end * self.dtype.itemsize > self.num_bytes:
            shape = " by ".join(f"{size:,}" for size in self.shape) or "()"
            return f"its shape {shape} goes beyond the numbers that the file holds for it"
        if prod(self.shape) > self.held:  # stride 0, as `expand` makes it, or rows that overlap
            numbers = "1 number" if self.held == 1 else f"{self.held:,} numbers"
            return f"it claims {prod(self.shape):,} numbers, for which the file holds {numbers}"
        return ""

    @property
    def held(self) -> int:
        """How many different numbers the tensor can hold at most, given its strides and its storage."""
        available = max(0, self.num_bytes // self.dtype.itemsize - self.offset)
        return min(self._end - self.offset, available) if all(self.shape) else 0

    @property
    def _end(self) -> int:
        """One more than the index of the tensor's last number in its storage."""
        return self.offset + _extent(self.shape, self.stride)

    def read(self, count: int | None = None) -> Tensor:
        """Read the tensor, or its first ``count`` numbers as a vector; raises as :meth:`StoredFile.read` does."""
        shape, stride = self.shape, self.stride
        if count is not None and torch.empty_strided(shape, stride, device="meta").is_contiguous():
            shape, stride = (min(count, prod(shape)),), (1,)
        memory = _memory(_extent(shape, stride) * self.dtype.itemsize)
        self.file.read_into(memoryview(memory), self.start + self.offset * self.dtype.itemsize)
        numbers = torch.frombuffer(memory, dtype=self.dtype)
        if self.is_swapped:
            numbers.untyped_storage().byteswap(self.dtype)
        tensor = numbers.as_strided(shape, stride)
        if count is not None:
            tensor = tensor.flatten()[:count]
        tensor = tensor.conj().resolve_conj() if self.is_conj else tensor
        return -tensor if self.is_neg else tensor

    def placeholder(self) -> Tensor:
        """Return a tensor of this shape that takes no memory; floating point ones hold NaN, so misuse shows."""
        fill = float("nan") if self.dtype.is_floating_point or self.dtype.is_complex else 0
        return torch.full((), fill, dtype=torch.float32).to(self.dtype).expand(self.shape)


class StoredNumbers:
    """Parameters whose numbers lie in files: read on demand, so that one layer is in memory at a time.

    Implements :class:`lightning_symmetry.units.copies.Numbers` for the search for copies. ``places`` are keyed by the
    ``id`` of the parameter; all other parameters are in memory.
    """

    def __init__(self, places: Mapping[int, Place]) -> None:
        self._places = places
        self._digests: dict[int, object] = {}

    @contextmanager
    def loaded(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Load the numbers of parameters within the context; raises as :meth:`StoredFile.read` does."""
        placeholders = [(parameter, parameter.data) for parameter in parameters]
        try:
            self.load(parameter for parameter, _ in placeholders)
            yield
        finally:
            for parameter, placeholder in placeholders:
                parameter.data = placeholder

    def load(self, parameters: Iterable[Tensor]) -> None:
        """Load the numbers of parameters, and keep them; raises as :meth:`StoredFile.read` does."""
        for parameter in parameters:
            if id(parameter) in self._places:
                parameter.data = self._places[id(parameter)].read()

    def head(self, parameter: Tensor) -> list[float]:
        """Return the first few numbers of a parameter."""
        numbers: list[float] = self._vector(parameter, _HEAD).tolist()
        return numbers

    def digest(self, parameter: Tensor) -> object:
        """Return a value that is equal for parameters of one shape with equal numbers; each is read only once.

        As in ``torch.equal``, the sign of zero does not matter, and a parameter with a NaN is equal to no other.
        """
        if id(parameter) not in self._digests:
            self._digests[id(parameter)] = _digest(self._vector(parameter))
        return self._digests[id(parameter)]

    def is_constant(self, parameter: Tensor) -> bool:
        """Return whether all numbers of a parameter are equal."""
        numbers = self._vector(parameter)
        return all(bool((chunk == numbers[0]).all()) for chunk in numbers.split(_CHUNK))

    def _vector(self, parameter: Tensor, count: int | None = None) -> Tensor:
        place = self._places.get(id(parameter))
        return parameter.detach().flatten()[:count] if place is None else place.read(count).flatten()


def _digest(numbers: Tensor) -> object:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in numbers.split(_CHUNK):
        if chunk.is_complex():
            chunk = torch.view_as_real(chunk.resolve_conj())
        chunk = chunk + 0  # -0.0 + 0 is 0.0
        if bool(chunk.isnan().any()):
            return object()
        digest.update(chunk.contiguous().view(torch.uint8).numpy())
    return digest.digest()


def _memory(num_bytes: int) -> bytearray | mmap.mmap:
    """Return writable memory. A large block is mapped, so that it goes back to the system as soon as it is freed."""
    if num_bytes < _LARGE:
        return bytearray(num_bytes)
    if not hasattr(mmap, "MAP_PRIVATE"):  # on Windows
        return mmap.mmap(-1, num_bytes)
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many consecutive numbers of its storage a tensor spans."""
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
