from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.release.index import ROOT
from tests.release.walking import PAGE, Block, Step, Walker, steps_of, walk

# Interpreters, by name or path, and pip's files of the versions that it may install; with a space between them.
PYTHONS = os.environ.get("PYTHONS", sys.executable).split()
CONSTRAINTS = os.environ.get("CONSTRAINTS", "constraints.txt").split()


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_block_of_the_page_does_what_it_shows(python: str, constraints: str, tmp_path: Path) -> None:
    found = shutil.which(python)
    assert found is not None, f"There is no {python!r}."
    seconds = walk(Path(found).resolve(), tmp_path, ROOT / constraints)
    assert seconds.keys() == {step.heading for step in steps_of(PAGE.read_text())}


def test_sections_and_blocks_of_a_page() -> None:
    page = 'Hello\n\n## One\n\n```python title="a.py"\nx = 1\n```\n\n```text\n1\n```\n\n## Two\n\nNothing.\n'
    assert steps_of(page) == [Step("One", (Block("python", "a.py", "x = 1\n"), Block("text", "", "1\n")))]


def test_what_goes_wrong_is_told(tmp_path: Path) -> None:
    walker = Walker(tmp_path, Path(sys.executable), {})
    walker.do(Block("python", "a.py", "print(1 + 1)\n"))
    walker.do(Block("bash", "", "python3 a.py\n"))
    walker.do(Block("text", "", "2\n"))
    with pytest.raises(AssertionError, match=r"The page shows\n\n3\n\nbut the commands printed\n\n2"):
        walker.do(Block("text", "", "3\n"))
    with pytest.raises(AssertionError, match=r"a\.py has 0 times:\nx = 1"):
        walker.do(Block("diff", "a.py", "-x = 1\n+x = 2\n"))
    with pytest.raises(AssertionError, match="exit status 3"):
        walker.do(Block("bash", "", "exit 3\n"))
