from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from examples import worked_example
from examples.worked_example import CONSTANT, INPUTS, PERMUTED, RANDOM, STARTS, ZERO
from tests.examples.running import run_as_script


@pytest.fixture(scope="module")
def result() -> worked_example.Result:
    return worked_example.run(short=True)


def _verdicts(result: worked_example.Result, start: str, layer: str) -> list[str]:
    return [look.verdicts[layer] for look in result.trained[start].looks]


def test_gradients_by_hand_are_slopes_of_the_output() -> None:
    # The output is linear in each single weight, so the slope between any two points is exactly the gradient.
    def output(w: worked_example.Numbers) -> Fraction:
        x1, x2 = INPUTS
        y1, y2 = w[0] * x1 + w[2] * x2, w[1] * x1 + w[3] * x2
        y3, y4 = w[4] * y1 + w[6] * y2, w[5] * y1 + w[7] * y2
        return w[8] * y3 + w[9] * y4

    start = tuple(Fraction(i + 1, 7) for i in range(10))
    for i, gradient in enumerate(worked_example.gradients(start)):
        moved = (*start[:i], start[i] + 1, *start[i + 1 :])
        assert output(moved) - output(start) == gradient


@pytest.mark.parametrize("start", STARTS)
def test_pytorch_goes_where_the_exact_weights_go(result: worked_example.Result, start: str) -> None:
    assert result.trained[start].error < 1e-15


def test_first_gradients_are_those_of_the_closed_form(result: worked_example.Result) -> None:
    x1, x2, a = *map(float, INPUTS), 0.5
    first = [2 * a * a * x1] * 2 + [2 * a * a * x2] * 2
    expected = (*first, *[a * a * (x1 + x2)] * 4, *[2 * a * a * (x1 + x2)] * 2)
    assert result.trained[CONSTANT].first_gradients == expected


def test_constant_weights_stay_locked_though_the_numbers_of_the_first_layer_part(
    result: worked_example.Result,
) -> None:
    for layer in ("first", "second"):
        assert set(_verdicts(result, CONSTANT, layer)) == {"locked"}
    w1, w2, w3, w4 = result.trained[CONSTANT].weights[-1][:4]
    assert (w1, w3) == (w2, w4)
    assert w1 != w3
    assert result.trained[CONSTANT].looks[-1].distinct == {"first": 1, "second": 1}


def test_another_second_layer_breaks_the_first_at_once(result: worked_example.Result) -> None:
    first, *later = _verdicts(result, RANDOM, "first")
    assert first == "breaking"
    assert set(later) == {""}


def test_zeros_are_frozen_and_permuted_rows_move_in_lockstep(result: worked_example.Result) -> None:
    assert set(result.trained[ZERO].weights) == {(0.0,) * 10}
    for layer in ("first", "second"):
        assert set(_verdicts(result, ZERO, layer)[2:]) == {"frozen"}
    assert set(_verdicts(result, PERMUTED, "first")) == {"locked"}
    assert set(_verdicts(result, PERMUTED, "second")[2:]) == {"lockstep"}
    assert result.trained[PERMUTED].looks[-1].distinct["second"] == 2


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "by hand" in run_as_script("worked_example", tmp_path)
