"""Every code has a section on the page of the codes, and every section a code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_symmetry.verdicts.codes import CODE_OF_STOP, Code
from lightning_symmetry.verdicts.stops import StopKind

PAGE = (Path(__file__).parents[2] / "docs" / "codes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == [code.value for code in Code]


@pytest.mark.parametrize("code", Code)
def test_a_section_says_what_the_code_means_and_what_to_do(code: Code) -> None:
    section = SECTIONS[code]
    assert re.findall(r"^- \*(\w+):\*", section, re.MULTILINE) == ["Seen", "Means", "Check", "Cure", "Accept"]
    title = re.search(r"\*\*(.*)\.\*\*", section)
    assert title is not None
    assert title[1].lower().replace(",", "") == code.meaning.lower().replace(",", "")


def test_no_code_is_given_twice() -> None:
    assert len({code.value for code in Code}) == len(Code.__members__)
    assert len({code.meaning for code in Code}) == len(Code)
    assert all(re.fullmatch(r"SYM\d{3}", code) for code in Code)


def test_every_stop_has_a_code_of_its_own() -> None:
    assert CODE_OF_STOP.keys() == set(StopKind)
    assert len(set(CODE_OF_STOP.values())) == len(StopKind)
