from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from examples import plasticity
from examples.plasticity import PLAIN, RECYCLE
from tests.examples.running import run_as_script

# Units that were recycled just before a check may still have no gradient; whether any are depends on rounding.
pytestmark = pytest.mark.filterwarnings("ignore:.*were left as they are:UserWarning")


@pytest.fixture(scope="module")
def result() -> plasticity.Result:
    return plasticity.run(short=True)


def test_with_plain_backpropagation_units_die_and_weights_grow(result: plasticity.Result) -> None:
    first, *_, last = result.lives[PLAIN]
    assert last.dead > first.dead
    assert last.weight > first.weight
    assert last.rank < first.rank
    assert sum(task.num_recycled for task in result.lives[PLAIN]) == 0


def test_units_are_recycled_and_no_more_of_them_are_dead_than_without(result: plasticity.Result) -> None:
    assert sum(task.num_recycled for task in result.lives[RECYCLE]) > 0
    # At the end of a single task, a few units may be dead by chance, depending on the processor's rounding.
    dead = {name: fmean(task.dead for task in result.lives[name]) for name in (PLAIN, RECYCLE)}
    assert dead[RECYCLE] < dead[PLAIN] + 0.03


def test_all_learn(result: plasticity.Result) -> None:
    for tasks in result.lives.values():
        assert min(task.accuracy for task in tasks) > 0.4


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "dead units recycled" in run_as_script("plasticity", tmp_path)
