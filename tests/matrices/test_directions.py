"""The number of directions, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.directions import count_directions
from lightning_symmetry.matrices.sketching import sketch_all
from tests.oracle import brute_force_directions


def directions_of(rows: Tensor, cosine: float = 0.999) -> int:
    matrix = DenseRows([rows])
    return count_directions(matrix, sketch_all([matrix])[0].norms, np.arange(len(rows)), cosine)


def bundle(num_rows: int, num_directions: int, width: int, spread: float, seed: int) -> Tensor:
    """Rows of random lengths and signs along some random directions, each a little off its own."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(num_directions, width, generator=generator))
    rows = directions[torch.randint(num_directions, (num_rows,), generator=generator)]
    rows = rows + spread * torch.nn.functional.normalize(torch.randn(num_rows, width, generator=generator))
    return rows * torch.randn(num_rows, 1, generator=generator) * 10 ** torch.randn(num_rows, 1, generator=generator)


@given(
    st.integers(1, 80),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 5, 20, 300, 2048]),
    st.sampled_from([0.0, 1e-3, 0.02, 0.05]),
    st.sampled_from([0.999, 0.9, 0.99999]),
    st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_equals_brute_force(
    num_rows: int, num_directions: int, width: int, spread: float, cosine: float, seed: int
) -> None:
    rows = bundle(num_rows, num_directions, width, spread, seed)
    # Rows a hair from the bound may fall on either side of it.
    bounds = sorted(brute_force_directions(rows, 1 - (1 - cosine) * factor) for factor in (0.995, 1.0, 1.005))
    assert bounds[0] <= directions_of(rows, cosine) <= bounds[-1]


@pytest.mark.parametrize(("num_rows", "num_directions"), [(3000, 2), (3000, 40), (3000, 1500), (2000, 10**6)])
def test_many_rows(num_rows: int, num_directions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(num_directions, (num_rows,), generator=generator)
    directions = torch.randn(min(num_directions, 4000), 64, generator=generator)
    chosen %= len(directions)
    rows = directions[chosen] * torch.randn(num_rows, 1, generator=generator)
    assert directions_of(rows) == len(chosen.unique())


def test_parallel_rows_of_very_different_lengths() -> None:
    row = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert directions_of(torch.stack([row, 1e-12 * row, -1e12 * row, row.roll(1)])) == 2


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1.0, 1e170, 1e300])
def test_rows_whose_squares_leave_the_range(scale: float) -> None:
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[3] = -rows[1]
    assert directions_of(scale * rows) == 3


def test_the_rows_stay_as_they_are() -> None:
    rows = bundle(40, 8, 20, 1e-3, seed=0).double()
    before = rows.clone()
    assert directions_of(rows) == brute_force_directions(rows, 0.999)
    assert torch.equal(rows, before)


def test_columns_of_an_embedding() -> None:
    rows = torch.randn(40, 900, generator=torch.Generator().manual_seed(0)).T  # read with strides
    rows[7], rows[8] = 3 * rows[6], -rows[6]
    assert directions_of(rows) == 898
