from __future__ import annotations

from pathlib import Path

import pytest

from examples import plasticity
from examples.plasticity import PLAIN, RECYCLE
from tests.examples.running import run_as_script


@pytest.fixture(scope="module")
def result() -> plasticity.Result:
    return plasticity.run(short=True)


def test_with_plain_backpropagation_units_die_and_weights_grow(result: plasticity.Result) -> None:
    first, *_, last = result.lives[PLAIN]
    assert last.dead > first.dead
    assert last.weight > first.weight
    assert last.rank < first.rank
    assert sum(task.num_recycled for task in result.lives[PLAIN]) == 0


def test_recycled_units_are_dead_no_more(result: plasticity.Result) -> None:
    assert sum(task.num_recycled for task in result.lives[RECYCLE]) > 0
    assert result.lives[RECYCLE][-1].dead < result.lives[PLAIN][-1].dead


def test_all_learn(result: plasticity.Result) -> None:
    for tasks in result.lives.values():
        assert min(task.accuracy for task in tasks) > 0.4


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "dead units recycled" in run_as_script("plasticity", tmp_path)
