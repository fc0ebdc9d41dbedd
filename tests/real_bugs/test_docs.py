"""The table in docs/real_bugs.md says of every case what is really said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real_bugs import test_copies, test_dead_relu, test_forecasting, test_missing_weights, test_zeros
from tests.real_bugs.cases import Case, train_buggy

PAGE = (Path(__file__).parents[2] / "docs" / "real_bugs.md").read_text(encoding="utf-8")
ROWS = {cells[0]: cells for cells in (line.strip("| ").split(" | ") for line in PAGE.splitlines() if line[:2] == "| ")}
CASES = [
    *test_copies.CASES,
    *test_zeros.CASES,
    *test_missing_weights.CASES,
    *test_dead_relu.CASES,
    *test_forecasting.CASES,
]
NOT_FOUND = test_copies.NOT_FOUND


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_table_quotes_what_is_said(case: Case) -> None:
    _, sources, _, said, _ = ROWS[case.name]
    assert re.findall(r"\((https://\S+?)\)", sources) == list(case.sources)
    assert said == " <br> ".join(train_buggy(case).said)


@pytest.mark.parametrize("case", NOT_FOUND, ids=str)
def test_the_page_tells_of_what_is_not_found(case: Case) -> None:
    not_found = PAGE.partition("## What is not found")[2]
    assert f"**{case.name}**" in not_found
    assert all(f"({source})" in not_found for source in case.sources)
    assert train_buggy(case).said == []


def test_the_table_has_no_row_without_a_case() -> None:
    assert ROWS.keys() - {"case", "---"} == {case.name for case in CASES}
