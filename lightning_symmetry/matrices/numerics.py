"""Reads numbers in blocks: sums and norms of rows, and transfers to the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]
Integers = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]

# Users may change the default device, so tensors of this package name the CPU.
CPU = torch.device("cpu")

# How many elements are read at once: reductions pass over a block several times while a cache holds it. Blocks
# that have to be copied, to be converted or subtracted, are smaller.
BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 23}
COPY_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 23}


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Disable autograd and autocast inside, whatever the caller has enabled."""
    with torch.no_grad():
        if torch.is_autocast_enabled(device.type):  # entering the context below is not cheap
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured; no numbers may be copied to the host meanwhile."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def to_host(tensor: Tensor, dtype: torch.dtype = torch.float64) -> Floats:
    """Copy numbers from their device to an array. This is the only place where the host waits."""
    numbers: Floats = tensor.to(CPU).to(dtype).numpy()
    return numbers


def has_exact_products() -> bool:
    """Return whether matrix products of float32 on the CPU use all digits; users may allow PyTorch to use fewer."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set in ways that contradict each other
        return False


def elements_at_once(limits: dict[str, int], device: torch.device) -> int:
    """Return the limit for a device; accelerators other than CUDA have the limit of CUDA."""
    return limits.get(device.type, limits["cuda"])


def reduce_rows(block: Tensor, vectors: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return norms of rows, and their products with vectors that are constant over chunks of columns.

    Args:
        block: rows ``(m, w)``.
        vectors: one number per chunk, ``(k, ceil(w / chunk))``.
        chunk: number of columns in a chunk.

    Returns:
        Norms ``(m,)`` and products ``(k, m)``.
    """
    return norms_of(block, chunk), (vectors[:, None, :] * chunk_sums(block, chunk)).sum(dim=2)


def chunk_sums(block: Tensor, chunk: int) -> Tensor:
    """Return sums over chunks of neighbouring columns, ``(m, w)`` to ``(m, ceil(w / chunk))``."""
    if is_column_major(block):  # PyTorch is 10 times as fast if the result has the layout of the block
        return torch.cat([part.movedim(0, -1).sum(dim=1) for part in _in_chunks(block, chunk)]).T
    if chunk > 1:
        return torch.cat([part.sum(dim=2) for part in _in_chunks(block, chunk)], dim=1)
    return block


def norms_of(block: Tensor, chunk: int) -> Tensor:
    """Return L2 norms of rows, ``(m, w)`` to ``(m,)``.

    The norms of chunks are taken first where ``chunk`` is more than 1: ``vector_norm`` of long rows is less accurate.
    """
    if is_column_major(block):
        return (block * block).sum(dim=1).sqrt()  # 30 times as fast here as vector_norm
    if chunk > 1:
        block = torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in _in_chunks(block, chunk)], dim=1)
    norms: Tensor = torch.linalg.vector_norm(block, dim=1)
    return norms


def is_column_major(block: Tensor) -> bool:
    """Return whether the numbers of a column are closer in memory than those of a row."""
    return 0 < block.stride(0) < block.stride(1)


def columns_by(label: Integers, width: int) -> tuple[Tensor, int]:
    """Return the index of the sum to which each column contributes when columns are added up by label.

    Args:
        label: a label for every column of a run, ``(r,)``.
        width: number of columns of a row, made of ``width / r`` runs; different runs are never added up.

    Returns:
        The index of the sum to which each column belongs, ``(width,)``, and the number of sums.
    """
    unique, place = np.unique(label, return_inverse=True)
    runs = np.arange(width // len(label))[:, None] * len(unique)
    return torch.from_numpy((runs + place).ravel()), len(unique) * len(runs)


def _in_chunks(block: Tensor, chunk: int) -> list[Tensor]:
    """Split the columns into chunks, ``(m, c, chunk)``, and a remainder, ``(m, 1, rest)``, if any."""
    whole = block.shape[1] // chunk * chunk
    parts = [block[:, :whole].view(len(block), -1, chunk)] if whole else []
    return parts + ([block[:, None, whole:]] if whole < block.shape[1] else [])
