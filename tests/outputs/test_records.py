"""Records of event files, against TensorBoard's own."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as byte_by_byte
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_symmetry.outputs import records
from lightning_symmetry.outputs.records import crc32c, framed


@given(st.one_of(st.binary(max_size=3000), st.binary(min_size=200, max_size=3000)))  # most are short by themselves
def test_the_checksum_is_that_of_tensorboard(data: bytes) -> None:
    assert crc32c(data) == byte_by_byte(data)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 255, 256, 257, 511, 512, 513, 4096, 10_000])
@pytest.mark.parametrize("byte", [0, 1, 255])
def test_so_it_is_at_the_bounds_of_blocks(length: int, byte: int) -> None:
    assert crc32c(bytes([byte]) * length) == byte_by_byte(bytes([byte]) * length)


def test_long_data_are_read_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 20 + b"end"
    whole = crc32c(data)
    monkeypatch.setattr(records, "_SLAB", 1024)
    assert crc32c(data) == whole == byte_by_byte(data)


@given(st.binary(max_size=1000))
def test_records_are_those_of_tensorboard(data: bytes) -> None:
    file = io.BytesIO()
    RecordWriter(file).write(data)
    assert framed(data) == file.getvalue()
