from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from examples import lossless_compressibility
from examples.lossless_compressibility import (
    ALL,
    CANCELLING,
    CONSTANT,
    COPIES,
    MIRRORS,
    NEGATED,
    NUM_INPUTS,
    NUM_UNITS,
    SILENT,
    Parameters,
    compress,
    irreducible,
    with_redundant,
)
from tests.examples.running import run_as_script

KINDS = (COPIES, NEGATED, MIRRORS, SILENT, CONSTANT, CANCELLING)


@pytest.fixture(scope="module")
def result() -> lossless_compressibility.Result:
    return lossless_compressibility.run(short=True)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    added=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, NUM_UNITS - 1)), max_size=4),
)
def test_compressing_keeps_the_function_and_leaves_nothing_redundant(seed: int, added: list[tuple[str, int]]) -> None:
    generator = Generator().manual_seed(seed)
    parameters = irreducible(generator)
    for kind, unit in added:
        parameters = with_redundant(parameters, kind, torch.tensor([unit]), generator)
    shorter = compress(parameters)
    inputs = 2 * torch.randn(256, NUM_INPUTS, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(shorter.network()(inputs), parameters.network()(inputs), rtol=1e-10, atol=1e-10)
        hidden = shorter.network()[:2](inputs)
    # Activations that are linearly independent of each other and of a constant, and are all read: nothing to remove.
    features = torch.cat([hidden, torch.ones(256, 1, dtype=torch.float64)], dim=1)
    assert torch.linalg.matrix_rank(features, rtol=1e-12) == shorter.num_units + 1
    assert shorter.outgoing.any(dim=0).all()


def test_nothing_is_left_of_a_constant_function() -> None:
    zeros = Parameters(
        torch.zeros(3, NUM_INPUTS + 1).double(), torch.ones(2, 3).double(), torch.tensor([1.0, 2.0]).double()
    )
    assert compress(zeros).num_units == 0


@pytest.mark.parametrize("kind", [COPIES, NEGATED])
def test_units_that_train_as_one_are_merged_down_to_the_rank(
    result: lossless_compressibility.Result, kind: str
) -> None:
    for one in result.networks[kind]:
        assert one.num_merged == one.rank == NUM_UNITS < one.num_units


@pytest.mark.parametrize("kind", [MIRRORS, SILENT, CONSTANT])
def test_others_are_left(result: lossless_compressibility.Result, kind: str) -> None:
    for one in result.networks[kind]:
        assert one.num_merged == one.num_units > one.rank == NUM_UNITS


def test_of_copies_that_cancel_one_is_left_that_nobody_listens_to(result: lossless_compressibility.Result) -> None:
    for one in result.networks[CANCELLING]:
        assert one.num_merged == NUM_UNITS
        assert one.rank == NUM_UNITS - (one.num_units - NUM_UNITS)


def test_the_function_stays_the_same(result: lossless_compressibility.Result) -> None:
    for one in (one for networks in result.networks.values() for one in networks):
        assert max(one.merge_error, one.rank_error) < 1e-14
    assert {one.rank for one in result.networks[ALL]} == {NUM_UNITS - 1}


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "mirror images" in run_as_script("lossless_compressibility", tmp_path)
