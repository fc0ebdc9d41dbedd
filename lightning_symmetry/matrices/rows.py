"""Matrices whose rows are compared: read once for a sketch of each row, and again only where two rows may agree.

The sketch of a row is its norm and three scalar products with fixed random vectors. These vectors are constant over
chunks of neighbouring columns, so that a product takes the sums of the chunks and little else: reading at the speed of
memory, in the accuracy of ``torch.sum``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

NUM_PROJECTIONS = 3
NUM_FURTHER = 4

# The random vectors hold numbers uniform in [-sqrt(3), sqrt(3)], whose moment generating function is that of a variance
# of 1 or less: sinh(a t) / (a t) <= exp(t^2 / 2) for a = sqrt(3). So the product with a fixed vector e, whose sums over
# the chunks are s, exceeds t |s| with a probability below 2 exp(-t^2 / 2), which is 3e-14 for t = 8; and |s| is at most
# sqrt(chunk) |e|. Cauchy-Schwarz gives sqrt(3 d) |e|: certain, but thousands of strangers lie within that.
_SIGMAS = 8.0
_LARGEST = math.sqrt(3)
# torch.sum adds pairwise, with an error of at most log2(d) roundings (Higham 1993, doi:10.1137/0914050), and norms are
# taken of chunks first; here with room for what comes before and after. A matrix product adds one by one, and may round
# its input to tf32 or bfloat16.
_ROUNDING = 4.0
# Elements read at once: reductions run over a block several times while the last cache holds it. Blocks that have to
# be copied, to be converted or subtracted, are smaller.
_BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 23}
COPY_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 23}
# Matrices smaller than this cost what calling PyTorch costs, so those of one shape are read together.
_SMALL_ELEMENTS = 1 << 16
_STACK_ELEMENTS = 1 << 19
_WITH_FLOAT64 = ("cpu", "cuda")  # kinds of devices that are sure to compute in it
# After so many columns a random vector starts again, with the other sign.
PERIOD = 1 << 16
# A tensor that cannot be flattened without a copy is read plane by plane, unless it has more than these.
_MAX_PLANES = 8
# The global default device is the user's; what is small is kept on the CPU.
_CPU = torch.device("cpu")


class UnreadableError(Exception):
    """A tensor whose numbers this package cannot find; the message says why."""


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No autograd and no autocast inside, whatever the caller has switched on."""
    with torch.no_grad():
        if torch.is_autocast_enabled(device.type):  # entering the context below is not cheap
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield


