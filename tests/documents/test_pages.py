"""What fails on a page, and that no page, block or command of the documents is left out."""

from __future__ import annotations

import re
import shlex
import tomllib
import unittest
from pathlib import Path

import pytest
from sybil.example import SybilFailure

from tests.documents import pages
from tests.documents.commands import problem_with
from tests.documents.pages import ELSEWHERE, ROOT, documents

# A command within a sentence: `make test`.
_NAMED = re.compile(r"(?<![`\w])`((?:make|lightning-symmetry|pip|tensorboard|(?:\.venv/bin/)?python) [^`\n]+)`")


def run(tmp_path: Path, text: str) -> None:
    """Runs a page of this text."""
    file = tmp_path / "page.md"
    file.write_text(text, encoding="utf-8")
    page = documents.parse(file)
    pages.set_up(page.namespace)
    try:
        for example in page:
            example.evaluate()
    finally:
        pages.tear_down(page.namespace)


SESSION = "```python\n>>> value = 1\n>>> value\n1\n\n```\n"


@pytest.mark.parametrize(
    "text",
    [
        SESSION,
        SESSION + "```python\nassert value == 1\n```\n",
        "<!--- invisible-code-block: python\nvalue = 1\n-->\n\n```python\nassert value == 1\n```\n",
        '```python title="train.py"\nassert __name__ != "__main__"\n```\n',
        "```python\nprint('one', 'two')\n```\n\n```text\none\ntwo\n```\n",
        "```python\nprint('one', 'two')\n```\n\n```text\none ...\n```\nand\n```text\n... two\n```\n",
        "```python\nfrom pathlib import Path\nassert not [*Path.cwd().iterdir()]\n```\n",
        "```bash\nmake test  # some minutes\nlightning-symmetry demo --repair\n```\n",
        "```yaml\n- class_path: lightning_symmetry.SymmetryMonitor\n  init_args: {patience: 4}\n```\n",
        '```toml\n[tool]\n```\n\n```json\n{"a": 1}\n```\n',
    ],
)
def test_what_passes(text: str, tmp_path: Path) -> None:
    run(tmp_path, text)


def test_what_is_skipped_tells_why(tmp_path: Path) -> None:
    with pytest.raises(unittest.SkipTest, match="it takes a GPU"):
        run(tmp_path, '<!--- skip: next "it takes a GPU" -->\n\n```python\nmissing\n```\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```ruby\nputs 1\n```\n", "Nothing runs a block of the language 'ruby'"),
        ("```\nwhatever\n```\n", "Nothing runs a block of the language ''"),
        ("<!--- skip: next -->\n\n```python\nprint()\n```\n", "say why"),
        ("```python\n>>> 1\n2\n\n```\n", "Expected:\n    2\nGot:\n    1"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "Nothing above says this:\n2"),
        (
            "```python\nprint(1)\n```\n\n```text\n1\n```\n\n```python\nprint(2)\n```\n\n```text\n1\n```\n",
            "What was said is:\n2",
        ),
        ("```bash\nrm -r runs\n```\n", "`rm -r runs`: nothing runs or checks such a command."),
        ("```bash\nmake haste\n```\n", "`make haste`: the Makefile has no haste."),
        ("```bash\nlightning-symmetry cure\n```\n", "there is no command cure"),
        ("```bash\nlightning-symmetry scan a.pt --loud\n```\n", "there is no option --loud"),
        ("```bash\nlightning-symmetry scan missing.pt\n```\n", "ends with 2"),
        ("```bash\npython -m pytest tests/test_missing.py\n```\n", "there is no tests/test_missing.py"),
        ("```bash\npython -m tests.missing\n```\n", "there is no module tests.missing"),
        ("```bash\npip install 'lightning-symmetry[missing]'\n```\n", "there is no extra missing"),
    ],
)
def test_what_fails(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SybilFailure, match=re.escape(message)):
        run(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nraise LookupError\n```\n", LookupError),
        ("```python\nimport warnings\nwarnings.warn('new')\n```\n", UserWarning),
        ("```yaml\n- class_path: lightning_symmetry.Monitor\n```\n", AttributeError),
        ("```json\n{\n```\n", ValueError),
    ],
)
def test_what_raises(text: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        run(tmp_path, text)


def test_every_page_is_taken_in() -> None:
    tested = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    places = {ROOT / path for path in tested["testpaths"]}
    for page in pages.pages():
        assert documents.should_parse(page) is (page.relative_to(ROOT).as_posix() not in ELSEWHERE)
        assert {page, *page.parents} & places, f"{page} is in none of the testpaths of pyproject.toml"


def test_pages_that_are_left_out_run_elsewhere() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


EVERY_PAGE = pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())


@EVERY_PAGE
def test_no_prompt_stands_outside_of_a_block(page: Path) -> None:
    document = documents.parse(page)
    ends = [0, *(example.region.end for example in document)]
    starts = [*(example.region.start for example in document), document.end]
    assert ">>>" not in "".join(document.text[end:start] for end, start in zip(ends, starts, strict=True))


@EVERY_PAGE
def test_commands_within_sentences(page: Path) -> None:
    commands = [shlex.split(command) for command in _NAMED.findall(page.read_text(encoding="utf-8"))]
    assert list(filter(None, map(problem_with, commands))) == []
