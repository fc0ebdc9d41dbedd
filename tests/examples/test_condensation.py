from __future__ import annotations

from pathlib import Path

import pytest

from examples import condensation
from examples.condensation import FLOW, MULTIPLICITIES
from tests.examples.running import run_as_script


@pytest.fixture(scope="module")
def result() -> condensation.Result:
    return condensation.run(short=True)


@pytest.mark.parametrize("multiplicity", MULTIPLICITIES)
def test_units_condense_onto_as_many_lines_as_the_multiplicity(result: condensation.Result, multiplicity: int) -> None:
    for network in result.networks[FLOW, multiplicity]:
        last = network.num_initial - 1
        assert network.lines[last] == multiplicity
        assert network.orientations[last] == 2 * multiplicity


@pytest.mark.parametrize("multiplicity", MULTIPLICITIES)
def test_before_they_point_anywhere_and_afterwards_they_part(result: condensation.Result, multiplicity: int) -> None:
    for network in result.networks[FLOW, multiplicity]:
        assert network.lines[0] > 30
        assert network.num_initial < len(network.steps)
        assert network.orientations[-1] >= 2 * multiplicity


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "flow, 1 input" in run_as_script("condensation", tmp_path)
