from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry import duplicate_groups
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import compare_pairs, find_groups, find_groups_within_budget, is_chance
from lightning_symmetry.matrices.numerics import Indices, Mask
from lightning_symmetry.matrices.question import TOLERANCES, Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all
from tests.oracle import brute_force_groups

DTYPES = list(TOLERANCES)
# The scales a dtype can hold with room for the squares that nobody should take of them.
LARGEST_EXPONENT = {torch.float64: 100, torch.float32: 30, torch.bfloat16: 30, torch.float16: 2}


def groups_of(rows: Rows, blocks: int = 1, among: Sequence[Sequence[int]] | None = None) -> list[tuple[int, ...]]:
    return find_groups(Question(rows, sketch_all([rows])[0], 1e-5, blocks), among=among)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, float]:
    """A matrix with planted groups, and a tolerance at which no pair is a borderline case."""
    dtype = draw(st.sampled_from(DTYPES))
    num_rows = draw(st.integers(0, 60))
    width = draw(st.sampled_from([1, 2, 3, 7, 64, 300, 4096]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tolerance = draw(st.sampled_from([TOLERANCES[dtype], 1e-2, 0.0]))
    rows = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    largest = LARGEST_EXPONENT[dtype]
    exponents = draw(st.sampled_from([(0, 0), (-6, 6), (-largest, largest)]))
    low, high = max(exponents[0], -largest), min(exponents[1], largest)
    rows *= 10.0 ** torch.randint(low, high + 1, (num_rows, 1), generator=generator)
    for _ in range(draw(st.integers(0, 5)) if num_rows else 0):
        members = torch.randperm(num_rows, generator=generator)[: draw(st.integers(2, 20))]
        noise = torch.randn(len(members), width, generator=generator, dtype=torch.float64)
        size = draw(st.sampled_from([0.0, 0.2]))
        step = noise / noise.norm(dim=1, keepdim=True) * rows[members[0]].norm() * tolerance * size
        rows[members] = rows[members[0]] + step
    rows = rows.to(dtype)
    for value in draw(st.lists(st.sampled_from([0.0, math.nan, math.inf, -math.inf]), max_size=4)) if num_rows else []:
        members = torch.randperm(num_rows, generator=generator)[:3]
        rows[members, :: 1 if value == 0 else 2] = value
    if draw(st.booleans()):  # not contiguous
        rows = torch.stack([rows, torch.full_like(rows, 7.0)], dim=-1)[..., 0]
    elif draw(st.booleans()):
        rows = rows.T.contiguous().T
    return rows, tolerance


@given(matrices())
@settings(max_examples=300, deadline=None)
def test_equals_brute_force(case: tuple[Tensor, float]) -> None:
    rows, tolerance = case
    found = duplicate_groups(rows, tolerance)
    # Rows a hair from the tolerance may fall on either side of it: judged by what holds a little inside and outside.
    tight, wide = brute_force_groups(rows, tolerance * 0.999), brute_force_groups(rows, tolerance * 1.001)
    assert found == brute_force_groups(rows, tolerance) or (tight != wide and found in (tight, wide))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, -1e30])
def test_all_rows_equal(dtype: torch.dtype, value: float) -> None:
    rows = torch.full((500, 33), value, dtype=torch.float64).to(dtype)
    expected = [] if rows.isinf().any() else [tuple(range(500))]
    assert duplicate_groups(rows) == expected


def test_equal_rows_of_random_numbers() -> None:
    rows = torch.randn(1, 777, generator=torch.Generator().manual_seed(0)).expand(400, -1)
    assert duplicate_groups(rows) == [tuple(range(400))]


def test_rows_on_a_line_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.linspace(1, 2, 700)[:, None] * torch.randn(1, 100, generator=generator)
    rows[600] = rows[3]
    assert duplicate_groups(rows) == [(3, 600)]


def test_opposite_rows_are_different() -> None:
    assert duplicate_groups(torch.tensor([[1.0, -2.0], [-1.0, 2.0]])) == []


def test_wide_tolerance_that_makes_a_crowd() -> None:
    # So many rows within each other's windows that keys alone cannot tell them apart.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 40, generator=generator)
    rows[[5, 100, 200]] = rows[2].clone()
    assert duplicate_groups(rows, 0.05) == brute_force_groups(rows, 0.05) == [(2, 5, 100, 200)]


def test_low_dimensional_crowd_equals_brute_force() -> None:
    # Chains of rows that agree with their neighbours but not with one another.
    rows = torch.linspace(1, 2, 300, dtype=torch.float64)[:, None].repeat(1, 3)
    assert duplicate_groups(rows, 0.01) == brute_force_groups(rows, 0.01)


