"""Sketches and comparisons of matrices in every layout, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import find_groups
from lightning_symmetry.matrices.projections import NUM_PROJECTIONS
from lightning_symmetry.matrices.question import Question
from lightning_symmetry.matrices.sieve import suspects
from lightning_symmetry.matrices.sketching import sketch_all
from tests.oracle import brute_force_groups

Pieces = list[Tensor | list[Tensor]]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers, of which rows 5 and 40, and 7 and 11, are equal along the first dimension."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    numbers[40], numbers[11] = numbers[5], numbers[7]
    return numbers


def gates(units: int, inputs: int) -> Tensor:
    """As the weights of an LSTM are seen: ``(units, 4, inputs)``, not in one piece in memory."""
    return random(units, 4, inputs).transpose(0, 1).contiguous().transpose(0, 1)


LAYOUTS: dict[str, Callable[[], Pieces]] = {
    "small": lambda: [random(50, 7)],
    "small with bias": lambda: [random(50, 7), random(50)],
    "small of two dtypes": lambda: [random(50, 7), random(50).bfloat16()],
    "narrow": lambda: [random(2000, 70), random(2000)],
    "wide": lambda: [random(64, 5000), random(64)],
    "of odd width": lambda: [random(300, 1037)],
    "in two blocks": lambda: [random(700, 4096)],
    "bfloat16": lambda: [random(400, 600).bfloat16()],
    "bfloat16 in blocks": lambda: [random(600, 2000).bfloat16(), random(600)],
    "float64": lambda: [random(300, 700).double()],
    "transposed": lambda: [random(300, 1500).T.contiguous().T],
    "transposed, in blocks": lambda: [random(100, 50001).T.contiguous().T, random(100)],
    "transposed, narrow": lambda: [random(3000, 60).T.contiguous().T],
    "transposed bfloat16": lambda: [random(300, 1500).bfloat16().T.contiguous().T],
    "convolution": lambda: [random(128, 64, 3, 3), random(128)],
    "channels last": lambda: [random(128, 64, 3, 3).to(memory_format=torch.channels_last)],
    "transposed convolution": lambda: [random(128, 64, 3, 3).transpose(0, 1).contiguous().transpose(0, 1)],
    "gates": lambda: [gates(300, 500), random(300, 4)],
    "every other column": lambda: [random(300, 1000)[:, ::2]],
    "one row over and over": lambda: [random(50, 2000)[:1].expand(50, -1)],
    "separate tensors": lambda: [list(random(50, 40, 60)), list(random(50, 3))],
    "large separate tensors": lambda: [list(random(50, 700, 900))],
}


def dense(pieces: Pieces) -> Tensor:
    tensors = [piece if isinstance(piece, Tensor) else torch.stack(piece) for piece in pieces]
    return torch.cat([tensor.double().reshape(len(tensor), -1) for tensor in tensors], dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_and_groups_in_every_layout(layout: str) -> None:
    pieces = LAYOUTS[layout]()
    rows, exact = DenseRows(pieces), dense(pieces)
    [sketch] = sketch_all([rows])
    assert rows.width == exact.shape[1]
    assert np.allclose(sketch.norms, exact.norm(dim=1).numpy(), rtol=1e-6, atol=0)
    assert sketch.projections.shape == (NUM_PROJECTIONS, len(exact))
    question = Question(rows, sketch, 1e-5)
    # Among few rows, since brute force compares all pairs.
    few = [row for row in range(60) if row < len(exact)]
    expected = brute_force_groups(exact[few], 1e-5)
    assert expected
    assert find_groups(question, among=[few]) == expected
    assert find_groups(question)[: len(expected)] == expected


@pytest.mark.parametrize("tolerance", [1e-5, 1e-2])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("width", [3, 90, 300, 1500, 5003])
def test_rows_that_agree_stay_within_the_windows(width: int, is_transposed: bool, tolerance: float) -> None:
    # However they differ: a bit everywhere, all in one number, by the same in every column of a chunk.
    generator = torch.Generator().manual_seed(0)
    num_rows = 1200
    matrix = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    steps = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    steps[0::3] = 0
    steps[0::3, width // 3] = 1
    steps[1::3] = torch.repeat_interleave(torch.randn(num_rows // 3, width // 64 + 1, generator=generator), 64, 1)[
        :, :width
    ]
    steps *= 0.99 * tolerance * matrix.norm(dim=1, keepdim=True) / steps.norm(dim=1, keepdim=True)
    both = torch.cat([matrix, matrix + steps]).float()
    rows = DenseRows([both.T.contiguous().T if is_transposed else both])
    [sketch] = sketch_all([rows])
    window, norm_window = rows.windows(tolerance)
    directions = sketch.projections / sketch.norms
    assert np.abs(directions[:, :num_rows] - directions[:, num_rows:]).max() <= window
    assert np.abs(np.diff(np.log(sketch.norms).reshape(2, -1), axis=0)).max() <= norm_window
    # And what is further apart by far is told apart by them.
    assert np.abs(np.diff(directions[0])).max() > 20 * window or width == 3 or tolerance == 1e-2
    [found] = suspects([Question(rows, sketch, tolerance)])
    assert len(found) == 2 * num_rows


def test_matrices_sketched_together_come_out_as_alone() -> None:
    matrices = [DenseRows(layout()) for layout in LAYOUTS.values()]
    for together, rows in zip(sketch_all(matrices), matrices, strict=True):
        [alone] = sketch_all([rows])
        assert np.allclose(together.norms, alone.norms, rtol=1e-6, atol=0)
        assert np.allclose(together.projections, alone.projections, rtol=1e-3, atol=1e-4)


def test_matrices_sifted_together_come_out_as_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [DenseRows([random(60, 8 + i) * 10.0**i]) for i in range(5)]
    matrices.append(DenseRows([torch.randn(6000, 3, generator=generator)]))
    matrices += [
        DenseRows([torch.zeros(4, 9)]),
        DenseRows([torch.full((3, 9), math.nan)]),
        DenseRows([random(50, 300).bfloat16()]),
    ]
    questions = [Question(rows, sketch_all([rows])[0], 1e-5, 1 + rows.num_rows % 2) for rows in matrices]
    for together, question in zip(suspects(questions), questions, strict=True):
        assert together.tolist() == suspects([question])[0].tolist()


def test_comparison_in_full() -> None:
    rows, exact = DenseRows([random(100, 3000), random(100)]), dense([random(100, 3000), random(100)])
    index, leaders = np.array([3, 4, 5, 90, 40]), np.array([2, 2, 2, 17, 5])
    scale = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    expected = (exact[index] - exact[leaders]).norm(dim=1).numpy() / scale
    assert np.allclose(rows.distances(index, leaders, scale), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_comparison_of_numbers_whose_squares_leave_the_range(size: float) -> None:
    matrix = random(60, 2000) * size
    matrix[1] = matrix[0] * (1 + 3e-6)
    rows = DenseRows([matrix])
    norms = dense([matrix]).norm(dim=1).numpy()
    assert np.allclose(rows.distances(np.array([1]), np.array([0]), norms[:1]), 3e-6, rtol=0.05)
    assert np.allclose(sketch_all([rows])[0].norms, norms, rtol=1e-6)


def test_constants() -> None:
    weight = torch.tensor([[2.0, 2.0], [0.0, -0.0], [1.0, 2.0]])
    constants = DenseRows([weight, torch.arange(3.0)]).constants(np.arange(3))
    assert constants[:2].tolist() == [2.0, 0.0]
    assert math.isnan(constants[2])


@pytest.mark.parametrize("width", [5, 900, 200_000])
@pytest.mark.parametrize("is_constant", [False, True])
def test_positions_move_by_about_as_much_as_the_rows(width: int, is_constant: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, width, generator=generator, dtype=torch.float64)
    step = torch.ones(width) if is_constant else torch.randn(30, width, generator=generator)
    index = np.arange(30)
    moved = DenseRows([matrix + step]).positions(index) - DenseRows([matrix]).positions(index)
    ratio = np.abs(moved) / step.expand(30, -1).norm(dim=1).numpy()
    assert 0.02 < np.median(ratio) < 2
    assert ratio.max() < 4


def test_a_vanishing_norm_counts_the_largest_number_of_any_piece() -> None:
    rows = DenseRows([torch.zeros(200, 500), torch.full((200, 1), 1e-30)])  # a weight of zeros with a tiny bias
    assert not rows.is_small
    [sketch] = sketch_all([rows])
    np.testing.assert_allclose(sketch.norms, 1e-30, rtol=1e-6)
