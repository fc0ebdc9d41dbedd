"""Sketches matrices in one pass over their rows.

The sketch of a row is its norm and a few scalar products with fixed random vectors
(:mod:`lightning_symmetry.matrices.projections`). Small matrices are read together, and the sketches of all matrices
come to the host in one transfer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows, sketch_small
from lightning_symmetry.matrices.numerics import Floats, Indices, to_host
from lightning_symmetry.matrices.rows import Rows

# Numbers of small matrices that are copied together at once.
_STACK_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Sketch:
    """Norms and projections of the rows of a matrix, on the host."""

    # L2 norm of every row, `(n,)`; zero for rows below the smallest normal number, NaN for rows that are not finite
    norms: Floats
    projections: Floats  # scalar products of every row with fixed random vectors, `(NUM_PROJECTIONS, n)`


def sketch_all(matrices: Sequence[Rows]) -> list[Sketch]:
    """Read every row of some matrices once; the result comes to the host in one transfer per device and dtype."""
    sketches: dict[int, Sketch] = {}
    kinds: dict[object, list[int]] = {}
    for i, rows in enumerate(matrices):
        kinds.setdefault((rows.device, rows.compute_dtype), []).append(i)
    for numbers in kinds.values():
        found = _sketch_of_one_dtype([matrices[i] for i in numbers])
        sketches.update(zip(numbers, found, strict=True))
    return [sketches[i] for i in range(len(matrices))]


def _sketch_of_one_dtype(matrices: Sequence[Rows]) -> list[Sketch]:
    """Sketch matrices of one device and dtype."""
    dtype = matrices[0].compute_dtype
    host = to_host(torch.cat(_sketches_on_device(matrices), dim=1), dtype)
    bounds = [0, *accumulate(rows.num_rows for rows in matrices)]
    norms, projections = host[0], host[1:]
    limits = torch.finfo(dtype)
    extreme = np.flatnonzero(~((norms > limits.tiny**0.4) & (norms < limits.max**0.4)))
    if len(extreme):
        _recompute_norms(matrices, bounds, norms, extreme)
        norms[extreme[norms[extreme] < limits.tiny]] = 0.0
        norms[extreme[~np.isfinite(host[:, extreme]).all(axis=0)]] = math.nan
    return [Sketch(norms[a:b], projections[:, a:b]) for a, b in pairwise(bounds)]


def _sketches_on_device(matrices: Sequence[Rows]) -> list[Tensor]:
    """Sketch each matrix; small ones whose rows have the same length are read together."""
    sketches: dict[int, Tensor] = {}
    alike: dict[object, list[tuple[int, DenseRows]]] = {}
    for i, rows in enumerate(matrices):
        if isinstance(rows, DenseRows) and rows.is_small:
            alike.setdefault((rows.widths, rows.dtype), []).append((i, rows))
        else:
            sketches[i] = rows.sketch()
    for small in alike.values():
        for part in _stacks(small):
            numbers, stacked = zip(*part, strict=True)
            columns = torch.split(sketch_small(stacked), [rows.num_rows for rows in stacked], dim=1)
            sketches.update(zip(numbers, columns, strict=True))
    return [sketches[i] for i in range(len(matrices))]


def _stacks(small: Sequence[tuple[int, DenseRows]]) -> Iterator[list[tuple[int, DenseRows]]]:
    """Split numbered matrices into parts that are small enough to be copied together."""
    part: list[tuple[int, DenseRows]] = []
    num_elements = 0
    for i, rows in small:
        num_elements += rows.num_rows * rows.width
        if part and num_elements > _STACK_ELEMENTS:
            yield part
            part, num_elements = [], rows.num_rows * rows.width
        part.append((i, rows))
    yield part


def _recompute_norms(matrices: Sequence[Rows], bounds: Sequence[int], norms: Floats, extreme: Indices) -> None:
    """Recompute, in place, the norms of sorted ``extreme`` rows, whose squares may have left the range of the dtype.

    ``bounds`` holds the first row of each matrix, and the number of all rows.
    """
    cuts = np.searchsorted(extreme, bounds).tolist()
    parts = [
        (rows, extreme[a:b], extreme[a:b] - start)
        for rows, (a, b), start in zip(matrices, pairwise(cuts), bounds[:-1], strict=True)
        if b > a and rows.width and not rows.norms_stay_in_range
    ]
    if not parts:
        return
    places = np.concatenate([place for _, place, _ in parts])
    norms[places] = to_host(torch.cat([rows.largest(index) for rows, _, index in parts]))
    for rows, place, index in parts:
        is_number = (norms[place] > 0) & np.isfinite(norms[place])
        if is_number.any():
            norms[place[is_number]] = rows.scaled_norms(index[is_number], norms[place[is_number]])
