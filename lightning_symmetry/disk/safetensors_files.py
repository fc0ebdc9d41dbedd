"""Files of safetensors: a header with the names, shapes and places of tensors, and their numbers behind it."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import torch

from lightning_symmetry.brief import brief
from lightning_symmetry.disk.files import CheckpointError, Place, StoredFile

_MAX_HEADER = 100_000_000  # as in the library safetensors
_LENGTH = 8
_MAX_REASON = 200
# By the names of the format; those that this version of PyTorch does not have are left out.
_NAMES = (
    *(("F64", "float64"), ("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("C64", "complex64")),
    *(("I64", "int64"), ("I32", "int32"), ("I16", "int16"), ("I8", "int8"), ("BOOL", "bool")),
    *(("U64", "uint64"), ("U32", "uint32"), ("U16", "uint16"), ("U8", "uint8")),
    *(("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("F8_E8M0", "float8_e8m0fnu")),
    *(("F8_E4M3FNUZ", "float8_e4m3fnuz"), ("F8_E5M2FNUZ", "float8_e5m2fnuz")),
)
_DTYPES = {name: getattr(torch, ours) for name, ours in _NAMES if hasattr(torch, ours)}


def places_in_safetensors(file: StoredFile) -> tuple[dict[str, Place], dict[str, str]]:
    """Read the header of a file of safetensors.

    Returns:
        The places of its tensors by name, and, by name, why others are left out.

    Raises:
        CheckpointError: if the file is damaged, or in another format.
    """
    try:
        header, start = _header(file)
        places: dict[str, Place] = {}
        left_out: dict[str, str] = {}
        for name, entry in header.items():
            dtype, shape, begin, end = _entry(name, entry, file.size - start)
            if dtype not in _DTYPES:
                left_out[name] = f"its dtype {dtype} is not one that this package reads"
                continue
            place = Place(file, start + begin, end - begin, _DTYPES[dtype], shape, _strides(shape))
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
    """The entries of the header by name, and where the numbers begin."""
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


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
