"""Where in a file the numbers of a tensor lie, and how they are read: never through a mapping of the file.

The system ends a process that looks at a mapped file which somebody else has cut. Reading such a file is an error.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_MUCH = 1 << 20  # bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and says what was expected."""

    __module__ = "lightning_symmetry.disk.checkpoints"


class StoredFile:
    """A file that is open for reading; it notices when somebody else writes to the file.

    A file that is replaced by another one of the same name, as careful programs do it, is read to its end as it was.

    Args:
        path: of the file.

    Raises:
        CheckpointError: if it is no regular file.
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        # To open a pipe without this flag waits until somebody writes to it. `os.O_BINARY` is there on Windows only.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(path, flags)
        except ValueError as error:  # a path with a zero byte
            raise CheckpointError(f"Expected the path of a file, but got {str(path)!r}: {error}.") from error
        self.path = path
        weakref.finalize(self, os.close, handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CheckpointError(f"Expected {str(path)!r} to be a file, but it is a folder, a pipe or a device.")
        self._file = io.FileIO(handle, closefd=False)
        self._version = self._stamp()

    @property
    def size(self) -> int:
        """Number of bytes in the file, as it was opened."""
        return self._version[0]

    def read(self, start: int, length: int) -> bytearray:
        """Read a part of the file.

        Raises:
            CheckpointError: if the file has been written to since it was opened.
        """
        content = bytearray(length)
        self.read_into(memoryview(content), start)
        return content

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from the file; errors are those of :meth:`read`."""
        self._file.seek(start)
        while buffer:
            length = self._file.readinto(buffer)
            if not length:
                break
            buffer = buffer[length:]
        if buffer or self._stamp() != self._version:
            raise CheckpointError(f"{str(self.path)!r} was changed while it was read.")

    def _stamp(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Place:
    """Where the numbers of a tensor lie.

    Attributes:
        file: the file.
        start: the position in the file at which its storage begins.
        num_bytes: of its storage.
        dtype: of the tensor.
        shape: of the tensor.
        stride: of the tensor, in its storage.
        offset: of its first number, in its storage.
        is_conj: whether the numbers are the complex conjugates of those in the file.
        is_neg: whether they are the negatives.
        is_swapped: whether the bytes of each number are in the order of another kind of machine.
    """

    file: StoredFile
    start: int
    num_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    is_conj: bool = False
    is_neg: bool = False
    is_swapped: bool = False

    @property
    def claimed(self) -> int:
        """Number of bytes that the tensor takes in memory when every number has a place of its own."""
        return prod(self.shape) * self.dtype.itemsize

    def fault(self) -> str:
        """Say why the tensor cannot be read; empty if it can."""
        if not all(self.shape):
            return "it holds no numbers"
        if self.offset < 0 or min(self.stride, default=0) < 0 or self._end * self.dtype.itemsize > self.num_bytes:
            return f"its shape {shape_text(self.shape)} goes beyond the numbers that the file holds for it"
        if prod(self.shape) > self.held:  # stride 0, as `expand` makes it, or rows that overlap
            numbers = "1 number" if self.held == 1 else f"{self.held:,} numbers"
            return f"it claims {prod(self.shape):,} numbers, for which the file holds {numbers}"
        return ""

    @property
    def held(self) -> int:
        """Number of different numbers that the tensor may have."""
        available = max(0, self.num_bytes // self.dtype.itemsize - self.offset)
        return min(self._end - self.offset, available) if all(self.shape) else 0

    @property
    def _end(self) -> int:
        """One more than the position of its last number, in its storage."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1

    def read(self, count: int | None = None) -> Tensor:
        """Read the tensor, or its first few numbers.

        Args:
            count: how many numbers, in one dimension; None: all, in the shape of the tensor.

        Raises:
            CheckpointError: if the file has been written to since it was opened.
        """
        shape, stride = self.shape, self.stride
        if count is not None and is_contiguous(shape, stride):
            shape, stride = (min(count, prod(shape)),), (1,)
        length = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
        memory = _memory(length * self.dtype.itemsize)
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
        """Make a tensor of this shape that takes no memory; whoever reads it by mistake finds no number in it."""
        fill = float("nan") if self.dtype.is_floating_point or self.dtype.is_complex else 0
        return torch.full((), fill, dtype=torch.float32).to(self.dtype).expand(self.shape)


def _memory(num_bytes: int) -> bytearray | mmap.mmap:
    """Return writable memory, which goes back to the system as soon as it is let go of if there is much of it."""
    if num_bytes < _MUCH:
        return bytearray(num_bytes)
    if not hasattr(mmap, "MAP_PRIVATE"):  # on Windows
        return mmap.mmap(-1, num_bytes)
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Return whether the numbers of a tensor follow one another in its storage."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape in words: ``200,000 by 200,000``."""
    return " by ".join(f"{size:,}" for size in shape) or "()"


NATIVE_ORDER = sys.byteorder
