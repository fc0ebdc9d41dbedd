from __future__ import annotations

from pathlib import Path

import pytest

from examples import zero_init
from examples.zero_init import CLASSES, IDENTITY, INPUTS, RANDOM, RESIDUAL, SHAPES, WIDTH, ZERO, ZERO_NOISE
from tests.examples.running import run_as_script


@pytest.fixture(scope="module")
def result() -> zero_init.Result:
    return zero_init.run(short=True)


@pytest.mark.parametrize(("num_units", "num_inputs"), [(16, 3), (12, 5), (9, 8)])
def test_wider_layers_start_as_a_part_of_a_hadamard_matrix(num_units: int, num_inputs: int) -> None:
    expected = [[(-1) ** (i & j).bit_count() / 4 for j in range(num_inputs)] for i in range(num_units)]
    assert zero_init.zero_matrix(num_units, num_inputs).tolist() == expected


def test_rows_repeat_as_often_as_theory_says(result: zero_init.Result) -> None:
    theory = tuple(zero_init.num_distinct_rows(num_units, num_inputs) for num_inputs, num_units in SHAPES)
    assert result.distinct_rows == theory


def test_twins_that_the_head_does_not_read_stay_twins_and_some_of_the_others_part(result: zero_init.Result) -> None:
    pairs = {(unit, unit + INPUTS) for unit in range(INPUTS)}
    for_ever = {(unit, twin) for unit, twin in pairs if unit >= CLASSES}
    groups = result.trained[ZERO].groups
    assert for_ever <= groups < pairs
    assert "locked" in result.trained[ZERO].verdicts


def test_the_rank_stays_within_its_bounds(result: zero_init.Result) -> None:
    assert max(result.trained[IDENTITY].rank) <= INPUTS
    assert max(result.trained[ZERO].rank) <= INPUTS + CLASSES
    assert max(result.trained[RESIDUAL].rank) <= INPUTS


def test_in_the_residual_form_no_twins_part(result: zero_init.Result) -> None:
    assert result.trained[RESIDUAL].distinct[-1] <= INPUTS
    assert result.trained[RESIDUAL].accuracy > 0.5


def test_random_weights_and_noise_make_all_units_distinct(result: zero_init.Result) -> None:
    for name in (RANDOM, ZERO_NOISE):
        assert set(result.trained[name].distinct) == {WIDTH}


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "partial identity" in run_as_script("zero_init", tmp_path)
