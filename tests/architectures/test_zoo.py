"""The healthy members of the zoo, and those whose symmetry breaks by itself, over a longer training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cases import CASES, SILENT, Case, run_in_plain_loop

HEALTHY = [case for case in CASES if case.expected == SILENT]


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_nothing_is_said_in_200_steps(case: Case) -> None:
    found, tracker, _ = run_in_plain_loop(replace(case, steps=200), "adamw", "32-true")
    assert found == {}
    assert tracker.report is not None
    assert tracker.report.step >= 190