@given(
    st.integers(0, 2**31),
    st.integers(100, 250),
    st.sampled_from([1, 2, 3, 8, 40]),
    st.sampled_from([3e-5, 1e-4, 1e-3, 1e-2]),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_crowds_equal_brute_force(seed: int, num_rows: int, width: int, spread: float, num_groups: int) -> None:
    # Rows that nearly agree, some in chains, with large groups of equal ones among them.
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, width, generator=generator, dtype=torch.float64)
    rows = rows * (1 + spread * torch.randn(num_rows, width, generator=generator, dtype=torch.float64))
    for _ in range(num_groups):
        members = torch.randperm(num_rows, generator=generator)[: num_rows // 3]
        rows[members] = rows[members[0]].clone()
    for tolerance in (1e-5, 1e-3):
        found = duplicate_groups(rows, tolerance)
        near = [brute_force_groups(rows, tolerance * factor) for factor in (1, 1 - 1e-9, 1 + 1e-9)]
        assert found == near[0] or near[1] != near[2]


def test_tolerance_zero_means_equal() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, -0.0], [1.0, 1e-7]])
    assert duplicate_groups(rows, 0.0) == [(0, 1)]


def test_rows_of_different_blocks_are_not_compared() -> None:
    rows = DenseRows([torch.ones(6, 4)])
    assert groups_of(rows, blocks=2) == [(0, 1, 2), (3, 4, 5)]
    assert groups_of(rows, blocks=6) == []
    assert groups_of(DenseRows([torch.zeros(6, 4)]), blocks=3) == [(0, 1), (2, 3), (4, 5)]


def test_pieces_make_one_row() -> None:
    weight, bias = torch.ones(4, 2, 3), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert groups_of(DenseRows([weight, bias])) == [(0, 2), (1, 3)]


def test_among_compares_only_the_rows_named() -> None:
    assert groups_of(DenseRows([torch.ones(6, 4)]), among=[[1, 4, 5], [0, 2]]) == [(0, 2), (1, 4, 5)]


def test_no_numbers() -> None:
    assert duplicate_groups(torch.zeros(0, 4)) == []
    assert duplicate_groups(torch.zeros(1, 4)) == []
    assert duplicate_groups(torch.zeros(3, 0)) == [(0, 1, 2)]


def test_autocast_and_matmul_precision_do_not_blur() -> None:
    rows = torch.randn(300, 512, generator=torch.Generator().manual_seed(0))
    rows[9] = rows[4] * (1 + 1e-6)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert duplicate_groups(rows) == [(4, 9)]
    finally:
        torch.set_float32_matmul_precision(before)


def test_matmul_precision_does_not_blur_rows_that_nearly_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.ones(300, 512) + 1e-4 * torch.randn(300, 512, generator=generator)
    rows[9] = rows[4] * (1 + 5e-6)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert duplicate_groups(rows) == [(4, 9)]
    finally:
        torch.set_float32_matmul_precision(before)


