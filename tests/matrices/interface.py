"""Every method of the interface for rows against brute force in float64, whichever kind of rows it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry.matrices.numerics import Indices
from lightning_symmetry.matrices.projections import (
    NUM_ESTIMATED,
    NUM_FURTHER,
    NUM_PROJECTIONS,
    NUM_ROUGH,
    PERIOD,
    chunk_of,
    further_chunk_of,
    further_vectors,
    position_vector,
    random_vectors,
    rough_vectors,
)
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PieceCase:
    """One piece of a matrix.

    Attributes:
        row_shape: the shape of one row of it.
        dtype: its dtype.
        layout: how it lies in memory; "separate" is one tensor per row.
    """

    row_shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str


@dataclass(frozen=True)
class MatrixCase:
    """A matrix to ask about.

    Attributes:
        num_rows: number of its rows.
        pieces: its pieces, side by side.
        exponent: all numbers are multiplied by ten to this power.
        seed: of its numbers.
    """

    num_rows: int
    pieces: tuple[PieceCase, ...]
    exponent: int
    seed: int

    def tensors(self) -> list[Tensor]:
        """The pieces, ``(num_rows, *row_shape)``, in their dtypes; some rows are constant, zero, or nearly equal."""
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for piece in self.pieces:
            numbers = torch.randn(self.num_rows, *piece.row_shape, generator=generator, dtype=torch.float64)
            if self.num_rows > 1:
                numbers[1] = numbers[0] * (1 + 1e-3 * torch.randn(piece.row_shape, generator=generator))
            numbers[2::5] = 0.5
            numbers[3::5] = 0.0
            found.append((numbers * 10.0**self.exponent).to(piece.dtype))
        return found

    def exact(self) -> Tensor:
        """The matrix in float64."""
        return torch.cat([tensor.double().reshape(self.num_rows, -1) for tensor in self.tensors()], dim=1)

    @property
    def is_extreme(self) -> bool:
        """Whether squares may leave the range of float32."""
        return abs(self.exponent) > 10


def laid_out(tensor: Tensor, layout: str) -> Tensor | list[Tensor]:
    """The same numbers in another place."""
    if layout == "separate":
        return [row.clone() for row in tensor]
    if layout == "column-major":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "with gaps":
        return torch.stack([tensor, torch.full_like(tensor, 7)], dim=-1)[..., 0]
    return tensor


@st.composite
def matrix_cases(draw: st.DrawFn) -> MatrixCase:
    num_rows = draw(st.sampled_from([1, 2, 3, 7, 20, 300]))
    widths = [1, 2, 5, 31, 64, 300, 700] + ([5000] if num_rows <= 7 else [])
    shapes = st.sampled_from([(width,) for width in widths] + [(), (3, 5), (30, 3, 3)])
    dtypes = st.sampled_from(DTYPES)
    layouts = st.sampled_from(["row-major", "column-major", "with gaps", "separate"])
    pieces = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(shapes)
        # The columns of a flattened row go in the order of memory, which brute force does not know of.
        layout = draw(layouts) if len(shape) == 1 else "row-major"
        pieces.append(PieceCase(shape, draw(dtypes), layout))
    exponents = [0] if any(piece.dtype == torch.float16 for piece in pieces) else [0, 0, -25, 25]
    return MatrixCase(num_rows, tuple(pieces), draw(st.sampled_from(exponents)), draw(st.integers(0, 2**31)))


class Asked:
    """Rows, and what is known of them by brute force.

    Attributes:
        rows: what is asked.
        tensors: the pieces of the matrix.
        exact: the matrix in float64.
        case: how it was made.
        has_one_vector: whether the sketch has one random vector for all pieces, as that of small dense matrices.
    """

    def __init__(self, rows: Rows, case: MatrixCase, *, has_one_vector: bool) -> None:
        self.rows, self.case, self.has_one_vector = rows, case, has_one_vector
        self.tensors, self.exact = case.tensors(), case.exact()
        self.norms = self.exact.norm(dim=1).numpy()
        self.size = 10.0**case.exponent
        self.tolerance = 1e-9 if rows.compute_dtype == torch.float64 else 2e-4

    def indices(self) -> Iterator[Indices]:
        """Rows in order, in any order and repeated, one, and none."""
        generator = np.random.default_rng(self.case.seed)
        yield np.arange(self.case.num_rows)
        yield generator.integers(0, self.case.num_rows, 9)
        yield np.array([self.case.num_rows - 1])
        yield np.empty(0, dtype=np.intp)

    def close(self, found: npt.ArrayLike, expected: npt.ArrayLike, scale: npt.ArrayLike = 1.0) -> None:
        """The same up to rounding, as a part of ``scale``."""
        found, expected, scale = np.asarray(found), np.asarray(expected), np.asarray(scale)
        assert found.shape == expected.shape
        assert (np.abs(found - expected) <= self.tolerance * (np.abs(expected) + scale)).all()


def spread(vectors: Tensor, chunk: int, width: int) -> Tensor:
    """A number for every column where there is one for every chunk."""
    return vectors.double().repeat_interleave(chunk, dim=1)[:, :width]


def check_attributes(asked: Asked) -> None:
    rows, case = asked.rows, asked.case
    dtypes = {piece.dtype for piece in case.pieces}
    assert (rows.num_rows, rows.width) == asked.exact.shape
    assert rows.widths == tuple(math.prod(piece.row_shape) for piece in case.pieces)
    assert torch.finfo(rows.dtype).eps == max(torch.finfo(dtype).eps for dtype in dtypes)
    assert rows.compute_dtype == (torch.float64 if dtypes == {torch.float64} else torch.float32)
    assert rows.device == torch.device("cpu")
    assert rows.chunk == (1 if asked.has_one_vector else max(map(chunk_of, rows.widths)))


def check_norms_stay_in_range(asked: Asked) -> None:
    if asked.rows.norms_stay_in_range:
        asked.close(asked.rows.sketch()[0], asked.norms)


def check_sketch(asked: Asked) -> None:
    rows = asked.rows
    [together] = sketch_all([rows])
    asked.close(together.norms, asked.norms, 0.0)
    if asked.case.is_extreme:
        return
    widths = [rows.width] if asked.has_one_vector else rows.widths
    offsets = [sum(widths[:i]) for i in range(len(widths))]
    vectors = []
    for offset, width in zip(offsets, widths, strict=True):
        chunk = 1 if asked.has_one_vector else chunk_of(width)
        numbers = random_vectors(offset, NUM_PROJECTIONS, -(-width // chunk), torch.float64, rows.device)
        vectors.append(spread(numbers, chunk, width))
    expected = torch.cat(vectors, dim=1) @ asked.exact.T
    sketch = rows.sketch()
    assert sketch.shape == (1 + NUM_PROJECTIONS, rows.num_rows)
    assert sketch.device == rows.device
    asked.close(sketch[0].double(), asked.norms)
    asked.close(sketch[1:].double(), expected, asked.norms)


def check_windows(asked: Asked) -> None:
    if asked.case.num_rows < 2:
        return
    apart = float((asked.exact[0] - asked.exact[1]).norm())
    tolerance = min(0.5, apart / asked.norms[:2].max())
    [sketch] = sketch_all([asked.rows])
    window, norm_window = asked.rows.windows(tolerance)
    directions = sketch.projections[:, :2] / sketch.norms[:2]
    assert np.abs(directions[:, 0] - directions[:, 1]).max() <= window
    assert abs(math.log(sketch.norms[0] / sketch.norms[1])) <= norm_window


def check_further_windows(asked: Asked) -> None:
    if asked.case.num_rows < 2:
        return
    apart = float((asked.exact[0] - asked.exact[1]).norm())
    tolerance = min(0.5, apart / asked.norms[:2].max())
    directions = asked.rows.project(np.arange(2)) / asked.norms[:2]
    assert np.abs(directions[:, 0] - directions[:, 1]).max() <= asked.rows.further_windows(tolerance)[0]


def further(asked: Asked) -> Tensor:
    width = asked.rows.width
    return spread(further_vectors(width, torch.float64, asked.rows.device), further_chunk_of(width), width)


def check_project(asked: Asked) -> None:
    for index in asked.indices():
        expected = further(asked) @ asked.exact[index].T
        assert expected.shape == (NUM_FURTHER, len(index))
        asked.close(asked.rows.project(index), expected, asked.norms[index])


def check_project_around(asked: Asked) -> None:
    dtypes = {piece.dtype for piece in asked.case.pieces}
    rounding = 1e-6 if torch.float64 in dtypes and len(dtypes) > 1 else 1e-9  # next to others, float64 is rounded
    for index in asked.indices():
        for origins in (np.zeros_like(index), np.roll(index, 1)):
            scale = np.maximum(asked.norms[index], asked.norms[origins]) + asked.size
            products, distances = asked.rows.project_around(index, origins, scale)
            expected = (further(asked) @ asked.exact[index].T).numpy()
            apart = (asked.exact[index] - asked.exact[origins]).norm(dim=1).numpy()
            # As exact as in float64 but for the rounding of the differences.
            assert (np.abs(products - expected) <= 1e-5 * apart + rounding * scale).all()
            asked.close(distances, asked.rows.distances(index, origins, scale))


def check_project_roughly(asked: Asked) -> None:
    width = asked.rows.width
    vectors = spread(rough_vectors(width, torch.float64, asked.rows.device), further_chunk_of(width), width)
    for index in asked.indices():
        expected = vectors @ asked.exact[index].T
        assert expected.shape == (NUM_ROUGH, len(index))
        asked.close(asked.rows.project_roughly(index), expected, asked.norms[index])


def check_positions(asked: Asked) -> None:
    width = asked.rows.width
    vector = position_vector(width, torch.float64, asked.rows.device)
    signed = torch.cat([(-1) ** i * vector for i in range(-(-width // PERIOD))])[:width]
    for index in asked.indices():
        asked.close(asked.rows.positions(index), asked.exact[index] @ signed, asked.norms[index])


def check_distances(asked: Asked) -> None:
    for index in asked.indices():
        for others in (np.roll(index, 1), np.zeros_like(index)):
            factors = np.random.default_rng(len(index)).choice([1.0, -1.0, 0.25, -3.0], len(index))
            check_scaled_distances(asked, index, others, None)
            check_scaled_distances(asked, index, others, factors)


def check_scaled_distances(
    asked: Asked, index: Indices, others: Indices, factors: npt.NDArray[np.float64] | None
) -> None:
    scale = np.maximum(asked.norms[index], asked.norms[others]) + asked.size
    found = asked.rows.distances(index, others, scale, factors)
    times = torch.ones(len(index)) if factors is None else torch.from_numpy(factors)
    differences = asked.exact[index] - times[:, None] * asked.exact[others]
    expected = differences.norm(dim=1).numpy() / scale
    is_exact = np.abs(found - expected) <= asked.tolerance * (expected + 1)
    if is_exact.all():
        return
    # Rows on several ranks are compared with many others by random projections.
    assert len(np.unique(others)) * asked.rows.width > 1 << 14
    estimated = (differences @ further(asked)[:NUM_ESTIMATED].T).square().mean(dim=1).sqrt().numpy() / scale
    asked.close(found, estimated, 3.0)


def check_constants(asked: Asked) -> None:
    for index in asked.indices():
        for piece, tensor in enumerate(asked.tensors):
            numbers = tensor.double().reshape(len(tensor), -1)
            is_constant = (numbers == numbers[:, :1]).all(dim=1)
            expected = torch.where(is_constant, numbers[:, 0], math.nan)[index]
            if asked.rows.compute_dtype == torch.float32:
                expected = expected.float().double()
            found = asked.rows.constants(index, piece)
            # A row of float64 may be constant in float32, in which it is compared if another piece is coarser.
            rounded = numbers.to(asked.rows.compute_dtype)
            is_constant = (rounded == rounded[:, :1]).all(dim=1)[index]
            assert (np.isnan(found) == ~is_constant.numpy()).all()
            assert (np.isnan(found) | np.isnan(expected.numpy()) | (found == expected.numpy())).all()
        assert np.array_equal(asked.rows.constants(index), asked.rows.constants(index, 0), equal_nan=True)


def check_sums_by(asked: Asked) -> None:
    width = asked.rows.width
    for num_runs in {1, 2 - width % 2}:
        label = np.random.default_rng(width).integers(0, 4, width // num_runs) * 3
        labels = np.unique(label)
        for index in asked.indices():
            sums, norms = asked.rows.sums_by(index, label)
            assert sums.shape == (len(index), num_runs * len(labels))
            runs = asked.exact[index].numpy().reshape(len(index), num_runs, width // num_runs)
            expected = np.stack([runs[:, :, label == value].sum(axis=2) for value in labels], axis=2)
            asked.close(sums, expected.reshape(sums.shape), asked.norms[index][:, None])
            asked.close(norms, asked.norms[index])


def check_fetch(asked: Asked) -> None:
    for index in asked.indices():
        found = asked.rows.fetch(index)
        assert found.dtype == asked.rows.compute_dtype
        assert torch.equal(found, asked.exact[index].to(found.dtype))


def check_largest(asked: Asked) -> None:
    for index in asked.indices():
        expected = asked.exact[index].abs().amax(dim=1)
        found = asked.rows.largest(index)
        assert found.device == asked.rows.device
        asked.close(found.double(), expected, 0.0)


def check_scaled_norms(asked: Asked) -> None:
    largest = asked.exact.abs().amax(dim=1).numpy()
    for index in asked.indices():
        index = index[largest[index] > 0]
        asked.close(asked.rows.scaled_norms(index, largest[index]), asked.norms[index], 0.0)


CHECKS: dict[str, Callable[[Asked], None]] = {
    "norms_stay_in_range": check_norms_stay_in_range,
    "sketch": check_sketch,
    "windows": check_windows,
    "further_windows": check_further_windows,
    "project": check_project,
    "project_around": check_project_around,
    "project_roughly": check_project_roughly,
    "positions": check_positions,
    "distances": check_distances,
    "constants": check_constants,
    "sums_by": check_sums_by,
    "fetch": check_fetch,
    "largest": check_largest,
    "scaled_norms": check_scaled_norms,
}
"""By name of a member of the interface, what compares it with brute force."""


def check_all(asked: Asked) -> None:
    """Go through all of the interface."""
    check_attributes(asked)
    for check in CHECKS.values():
        check(asked)
