"""Files of ``torch.save`` since PyTorch 1.6: an archive with a pickle, and a record for the numbers of each storage.

The pickle is read with the restricted unpickler of PyTorch, the one behind ``torch.load(weights_only=True)``. The
storages that it asks for are given to it without numbers, and it is noted where those lie in the file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._weights_only_unpickler import Unpickler

from lightning_symmetry.brief import brief
from lightning_symmetry.disk.files import NATIVE_ORDER, Place, StoredFile

_PICKLE = "data.pkl"
_LOCAL_HEADER = 30
_MAX_DEPTH = 100  # of lists and dicts in one another


class _Record(NamedTuple):
    start: int
    num_bytes: int


class Archive:
    """The records of a file of ``torch.save``, and the object in it, whose tensors have no numbers.

    Args:
        file: the file.

    Attributes:
        content: the object; its tensors lie on the meta device.

    Raises:
        Exception: of any type, if the file is damaged or holds more than tensors and plain data.
    """

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._records = _records(file)
        if "constants.pkl" in self._records:
            raise ValueError("it is an archive of TorchScript")
        self._is_swapped = "byteorder" in self._records and self._bytes("byteorder").decode() != NATIVE_ORDER
        self._storages: dict[str, torch.storage.TypedStorage] = {}
        self._starts: dict[int, tuple[int, int]] = {}  # by the identity of the storage in C++: start, number of bytes
        unpickler = cast("Any", Unpickler(io.BytesIO(self._bytes(_PICKLE)), encoding="utf-8"))
        unpickler.persistent_load = self._storage
        try:
            self.content: object = unpickler.load()
        finally:
            # PyTorch validates sparse tensors when it has loaded a whole file; these have no numbers to validate.
            getattr(torch._utils, "_sparse_tensors_to_validate", []).clear()

    def place_of(self, tensor: Tensor) -> Place | None:
        """Say where the numbers of a tensor lie; None if they have no record, as those of sparse ones."""
        if not is_plain(tensor) or not tensor.is_meta:
            return None
        start, num_bytes = self._starts.get(tensor.untyped_storage()._cdata, (0, -1))
        if num_bytes < 0:
            return None
        return Place(
            self._file,
            start,
            num_bytes,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
            int(tensor.storage_offset()),
            is_conj=tensor.is_conj(),
            is_neg=tensor.is_neg(),
            is_swapped=self._is_swapped,
        )

    def with_numbers(self, value: Any, depth: int = 0) -> Any:
        """Return a value of the content with the numbers of all tensors in it, as far as they can be read."""
        if isinstance(value, Tensor):
            place = self.place_of(value)
            return value if place is None or place.fault() else place.read()
        if depth >= _MAX_DEPTH:
            return value
        if isinstance(value, Mapping):
            return {key: self.with_numbers(each, depth + 1) for key, each in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.with_numbers(each, depth + 1) for each in value)
        return value

    def _record(self, name: str) -> _Record:
        if name not in self._records:
            raise ValueError(f"it has no record {brief(name)}")
        return self._records[name]

    def _bytes(self, name: str) -> bytes:
        record = self._record(name)
        return bytes(self._file.read(record.start, record.num_bytes))

    def _storage(self, key: tuple[Any, ...]) -> torch.storage.TypedStorage:
        """Return a storage without numbers for what the pickle calls ``("storage", type, key, location, size)``."""
        _, kind, name, _, numel = key
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        num_bytes = numel * dtype.itemsize
        if name not in self._storages:
            record = self._record(f"data/{name}")
            if not 0 <= num_bytes <= record.num_bytes:
                raise ValueError(f"a tensor claims {num_bytes:,} bytes of a record of {record.num_bytes:,}")
            storage = torch.UntypedStorage(num_bytes, device="meta")
            self._starts[storage._cdata] = record.start, num_bytes
            self._storages[name] = torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
        return self._storages[name]


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is a table of numbers that lie side by side, of no class with a form of its own."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not is_odd(tensor)


def is_odd(tensor: Tensor) -> bool:
    """Return whether a tensor is nested or quantised, so that its numbers are not what they seem."""
    return tensor.is_nested or tensor.is_quantized


def _records(file: StoredFile) -> dict[str, _Record]:
    """Where the records lie, by their names without that of the archive."""
    raw = _Window(file)
    with zipfile.ZipFile(cast("Any", io.BufferedReader(raw))) as archive:
        entries = archive.infolist()
    prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
    records: dict[str, _Record] = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its records are compressed, which torch.save never does")
        header = file.read(entry.header_offset, _LOCAL_HEADER)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = entry.header_offset + _LOCAL_HEADER + lengths
        if start + entry.file_size > file.size:
            raise ValueError(f"its record {brief(entry.filename)} goes beyond the end of the file")
        records[entry.filename.removeprefix(prefix)] = _Record(start, entry.file_size)
    return records


class _Window(io.RawIOBase):
    """A stored file as a file object, for the directory of the archive."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._stored = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stored.size}[whence]
        if start + offset < 0:
            raise OSError("a position before the beginning of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._stored.size - self._position))
        self._stored.read_into(view[:length], self._position)
        self._position += length
        return length
