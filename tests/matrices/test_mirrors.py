"""Rows that are the negatives of others, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import NONE_PROJECTED, find_groups_within_budget
from lightning_symmetry.matrices.mirrors import Mirrored, find_mirrors
from lightning_symmetry.matrices.question import TOLERANCES, Question
from lightning_symmetry.matrices.sieve import suspects
from lightning_symmetry.matrices.sketching import sketch_all
from tests.oracle import brute_force_mirrors


def mirrors_of(rows: Tensor, tolerance: float | None = None, blocks: int = 1) -> list[Mirrored]:
    matrix = DenseRows([rows])
    question = Question(
        matrix, sketch_all([matrix])[0], TOLERANCES[rows.dtype] if tolerance is None else tolerance, blocks
    )
    [suspected] = suspects([question])
    return find_mirrors(question, find_groups_within_budget(question, suspected=suspected), suspected)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, float]:
    """A matrix with planted groups of rows that agree up to sign, and a tolerance without borderline cases."""
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    num_rows, width = draw(st.integers(2, 30)), draw(st.sampled_from([2, 3, 7, 64, 300, 2048]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tolerance = draw(st.sampled_from([TOLERANCES[dtype], 1e-3, 0.0]))
    rows = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    exponent = draw(st.sampled_from([0, 2 if dtype is torch.float16 else 25]))
    rows *= 10.0 ** torch.randint(-exponent, exponent + 1, (num_rows, 1), generator=generator)
    if draw(st.booleans()):  # first projections near zero, whose sign says nothing
        rows[:, width // 2 :] = -rows[:, : (width + 1) // 2]
    for _ in range(draw(st.integers(0, 4))):
        members = torch.randperm(num_rows, generator=generator)[: draw(st.integers(2, 12))]
        signs = torch.where(torch.rand(len(members), 1, generator=generator) < 0.5, -1.0, 1.0).double()
        rows[members] = rows[members[0]] * signs
        if dtype is torch.float64 or tolerance > TOLERANCES[dtype]:
            noise = torch.randn(len(members), width, generator=generator, dtype=torch.float64)
            rows[members] += 0.1 * tolerance * rows[members].abs().amax(dim=1, keepdim=True) * noise / math.sqrt(width)
    rows = rows.to(dtype)
    for value in draw(st.lists(st.sampled_from([0.0, math.nan, math.inf]), max_size=3)):
        rows[torch.randperm(num_rows, generator=generator)[:2]] = value
    return rows, tolerance


@given(matrices())
@settings(max_examples=100, deadline=None)
def test_equals_brute_force(case: tuple[Tensor, float]) -> None:
    rows, tolerance = case
    found = [tuple(mirrored) for mirrored in mirrors_of(rows, tolerance)]
    tight, wide = brute_force_mirrors(rows, tolerance * 0.99), brute_force_mirrors(rows, tolerance * 1.01)
    assert found == brute_force_mirrors(rows, tolerance) or (tight != wide and found in (tight, wide))


@pytest.mark.parametrize("seed", range(20))
def test_a_projection_near_zero_hides_no_pair(seed: int) -> None:
    # Rows that are orthogonal to the first random vector of the sketch, but for rounding.
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(30, 50, generator=generator, dtype=torch.float64)
    matrix = DenseRows([torch.eye(50, dtype=torch.float64)])
    vector = torch.from_numpy(sketch_all([matrix])[0].projections[0])
    base -= (base @ vector)[:, None] * vector / vector.square().sum()
    rows = torch.cat([base, -base])
    assert mirrors_of(rows) == [Mirrored((i, i + 30), (i + 30,)) for i in range(30)]


def test_groups_join_whole() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 9)
    assert mirrors_of(torch.stack([-a, a, b, a, -a, -a])) == [Mirrored((0, 1, 3, 4, 5), (1, 3))]


def test_rows_of_different_blocks_are_not_compared() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 9)
    rows = torch.stack([a, b, -a, -b, a, -a])
    assert mirrors_of(rows, blocks=3) == [Mirrored((4, 5), (5,))]
    assert len(mirrors_of(rows)) == 2


def test_zeros_are_no_mirror_images_of_themselves() -> None:
    assert mirrors_of(torch.zeros(6, 4)) == []


def test_looks_linear_initialisation_of_many_rows() -> None:
    rows = torch.randn(1000, 300, generator=torch.Generator().manual_seed(0))
    found = mirrors_of(torch.cat([rows, -rows]))
    assert found == [Mirrored((i, i + 1000), (i + 1000,)) for i in range(1000)]


@given(matrices(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_what_grouping_has_read_changes_nothing(case: tuple[Tensor, float], seed: int) -> None:
    # Rows that nearly agree up to sign, so that grouping projects most of them.
    generator = torch.Generator().manual_seed(seed)
    rows = case[0].double()[:1].nan_to_num(1.0, 1.0).expand(200, -1)
    rows = rows + 3e-5 * rows.norm() * torch.randn(rows.shape, generator=generator) / math.sqrt(rows.shape[1])
    rows[100:] *= -1
    rows[150:170] = -rows[20:40]
    matrix = DenseRows([rows.float()])
    question = Question(matrix, sketch_all([matrix])[0], 1e-5)
    [suspected] = suspects([question])
    found = find_groups_within_budget(question, suspected=suspected)
    assert find_mirrors(question, found, suspected) == find_mirrors(
        question, found._replace(projected=NONE_PROJECTED), suspected
    )


def test_rows_in_crowds_are_passed_over() -> None:
    generator = torch.Generator().manual_seed(0)
    crowd = torch.ones(1500, 300) + 1e-5 * torch.randn(1500, 300, generator=generator)
    rows = torch.cat([crowd, torch.randn(20, 300, generator=generator)])
    rows[1510:] = -rows[1500:1510]
    rows[1499] = -rows[0]
    matrix = DenseRows([rows])
    question = Question(matrix, sketch_all([matrix])[0], 1e-5)
    [suspected] = suspects([question])
    found = find_groups_within_budget(question, suspected=suspected)
    assert found.crowded.tolist() == list(range(1499))
    assert find_mirrors(question, found, suspected) == [Mirrored((1500 + i, 1510 + i), (1510 + i,)) for i in range(10)]


def test_many_near_rows_of_one_sign_hide_no_mirror_images() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 64, generator=generator)
    rows = rows + 4e-5 * rows.norm() * torch.randn(1000, 64, generator=generator) / 8
    rows[500:] *= -1
    rows[600:725] = -rows[100:225]
    assert mirrors_of(rows) == [Mirrored((100 + i, 600 + i), (600 + i,)) for i in range(125)]
