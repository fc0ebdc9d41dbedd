from __future__ import annotations

from pathlib import Path

import pytest

from examples import stochastic_collapse
from examples.stochastic_collapse import NUM_HIDDEN, SETTINGS
from tests.examples.running import run_as_script


@pytest.fixture(scope="module")
def result() -> stochastic_collapse.Result:
    return stochastic_collapse.run(short=True)


def test_without_noise_no_units_ever_train_as_one(result: stochastic_collapse.Result) -> None:
    for setting in SETTINGS:
        if not setting.noise:
            collapse = result.collapses[setting]
            assert {number for check in collapse.distinct for number in check} == {NUM_HIDDEN}
            assert set(collapse.first_steps) == {None}


def test_with_noise_units_become_one_and_the_step_is_dated(result: stochastic_collapse.Result) -> None:
    noisy = [result.collapses[setting] for setting in SETTINGS if setting.noise]
    dates = [step for collapse in noisy for step in collapse.first_steps if step is not None]
    assert dates
    assert all(0 < step <= result.steps[-1] for step in dates)
    assert min(number for collapse in noisy for check in collapse.distinct for number in check) < NUM_HIDDEN


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "noise 0.8" in run_as_script("stochastic_collapse", tmp_path)