def test_global_random_state_stays() -> None:
    before = torch.get_rng_state()
    duplicate_groups(torch.ones(7, 12345))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("rows", "tolerance", "error", "message"),
    [
        ([[1.0]], None, TypeError, r"`rows` to be a torch.Tensor but got \[\[1.0\]\]"),
        (torch.ones(2, 2, dtype=torch.int64), None, TypeError, "torch.int64"),
        (torch.ones(2, 2, dtype=torch.complex64), None, TypeError, "torch.complex64"),
        (torch.ones(3), None, ValueError, r"shape \(n, d\) but got \(3,\)"),
        (torch.ones(2, 2), -1.0, ValueError, "got -1.0"),
        (torch.ones(2, 2), 1.0, ValueError, "got 1.0"),
        (torch.ones(2, 2), math.nan, ValueError, "got nan"),
        (torch.ones(2, 2), "tight", TypeError, "got 'tight'"),
        (torch.ones(2, 2), True, TypeError, "got True"),
    ],
)
def test_bad_input(rows: Tensor, tolerance: float, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        duplicate_groups(rows, tolerance)


def test_chance() -> None:
    # A pair of equal bfloat16 rows of two numbers among 256 is no surprise, in float32 and 64 numbers it is.
    assert is_chance(2, 256, 2, 2**-7)
    assert not is_chance(2, 256, 64, 1e-5)
    # Everything equal is a surprise even with one number per row.
    assert not is_chance(4096, 4096, 2, 2**-7)


@pytest.mark.parametrize("num_near", [20, 40, 62])
@pytest.mark.parametrize("apart", [1.5, 3.0])  # in tolerances: too far to agree, too near for the sketches to tell
def test_rows_that_nearly_agree_do_not_hide_a_pair(num_near: int, apart: float) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        base, noise = torch.randn(512, generator=generator), torch.randn(num_near + 1, 512, generator=generator)
        rows = base + noise / noise.norm(dim=1, keepdim=True) * base.norm() * 1e-5 * apart
        matrix = DenseRows([torch.cat([rows, rows[-1:]])])
        [sketch] = sketch_all([matrix])
        # As in a training, which gives up on thousands of such rows.
        assert find_groups_within_budget(Question(matrix, sketch, 1e-5)).groups == [(num_near, num_near + 1)]


@given(st.integers(2, 12), st.data())
@settings(max_examples=300, deadline=None)
def test_each_row_joins_the_first_representative_with_which_it_agrees(num_rows: int, data: st.DataObject) -> None:
    every = list(combinations(range(num_rows), 2))
    pairs = data.draw(st.lists(st.sampled_from(every), unique=True))
    agreeing = set(data.draw(st.lists(st.sampled_from(pairs), unique=True))) if pairs else set()

    def agree(rows: Indices, others: Indices) -> Mask:
        return np.array([(other, row) in agreeing for row, other in zip(rows.tolist(), others.tolist(), strict=True)])

    expected: dict[int, int] = {}
    for row in range(num_rows):
        representatives = [other for other in range(row) if other not in expected and (other, row) in agreeing]
        if representatives:
            expected[row] = representatives[0]
    listed = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    assert compare_pairs(agree, listed) == expected


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, float, int]:
    """Rows some tolerances apart, a tolerance, and a number of blocks."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    num_rows, width = 4 * draw(st.integers(17, 90)), draw(st.sampled_from([1, 3, 40, 300, 600]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tolerance = draw(st.sampled_from([TOLERANCES[dtype], 1e-4, 1e-2]))
    apart = tolerance * draw(st.sampled_from([0.3, 0.9, 1.5, 3.0, 8.0, 30.0]))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = normal(draw(st.integers(1, 3)), width)
    base /= base.norm(dim=1, keepdim=True)
    rows = base[torch.randint(len(base), (num_rows,), generator=generator)]
    rank = draw(st.sampled_from([1, 2, width]))
    noise = normal(num_rows, width) if rank == width else normal(num_rows, rank) @ normal(rank, width)
    if draw(st.booleans()):  # with one number each
        noise *= torch.rand(num_rows, width, generator=generator).argmax(dim=1, keepdim=True) == torch.arange(width)
    rows = rows + apart * noise / noise.norm(dim=1, keepdim=True).mean().clamp(min=1e-300)
    copied = torch.randperm(num_rows, generator=generator)[: draw(st.sampled_from([0, 6, num_rows // 2]))]
    rows[copied] = rows[copied.flip(0)]
    exponent = draw(st.sampled_from([-LARGEST_EXPONENT[dtype], 0, LARGEST_EXPONENT[dtype]]))
    return (rows * 10.0**exponent).to(dtype), tolerance, draw(st.sampled_from([1, 2]))


@given(crowds())
@settings(max_examples=150, deadline=None)
def test_rows_that_nearly_agree_are_told_apart_as_by_brute_force(case: tuple[Tensor, float, int]) -> None:
    rows, tolerance, blocks = case
    matrix = DenseRows([rows])
    [sketch] = sketch_all([matrix])
    found = find_groups(Question(matrix, sketch, tolerance, blocks))
    home = torch.arange(len(rows))
    for group in found:
        home[list(group)] = group[0]
    numbers = rows.double()
    norms = numbers.norm(dim=1)
    apart = torch.cdist(numbers, numbers, compute_mode="donot_use_mm_for_euclid_dist")
    apart /= tolerance * torch.maximum(norms, norms[:, None]).clamp(min=1e-300)
    same_block = (torch.arange(len(rows)) * blocks // len(rows)).unique(return_inverse=True)[1]
    same_block = same_block == same_block[:, None]
    row, other = torch.arange(len(rows))[:, None], torch.arange(len(rows))
    joins = home != torch.arange(len(rows))
    # Each row joins the first representative with which it agrees; where rounding decides, either is right.
    assert (apart[row[:, 0][joins], home[joins]] <= 1.001).all()
    assert same_block[row[:, 0][joins], home[joins]].all()
    is_earlier_representative = (home == other) & (other < home[:, None])
    assert (apart[is_earlier_representative & same_block] > 0.999).all()


@given(crowds())
@settings(max_examples=60, deadline=None)
def test_what_is_found_within_the_budget_holds(case: tuple[Tensor, float, int]) -> None:
    rows, tolerance, blocks = case
    matrix = DenseRows([rows])
    [sketch] = sketch_all([matrix])
    question = Question(matrix, sketch, tolerance, blocks)
    found = find_groups_within_budget(question)
    for group in found.groups:
        first = np.full(len(group) - 1, group[0])
        assert (question.distances(np.array(group[1:]), first) <= 1.001 * tolerance).all()
    if not len(found.crowded):
        assert found.groups == find_groups(question)
        return
    # What is crowded is near to many, and what is not is settled as it would be without a limit.
    assert len(found.crowded) > 200
    assert found.radius > 0
    crowded = set(found.crowded.tolist())
    assert [group for group in found.groups if crowded.isdisjoint(group)] == [
        group for group in find_groups(question) if crowded.isdisjoint(group)
    ]


def test_copies_are_found_in_a_crowd_that_is_not_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.ones(2048, 300) + 2e-5 * torch.randn(2048, 300, generator=generator)
    rows[[5, 700, 2000]] = rows[40].clone()
    matrix = DenseRows([rows])
    [sketch] = sketch_all([matrix])
    groups, crowded, radius, _ = find_groups_within_budget(Question(matrix, sketch, 1e-5))
    assert groups == [(5, 40, 700, 2000)]
    assert len(crowded) == 2045
    largest = (rows - rows[0]).norm(dim=1).max() / rows[0].norm()
    assert radius == pytest.approx(float(largest), rel=1e-3)
    assert duplicate_groups(rows) == groups


@pytest.mark.parametrize(
    ("width", "factor", "tolerance"), [(9, 0.03, 1e-5), (9, 0.01, 1e-5), (9, 3e-4, 1e-3), (2, 1e-4, 1e-3)]
)
def test_near_rows_of_two_lengths_are_told_apart(width: int, factor: float, tolerance: float) -> None:
    # Compared with one another, the short ones would lose their digits to the long ones.
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    unit = normal(1, width)
    unit /= unit.norm()
    rows = unit + 1.5 * tolerance * normal(300, width) / width**0.5
    for k in range(40):  # pairs near the tolerance
        step = normal(width)
        rows[250 + k] = rows[50 + k] + tolerance * (0.9 + 0.005 * k) * step / step.norm()
    rows[40:] *= factor
    rows = rows.float()
    matrix = DenseRows([rows])
    expected = brute_force_groups(rows, tolerance)
    assert duplicate_groups(rows, tolerance) == expected != []
    assert find_groups_within_budget(Question(matrix, sketch_all([matrix])[0], tolerance)).groups == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_that_almost_equal_a_member_do_not_inherit_its_group(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 100, generator=generator, dtype=torch.float64)
    rows = rows / rows.norm() + 2e-4 * torch.randn(300, 100, generator=generator, dtype=torch.float64)
    step = torch.randn(100, generator=generator, dtype=torch.float64)
    step -= (step @ rows[5]) * rows[5] / rows[5].square().sum()
    step *= rows[5].norm() / step.norm()
    rows[6], rows[200] = rows[5] + 0.9985e-3 * step, rows[5] + 1.0015e-3 * step
    assert duplicate_groups(rows.to(dtype), 1e-3) == [(5, 6)]


def test_the_radius_is_measured_from_a_row_of_the_crowd() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3000, 512, generator=generator, dtype=torch.float64)
    rows = 1 + 3e-5 * 512**0.5 * noise / noise.norm(dim=1, keepdim=True)
    rows[0], rows[1] = 1.0, 1 + 3e-6  # a pair in the middle of the others
    matrix = DenseRows([rows.float()])
    groups, crowded, radius, _ = find_groups_within_budget(Question(matrix, sketch_all([matrix])[0], 1e-5))
    assert groups == [(0, 1)]
    assert crowded.tolist() == list(range(2, 3000))
    largest = (rows[2:] - rows[2]).norm(dim=1).max() / rows[2].norm()
    assert radius == pytest.approx(float(largest), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_default_dtype_and_device_of_the_user_change_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.ones(300, 512) + 1e-4 * torch.randn(300, 512, generator=generator)
    rows[9] = rows[4] * (1 + 5e-6)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            assert duplicate_groups(rows) == [(4, 9)]
    finally:
        torch.set_default_dtype(before)


def test_a_crowd_too_large_to_copy_is_compared_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(400.0)[:, None] * 3e-6  # a chain: each row agrees with a few before and after it
    rows = torch.ones(400, 64) + steps * torch.randn(1, 64, generator=generator)
    expected = duplicate_groups(rows)
    assert len(expected) > 10
    monkeypatch.setattr("lightning_symmetry.matrices.grouping._MAX_ELEMENTS", 0)
    monkeypatch.setattr("lightning_symmetry.matrices.grouping.settle_by_distances", None)  # it would copy them
    assert duplicate_groups(rows) == expected
