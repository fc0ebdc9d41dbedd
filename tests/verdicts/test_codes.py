"""Every code has a page, and the index lists all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_symmetry.verdicts.codes import CODE_OF_STOP, Code
from lightning_symmetry.verdicts.stops import StopKind

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = ["What was measured", "What it means", "What to do", "When it is fine, and how to silence it"]


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    pages = sorted(f"codes/{page.name}" for page in (DOCS / "codes").iterdir())
    assert pages == [f"codes/{code.lower()}.md" for code in Code]
    index = (DOCS / "codes.md").read_text(encoding="utf-8")
    rows = re.findall(r'^\| <a id="(.*)"></a>\[(.*)\]\((.*)\) \|', index, re.MULTILINE)
    assert rows == [(code.lower(), code.value, page) for code, page in zip(Code, pages, strict=True)]


@pytest.mark.parametrize("code", Code)
def test_a_page_shows_the_message_and_says_what_to_do(code: Code) -> None:
    page = (DOCS / "codes" / f"{code.lower()}.md").read_text(encoding="utf-8")
    title, _, rest = page.partition("\n")
    words = re.sub(r" \(.*\)$", "", title)  # in parentheses: what people search for
    assert words.lower().replace(",", "") == f"# {code} {code.meaning}".lower().replace(",", "")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == SECTIONS
    first = rest.partition("## ")[0]
    assert re.search(rf"^```text\n.*\[{code}\]\n```$", first, re.MULTILINE)
    assert "\n```python\n" in page
    assert "exclude=" in page or "requires_grad_(False)" in page


def test_no_code_is_given_twice() -> None:
    assert len({code.value for code in Code}) == len(Code.__members__)
    assert len({code.meaning for code in Code}) == len(Code)
    assert all(re.fullmatch(r"SYM\d{3}", code) for code in Code)


def test_every_stop_has_a_code_of_its_own_but_a_gradient_that_is_too_small() -> None:
    assert CODE_OF_STOP.keys() == set(StopKind)
    assert len(set(CODE_OF_STOP.values())) == len(StopKind) - 1
    assert CODE_OF_STOP[StopKind.VANISHED] is CODE_OF_STOP[StopKind.ROUNDING] is Code.ROUNDING
