from __future__ import annotations

from pathlib import Path

import pytest

from examples import upcycled_experts
from examples.upcycled_experts import INDIFFERENT, INDIFFERENT_NOISE, NUM_EXPERTS, RANDOM, RANDOM_NOISE
from tests.examples.running import run_as_script


@pytest.fixture(scope="module")
def result() -> upcycled_experts.Result:
    return upcycled_experts.run(short=True)


def test_experts_part_behind_a_random_router(result: upcycled_experts.Result) -> None:
    mixture = result.mixtures[RANDOM]
    assert mixture.start_error < 1e-6
    assert mixture.distinct[0] == 1
    assert mixture.distinct[-1] == NUM_EXPERTS
    assert mixture.verdicts == ("breaking",)


def test_behind_an_indifferent_router_they_stay_copies(result: upcycled_experts.Result) -> None:
    mixture = result.mixtures[INDIFFERENT]
    assert set(mixture.distinct) == {1}
    assert set(mixture.distance) == {0.0}
    assert mixture.verdicts == ("locked",)


def test_with_noise_they_are_distinct_from_the_start(result: upcycled_experts.Result) -> None:
    for name in (RANDOM_NOISE, INDIFFERENT_NOISE):
        assert set(result.mixtures[name].distinct) == {NUM_EXPERTS}
        assert result.mixtures[name].start_error < 0.01


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    assert "indifferent router" in run_as_script("upcycled_experts", tmp_path)
