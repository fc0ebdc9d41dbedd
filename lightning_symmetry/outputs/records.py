"""Records of TensorBoard's event files.

TensorBoard computes their checksums byte by byte in Python, which takes longer than the rest of writing them.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), bits reversed (RFC 3720, section 12.1)
_BLOCK = 256  # bytes whose contributions are added in one call of numpy
_SLAB = 1 << 20  # bytes that are looked up at once
_ONES = 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """Return a record with this content: its length, the content, and masked checksums of both (TFRecord format)."""
    length = struct.pack("<Q", len(data))
    return length + _masked(crc32c(length)) + data + _masked(crc32c(data))


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    tables = _tables()
    if len(data) < _BLOCK // 2:
        state = _ONES
        for byte in data:
            state = tables.last[(state ^ byte) & 0xFF] ^ (state >> 8)
        return state ^ _ONES
    # The checksum is linear: it is the sum, modulo 2, of what each byte contributes at its place. Zeros in front
    # contribute nothing, and a state is added to the next four bytes.
    numbers = np.zeros(-(-len(data) // _BLOCK) * _BLOCK, dtype=np.uint8)
    content = numbers[len(numbers) - len(data) :]
    content[:] = np.frombuffer(data, dtype=np.uint8)
    content[:4] ^= 0xFF
    first, second, third, fourth = tables.first
    state = 0
    for start in range(0, len(numbers), _SLAB):
        places = numbers[start : start + _SLAB].reshape(-1, _BLOCK) + tables.offsets
        for block in np.bitwise_xor.reduce(tables.every[places], axis=1).tolist():
            earlier = first[state & 0xFF] ^ second[state >> 8 & 0xFF] ^ third[state >> 16 & 0xFF] ^ fourth[state >> 24]
            state = block ^ earlier
    return state ^ _ONES


class _Tables(NamedTuple):
    """What each byte contributes to the checksum of a block, by its place in the block."""

    every: npt.NDArray[np.uint32]  # those of all places, one after the other
    offsets: npt.NDArray[np.intp]  # where those of each place begin, `(_BLOCK,)`
    first: list[list[int]]  # those of the first four places
    last: list[int]  # those of the last place


@cache
def _tables() -> _Tables:
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL) * (last & np.uint32(1))
    behind = last[None]  # by the number of bytes that follow
    while len(behind) < 4:
        behind = np.concatenate([behind, last[behind[-1:] & 0xFF] ^ (behind[-1:] >> np.uint32(8))])
    # A checksum followed by zeros is the sum of what its four bytes contribute that much earlier.
    while len(behind) < _BLOCK:
        more = behind[-1][behind & 0xFF]
        for i in (1, 2, 3):
            more ^= behind[-1 - i][behind >> np.uint32(8 * i) & 0xFF]
        behind = np.concatenate([behind, more])
    every = behind[::-1]
    return _Tables(every.ravel(), np.arange(0, every.size, 256), every[:4].tolist(), last.tolist())


def _masked(checksum: int) -> bytes:
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & _ONES)
