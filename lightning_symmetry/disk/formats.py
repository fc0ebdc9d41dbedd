"""The places of tensors in files of two formats: safetensors, and the archives of ``torch.save``.

A safetensors file is a header with names, shapes and positions, followed by the numbers. An archive of ``torch.save``
(since PyTorch 1.6) is a ZIP file with a pickle, and a record with the numbers of each storage. The pickle is read with
PyTorch's restricted unpickler, the one behind ``torch.load(weights_only=True)``; storages are made without numbers.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._weights_only_unpickler import Unpickler

from lightning_symmetry.brief import brief
from lightning_symmetry.disk.files import CheckpointError, Place, StoredFile

_MAX_HEADER = 100_000_000  # as in the library safetensors
_LENGTH = 8  # bytes at the start of a file, which hold the length of the header
_MAX_REASON = 200
# The names of dtypes in safetensors; those that this version of PyTorch lacks are left out.
_NAMES = (
    *(("F64", "float64"), ("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("C64", "complex64")),
    *(("I64", "int64"), ("I32", "int32"), ("I16", "int16"), ("I8", "int8"), ("BOOL", "bool")),
    *(("U64", "uint64"), ("U32", "uint32"), ("U16", "uint16"), ("U8", "uint8")),
    *(("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("F8_E8M0", "float8_e8m0fnu")),
    *(("F8_E4M3FNUZ", "float8_e4m3fnuz"), ("F8_E5M2FNUZ", "float8_e5m2fnuz")),
)
_DTYPES = {name: getattr(torch, ours) for name, ours in _NAMES if hasattr(torch, ours)}

_PICKLE = "data.pkl"
_LOCAL_HEADER = 30  # bytes in front of a ZIP entry, without its name and extra field
_MAX_DEPTH = 100  # of nested lists and dicts


# ----------------------------------------------------------------- safetensors


def places_in_safetensors(file: StoredFile) -> tuple[dict[str, Place], dict[str, str]]:
    """Return, by name, the places of the tensors in a safetensors file, and the reasons why others are left out."""
    try:
        header, start = _header(file)
        places: dict[str, Place] = {}
        left_out: dict[str, str] = {}
        for name, entry in header.items():
            dtype, shape, begin, end = _entry(name, entry, file.size - start)
            if dtype not in _DTYPES:
                left_out[name] = f"its dtype {dtype} is not one that this package reads"
                continue
            strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
            place = Place(file, start + begin, end - begin, _DTYPES[dtype], shape, strides)
            if place.claimed != end - begin:
                raise ValueError(f"{brief(name)} has {end - begin:,} bytes, and its shape takes {place.claimed:,}")
            places[name] = place
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:_MAX_REASON]}" if type(error) is not ValueError else str(error)
        raise CheckpointError(f"Expected {str(file.path)!r} to be a whole safetensors file, but: {reason}.") from error
    return places, left_out


def _header(file: StoredFile) -> tuple[dict[str, Any], int]:
    """Return the entries of the header by name, and the position at which the numbers begin."""
    if file.size < _LENGTH:
        raise ValueError(f"it has {file.size} bytes")
    length = int.from_bytes(file.read(0, _LENGTH), "little")
    start = _LENGTH + length
    if length > _MAX_HEADER or start > file.size:
        raise ValueError(f"its header would have {length:,} bytes; the file has {file.size:,}, or is of another format")
    header = json.loads(file.read(_LENGTH, length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, start


def _entry(name: str, entry: dict[str, Any], num_bytes: int) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"the entry of {brief(name)} is not understood")
    if not begin <= end <= num_bytes:
        raise ValueError(f"the numbers of {brief(name)} would end at byte {end:,} of {num_bytes:,}")
    return dtype, shape, begin, end


# ----------------------------------------------------------------- torch.save


class Archive:
    """The records of a ``torch.save`` file, and the object in it, with tensors that have no numbers.

    Raises an exception of any type if the file is damaged, or holds more than tensors and plain data.
    """

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._records = _records(file)
        if "constants.pkl" in self._records:
            raise ValueError("it is an archive of TorchScript")
        self._is_swapped = "byteorder" in self._records and self._bytes("byteorder").decode() != sys.byteorder
        self._storages: dict[str, torch.storage.TypedStorage] = {}
        self._starts: dict[int, tuple[int, int]] = {}  # start and number of bytes, by address of the C++ storage
        unpickler = cast("Any", Unpickler(io.BytesIO(self._bytes(_PICKLE)), encoding="utf-8"))
        unpickler.persistent_load = self._storage
        try:
            self.content: object = unpickler.load()  # its tensors are on the meta device
        finally:
            # PyTorch validates the sparse tensors of a file after loading it; here they have no numbers to validate.
            getattr(torch._utils, "_sparse_tensors_to_validate", []).clear()

    def place_of(self, tensor: Tensor) -> Place | None:
        """Return where the numbers of a tensor lie; None if they have no record, as for sparse tensors."""
        if not is_plain(tensor) or not tensor.is_meta:
            return None
        record = self._starts.get(tensor.untyped_storage()._cdata)
        return None if record is None else Place.of(tensor, self._file, *record, is_swapped=self._is_swapped)

    def with_numbers(self, value: Any, depth: int = 0) -> Any:
        """Return a value from the content with the numbers of all readable tensors."""
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

    def _record(self, name: str) -> tuple[int, int]:
        """Return where the record of this name begins, and its number of bytes."""
        if name not in self._records:
            raise ValueError(f"it has no record {brief(name)}")
        return self._records[name]

    def _bytes(self, name: str) -> bytes:
        return bytes(self._file.read(*self._record(name)))

    def _storage(self, key: tuple[Any, ...]) -> torch.storage.TypedStorage:
        """Return a storage without numbers for the pickle's ``("storage", type, key, location, size)``."""
        _, kind, name, _, numel = key
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        num_bytes = numel * dtype.itemsize
        if name not in self._storages:
            start, available = self._record(f"data/{name}")
            if not 0 <= num_bytes <= available:
                raise ValueError(f"a tensor claims {num_bytes:,} bytes of a record of {available:,}")
            storage = torch.UntypedStorage(num_bytes, device="meta")
            self._starts[storage._cdata] = start, num_bytes
            self._storages[name] = torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
        return self._storages[name]


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is strided, neither nested nor quantised, and of no subclass."""
    is_odd = tensor.is_nested or tensor.is_quantized
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not is_odd


def _records(file: StoredFile) -> dict[str, tuple[int, int]]:
    """Return the start and the number of bytes of each record, by its name without the folder that all names share."""
    try:
        with zipfile.ZipFile(file.raw) as archive:
            entries = archive.infolist()
    finally:
        file.read(0, 0)  # raises if the file has changed
    prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
    records: dict[str, tuple[int, int]] = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its records are compressed, which torch.save never does")
        header = file.read(entry.header_offset, _LOCAL_HEADER)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = entry.header_offset + _LOCAL_HEADER + lengths
        if start + entry.file_size > file.size:
            raise ValueError(f"its record {brief(entry.filename)} goes beyond the end of the file")
        records[entry.filename.removeprefix(prefix)] = start, entry.file_size
    return records
