from __future__ import annotations

from pathlib import Path

import pytest

from examples import net2wider
from examples.net2wider import COPIES, DROPOUT, NOISE, UNEQUAL, WIDTH
from tests.examples.running import run_as_script


@pytest.fixture(scope="module")
def result() -> net2wider.Result:
    return net2wider.run(short=True)


def test_widening_preserves_the_function(result: net2wider.Result) -> None:
    for name in (COPIES, DROPOUT, UNEQUAL):
        assert result.students[name].start_error < 1e-6
    assert 0 < result.students[NOISE].start_error < 0.01


def test_copies_stay_copies_without_noise_and_part_with_noise_dropout_or_unequal_shares(
    result: net2wider.Result,
) -> None:
    distinct = {name: student.distinct for name, student in result.students.items()}
    assert set(distinct[COPIES]) == {WIDTH}
    assert set(distinct[NOISE]) == {2 * WIDTH}
    for name in (DROPOUT, UNEQUAL):
        assert distinct[name][0] == WIDTH < distinct[name][-1]


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "copies with noise" in run_as_script("net2wider", tmp_path)