class Rows:
    """A matrix ``(n, d)`` in pieces that lie side by side, for example a weight and its bias; never copied whole.

    Args:
        pieces: tensors of shape ``(n, ...)`` with any strides, or lists of ``n`` tensors of one shape; the dimensions
            of a row count as flattened.
    """

    def __init__(self, pieces: Sequence[Tensor | Sequence[Tensor]]) -> None:
        self.pieces = tuple(pieces)
        samples = [piece if isinstance(piece, Tensor) else piece[0] for piece in self.pieces]
        num_rows = len(self.pieces[0])
        widths = [
            sample.numel() // max(1, num_rows) if sample is piece else sample.numel()
            for sample, piece in zip(samples, self.pieces, strict=True)
        ]
        is_one_tensor_each = all(sample is piece for sample, piece in zip(samples, self.pieces, strict=True))
        device = samples[0].device
        is_small = is_one_tensor_each and num_rows * sum(widths) <= _SMALL_ELEMENTS and device.type in _WITH_FLOAT64
        self._describe(num_rows, widths, {sample.dtype for sample in samples}, device, is_small)

    def _describe(
        self, num_rows: int, widths: Sequence[int], dtypes: set[torch.dtype], device: torch.device, is_small: bool
    ) -> None:
        self.num_rows = num_rows
        self.widths = tuple(widths)
        self.width = sum(widths)
        self.device = device
        self.is_small = is_small
        self.chunk = 1 if is_small else chunk_of(max(widths, default=0))
        # The coarsest of the dtypes decides what can be told apart.
        self.dtype = dtypes.pop() if len(dtypes) == 1 else max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        self.compute_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self._is_converted = bool(dtypes) or self.dtype != self.compute_dtype

    def sketch(self) -> Tensor:
        """Norm and projections of every row, ``(1 + NUM_PROJECTIONS, n)``, on the device of the rows."""
        if self.is_small:
            return _sketch_small([self])
        sketch: Tensor | None = None
        for start, block, vectors, chunk in self._blocks():
            norms, products = reduce_rows(block.to(self.compute_dtype), vectors, chunk)
            if sketch is None:
                if len(block) == self.num_rows:  # as a rule all there is
                    sketch = torch.cat([norms[None], products])
                    continue
                sketch = norms.new_zeros(1 + NUM_PROJECTIONS, self.num_rows)
            here = sketch[:, start : start + len(block)]
            torch.hypot(here[0], norms, out=here[0])
            here[1:] += products
        if sketch is None:
            sketch = torch.zeros(1 + NUM_PROJECTIONS, self.num_rows, dtype=self.compute_dtype, device=self.device)
        return sketch

    def windows(self, tolerance: float) -> tuple[float, float]:
        """How far the projections of unit rows, and the logarithms of norms, of two rows that agree can lie apart."""
        return _windows(tolerance, self.width, self.chunk, torch.finfo(self.compute_dtype).eps)

    def project(self, index: Indices) -> Floats:
        """Products of a few rows with further random vectors, one number per column, ``(NUM_FURTHER, m)``."""
        vectors = random_vectors(-1, NUM_FURTHER, self.width, self.compute_dtype, self.device)
        parts = []
        for part in self._split(index):
            rows = self.fetch(part)
            parts.append(torch.stack([(rows * vector).sum(dim=1) for vector in vectors]))
        return to_host(torch.cat(parts, dim=1))

    def positions(self, index: Indices) -> Floats:
        """Products of a few rows with one fixed random vector, ``(m,)``: when a row moves, by about as much."""
        [vector] = random_vectors(-2, 1, min(self.width, PERIOD), self.compute_dtype, self.device)
        parts = []
        for part in self._split(index):
            rows = self.fetch(part)
            position = rows.new_zeros(len(rows))
            for i, block in enumerate(torch.split(rows, PERIOD, dim=1)):  # whole modules are rows too
                position += (-1) ** i * (block * vector[: block.shape[1]]).sum(dim=1)
            parts.append(position)
        return to_host(torch.cat(parts))

    def further_window(self, tolerance: float) -> float:
        """How far the products of :meth:`project` with two unit rows that agree can lie apart."""
        return _windows(tolerance, self.width, 1, torch.finfo(self.compute_dtype).eps)[0]

    def distances(self, index: Indices, leaders: Indices, scale: Floats) -> Floats:
        """L2 distances of the rows at ``index`` from those at ``leaders``, divided by ``scale``; all ``(m,)``."""
        limits = torch.finfo(self.compute_dtype)
        # Divided before it is squared where the square would leave the range of the dtype.
        is_extreme = bool(((scale < limits.tiny**0.4) | (scale > limits.max**0.4)).any())
        order = np.argsort(leaders, kind="stable")
        # Differences take turns in the same memory: fresh memory costs more than reading the rows.
        space = torch.empty(0, dtype=self.compute_dtype, device=self.device)
        parts = []
        for part in self._split(order):
            rows, others = index[part], leaders[part]
            others = others[:1] if others[0] == others[-1] else others
            size = torch.from_numpy(scale[part]).to(self.device, self.compute_dtype)
            distance = torch.zeros_like(size)
            for i in range(len(self.pieces)):
                here, there = self._at(i, rows), self._at(i, others)
                difference = here - there if _is_column_major(here) else torch.sub(here, there, out=space.resize_(0))
                if is_extreme:
                    difference /= size[:, None]
                distance = torch.hypot(distance, _norms(difference, chunk=1))  # a rough sum does
            parts.append(distance if is_extreme else distance / size)
        distances = np.empty(len(index))
        if parts:
            distances[order] = to_host(torch.cat(parts))
        return distances

    def constants(self, index: Indices) -> Floats:
        """The number that every weight of a row equals, for a few rows, ``(m,)``; NaN where weights differ."""
        parts = []
        for part in self._split(index):
            weights = self._at(0, part)
            first = weights[:, 0]
            parts.append(torch.where((weights == first[:, None]).all(dim=1), first, math.nan))
        return to_host(torch.cat(parts))

    def sums_by(self, index: Indices, label: Indices) -> tuple[Floats, Floats]:
        """Sums over the columns of one label, for rows made of runs of ``len(label)`` columns, and norms.

        Returns:
            ``(m, runs * labels)``, of the labels that occur in ``label``, and ``(m,)``.
        """
        place, num_labels = columns_by(label, self.width)
        sums, squares = np.zeros((len(index), num_labels)), np.zeros(len(index))
        for part in self._split(np.arange(len(index))):
            rows = self.fetch(index[part]).to(_CPU, torch.float64)
            sums[part] = torch.zeros(len(part), num_labels, dtype=rows.dtype, device=_CPU).index_add_(1, place, rows)
            squares[part] = rows.square().sum(dim=1)
        return sums, np.sqrt(squares)

    def fetch(self, index: Indices) -> Tensor:
        """The rows ``(m, d)`` at ``index`` ``(m,)``, in the dtype of the computation."""
        pieces = [self._at(i, index) for i in range(len(self.pieces))]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def largest(self, index: Indices) -> Tensor:
        """The largest absolute value of each row at ``index``, ``(m,)``, on the device of the rows."""
        return torch.cat([self.fetch(part).abs().amax(dim=1) for part in self._split(index)])

    def scaled_norms(self, index: Indices, scale: Floats) -> Floats:
        """Norms ``(m,)`` of the rows at ``index`` by way of squares that cannot leave the range of the dtype."""
        size = torch.from_numpy(scale).to(self.device, self.compute_dtype)
        norms = [
            (self.fetch(index[part]) / size[part, None]).square().sum(dim=1).sqrt()
            for part in self._split(np.arange(len(index)))
        ]
        return to_host(size * torch.cat(norms))

    def _at(self, i: int, index: Indices) -> Tensor:
        """Rows of one piece, ``(m, widths[i])``; a view if they follow one another and strides allow."""
        piece = self.pieces[i]
        if not isinstance(piece, Tensor):
            rows = torch.stack([piece[row] for row in index])
        elif (np.diff(index) == 1).all():
            rows = piece[int(index[0]) : int(index[-1]) + 1]
        else:
            rows = piece.index_select(0, torch.from_numpy(index).to(self.device))
        return rows.reshape(len(index), self.widths[i]).to(self.compute_dtype)

    def _split(self, index: Indices) -> list[Indices]:
        """Parts of ``index`` that are read at once."""
        step = max(1, elements(COPY_ELEMENTS, self.device) // max(1, self.width))
        return [index[start : start + step] for start in range(0, len(index), step)]

    def _blocks(self) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        """What is read at once: its first row, the numbers ``(m, w)``, and random vectors for its chunks of columns."""
        offset = 0
        for piece, width in zip(self.pieces, self.widths, strict=True):
            for plane in _planes(piece):
                plane_width = width if not isinstance(plane, Tensor) else plane[0].numel()
                if plane_width:
                    yield from self._blocks_of(plane, plane_width, offset)
                offset += plane_width

    def _blocks_of(
        self, plane: Tensor | Sequence[Tensor], width: int, offset: int
    ) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        chunk = chunk_of(width)
        vectors = random_vectors(offset, NUM_PROJECTIONS, -(-width // chunk), self.compute_dtype, self.device)
        is_copied = self._is_converted or chunk == 1 or not (isinstance(plane, Tensor) and plane.ndim == 2)
        num_elements = elements(COPY_ELEMENTS if is_copied else _BLOCK_ELEMENTS, self.device)
        if isinstance(plane, Tensor) and plane.ndim == 2 and _is_column_major(plane):
            step = max(1, num_elements // (chunk * len(plane)))  # chunks
            for first in range(0, vectors.shape[1], step):
                block = plane[:, first * chunk : (first + step) * chunk]
                yield 0, block, vectors[:, first : first + step], chunk
            return
        step = max(1, num_elements // width)
        for start in range(0, self.num_rows, step):
            rows = plane[start : start + step]
            if not isinstance(rows, Tensor):
                rows = rows[0] if len(rows) == 1 else torch.stack(list(rows))
            yield start, rows.reshape(-1, width), vectors, chunk


@dataclass(frozen=True)
class Sketch:
    """What one pass over the rows leaves of them, on the host.

    Attributes:
        norms: L2 norm of every row, ``(n,)``; zero for rows below the smallest normal number, NaN for rows that are
            not finite.
        projections: scalar products of every row with fixed random vectors, ``(NUM_PROJECTIONS, n)``.
    """

    norms: Floats
    projections: Floats


def sketch_all(matrices: Sequence[Rows]) -> list[Sketch]:
    """Read every row of some matrices once; the result comes to the host in one transfer per device and dtype."""
    sketches: dict[int, Sketch] = {}
    kinds: dict[object, list[int]] = {}
    for i, rows in enumerate(matrices):
        kinds.setdefault((rows.device, rows.compute_dtype), []).append(i)
    for places in kinds.values():
        found = _sketch_alike([matrices[i] for i in places])
        sketches.update(zip(places, found, strict=True))
    return [sketches[i] for i in range(len(matrices))]


def _sketch_alike(matrices: Sequence[Rows]) -> list[Sketch]:
    """Sketches of matrices of one device and dtype."""
    dtype = matrices[0].compute_dtype
    host = to_host(torch.cat(_device_sketches(matrices), dim=1), dtype)
    bounds = [0, *accumulate(rows.num_rows for rows in matrices)]
    norms, projections = host[0], host[1:]
    limits = torch.finfo(dtype)
    odd = np.flatnonzero(~((norms > limits.tiny**0.4) & (norms < limits.max**0.4)))
    if len(odd):
        _mend(matrices, bounds, norms, odd)
        norms[odd[norms[odd] < limits.tiny]] = 0.0
        norms[odd[~np.isfinite(host[:, odd]).all(axis=0)]] = math.nan
    return [Sketch(norms[a:b], projections[:, a:b]) for a, b in pairwise(bounds)]


def _device_sketches(matrices: Sequence[Rows]) -> list[Tensor]:
    """The sketch of each matrix, small ones whose rows are of the same length taken together."""
    sketches: dict[int, Tensor] = {}
    alike: dict[object, list[int]] = {}
    for i, rows in enumerate(matrices):
        if rows.is_small:
            alike.setdefault((rows.widths, rows.dtype), []).append(i)
        else:
            sketches[i] = rows.sketch()
    for places in alike.values():
        for part in _portions(places, matrices):
            small = [matrices[i] for i in part]
            columns = torch.split(_sketch_small(small), [rows.num_rows for rows in small], dim=1)
            sketches.update(zip(part, columns, strict=True))
    return [sketches[i] for i in range(len(matrices))]


def _sketch_small(matrices: Sequence[Rows]) -> Tensor:
    """Sketches of small matrices whose pieces are of the same widths, side by side."""
    first = matrices[0]
    # In float64 few operations do, and squares stay in range.
    pieces = [torch.cat(column).to(torch.float64) for column in zip(*map(_flat_pieces, matrices), strict=True)]
    stack = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    vectors = random_vectors(0, NUM_PROJECTIONS, first.width, torch.float64, first.device)
    norms = torch.linalg.vector_norm(stack, dim=1)
    return torch.cat([norms[None], vectors @ stack.T]).to(first.compute_dtype)


def _flat_pieces(rows: Rows) -> list[Tensor]:
    """The pieces of a matrix, ``(n, w)`` each."""
    return [
        piece if piece.ndim == 2 else piece.reshape(rows.num_rows, width)
        for piece, width in zip(rows.pieces, rows.widths, strict=True)
        if isinstance(piece, Tensor)
    ]


def _portions(places: Sequence[int], matrices: Sequence[Rows]) -> Iterator[list[int]]:
    """Parts of ``places`` whose matrices may be copied together."""
    part: list[int] = []
    num_elements = 0
    for i in places:
        num_elements += matrices[i].num_rows * matrices[i].width
        if part and num_elements > _STACK_ELEMENTS:
            yield part
            part, num_elements = [], matrices[i].num_rows * matrices[i].width
        part.append(i)
    yield part


def _mend(matrices: Sequence[Rows], bounds: Sequence[int], norms: Floats, odd: Indices) -> None:
    """Set right, in place, the norms of rows whose squares may have left the range."""
    cuts = np.searchsorted(odd, bounds).tolist()
    parts = [
        (rows, odd[a:b], odd[a:b] - start)
        for rows, (a, b), start in zip(matrices, pairwise(cuts), bounds[:-1], strict=True)
        if b > a and rows.width and not (rows.is_small and rows.compute_dtype == torch.float32)
    ]
    if not parts:
        return
    places = np.concatenate([place for _, place, _ in parts])
    norms[places] = to_host(torch.cat([rows.largest(index) for rows, _, index in parts]))
    for rows, place, index in parts:
        is_number = (norms[place] > 0) & np.isfinite(norms[place])
        if is_number.any():
            norms[place[is_number]] = rows.scaled_norms(index[is_number], norms[place[is_number]])


def columns_by(label: Indices, width: int) -> tuple[Tensor, int]:
    """Where each of ``width`` columns goes if those of one label are added up, run by run; and to how many places."""
    unique, place = np.unique(label, return_inverse=True)
    runs = np.arange(width // len(label))[:, None] * len(unique)
    return torch.from_numpy((runs + place).ravel()), len(unique) * len(runs)


def to_host(tensor: Tensor, dtype: torch.dtype = torch.float64) -> Floats:
    """The only way by which numbers leave the device; the host waits here."""
    numbers: Floats = tensor.to(_CPU).to(dtype).numpy()
    return numbers


def reduce_rows(block: Tensor, vectors: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Norms ``(m,)`` and products ``(k, m)`` of a block ``(m, w)`` with vectors ``(k, c)`` of a number per chunk."""
    sums = block
    if _is_column_major(block):  # PyTorch is 10 times as fast if the result lies as the block does
        sums = torch.cat([part.movedim(0, -1).sum(dim=1) for part in _in_chunks(block, chunk)]).T
    elif chunk > 1:
        sums = torch.cat([part.sum(dim=2) for part in _in_chunks(block, chunk)], dim=1)
    return _norms(block, chunk), (vectors[:, None, :] * sums).sum(dim=2)


def _norms(block: Tensor, chunk: int) -> Tensor:
    """L2 norms of rows, ``(m, w)`` to ``(m,)``."""
    if _is_column_major(block):
        return (block * block).sum(dim=1).sqrt()  # 30 times as fast here as vector_norm
    if chunk > 1:
        block = torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in _in_chunks(block, chunk)], dim=1)
    norms: Tensor = torch.linalg.vector_norm(block, dim=1)
    return norms


def _in_chunks(block: Tensor, chunk: int) -> list[Tensor]:
    """The columns in chunks, ``(m, c, chunk)``, and those that are left over, ``(m, 1, rest)``, if any."""
    whole = block.shape[1] // chunk * chunk
    parts = [block[:, :whole].view(len(block), -1, chunk)] if whole else []
    return parts + ([block[:, None, whole:]] if whole < block.shape[1] else [])


def chunk_of(width: int) -> int:
    """Number of columns of a row that share a random number."""
    return 64 if width >= 512 else 32 if width >= 256 else 1


def _planes(piece: Tensor | Sequence[Tensor]) -> list[Tensor | Sequence[Tensor]]:
    """Two-dimensional views that make up a piece side by side, or the piece itself if there are no such views."""
    if not isinstance(piece, Tensor):
        return [piece]
    # The order of the numbers within a row does not matter, as long as it is the same for all: channels last, say.
    dims = sorted(range(1, piece.ndim), key=piece.stride, reverse=True)
    piece = piece.permute(0, *dims)
    if piece.ndim == 1 or (piece.ndim > 2 and piece[0].is_contiguous()):
        return [piece.reshape(len(piece), piece[0].numel())]
    if piece.ndim == 3 and piece.shape[1] <= _MAX_PLANES:
        return list(piece.unbind(1))
    return [piece]


def _is_column_major(block: Tensor) -> bool:
    return 0 < block.stride(0) < block.stride(1)


def elements(limits: dict[str, int], device: torch.device) -> int:
    """How many are read at once on a device."""
    return limits.get(device.type, limits["cuda"])


@lru_cache(maxsize=256)
def random_vectors(offset: int, number: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fixed numbers of mean 0 and variance 1, ``(number, width)``."""
    # A generator of its own: the global one belongs to the training.
    generator = torch.Generator(_CPU).manual_seed(0x5EED + offset)
    uniform = torch.rand(number, width, generator=generator, device=_CPU, dtype=torch.float64)
    return ((2 * uniform - 1) * _LARGEST).to(device, dtype)


@lru_cache(maxsize=1024)
def _windows(tolerance: float, width: int, chunk: int, precision: float) -> tuple[float, float]:
    rounding = _ROUNDING * precision * (1 + math.log2(max(width, 1)))
    # |u_i - u_j| <= 2 |w_i - w_j| / (|w_i| + |w_j|) for unit vectors u (Dunkl and Williams 1964).
    apart = tolerance / (1 - tolerance / 2)
    reach = min(_SIGMAS * math.sqrt(chunk), _LARGEST * math.sqrt(width))
    return reach * apart + rounding * math.sqrt(chunk), -math.log1p(-tolerance) + rounding
