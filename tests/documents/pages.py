"""Which pages there are, and how they run: block by block, in one namespace and an empty folder for each page."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import pytest
from sybil import Document, Example, Sybil
from sybil.integration.pytest import SybilItem
from sybil.typing import Evaluator

from tests.documents.blocks import compare, find_blocks, find_skips

ROOT = Path(__file__).parents[2]
# Pages with a test of their own, which runs or compares their blocks: a walk that starts from an empty machine, and the
# findings of the demo, which a script writes into the page.
ELSEWHERE = {"docs/gallery.md": "tests/docs_figures/test_gallery.py", "docs/walk.md": "tests/release/walking.py"}

# What Lightning says of a Trainer with few options, and a page does not show.
_NOISE = ("`max_epochs` was not set",)


class Page(Document):
    """A page that remembers what its blocks have said on the console, for blocks of text to be compared with."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text, path)
        self._said = io.StringIO()
        self._was_quoted = False

    @property
    def said(self) -> str:
        """What was said since the last blocks of text: the output, the errors and the warnings, as they came."""
        return self._said.getvalue()

    def evaluate(self, example: Example, evaluator: Evaluator) -> None:
        if self._was_quoted and evaluator is not compare:
            self._said = io.StringIO()
        self._was_quoted = evaluator is compare
        with _listening(self._said):
            super().evaluate(example, evaluator)


@contextmanager
def _listening(said: TextIO) -> Iterator[None]:
    """Writes what is printed, and what is warned of, into a file, and in the end to where it should have gone."""
    start = said.tell()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        said.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
        warnings.showwarning = show
        for message in _NOISE:
            warnings.filterwarnings("ignore", message)
        yield
    said.seek(start)
    print(said.read(), end="")


def pages() -> list[Path]:
    """All pages of the documentation."""
    alone = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
    return [*alone, *sorted((ROOT / "docs").rglob("*.md"))]


def set_up(namespace: dict[str, Any]) -> None:
    """What a page starts from: an empty folder, the same random numbers, and a ``monkeypatch`` of its own."""
    import torch

    monkeypatch = pytest.MonkeyPatch()
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    monkeypatch.chdir(folder.name)
    torch.manual_seed(0)
    namespace.update(__name__="page", monkeypatch=monkeypatch, folder_of_the_page=folder)


def tear_down(namespace: dict[str, Any]) -> None:
    """Undoes what the page has patched, and drops everything that it has made."""
    namespace["monkeypatch"].undo()
    namespace["folder_of_the_page"].cleanup()
    namespace.clear()


documents = Sybil(
    parsers=[find_blocks, find_skips],
    path=str(ROOT),
    patterns=["*.md"],
    excludes=["CHANGELOG.md", "tests/*", *ELSEWHERE],
    document_types={".md": Page},
    setup=set_up,
    teardown=tear_down,
)


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests, with the blocks of each page where the first of them stood, in the order of the page."""
    blocks: dict[Path, list[SybilItem]] = {}
    for item in items:
        if isinstance(item, SybilItem):
            blocks.setdefault(item.path, []).append(item)
    ordered: list[pytest.Item] = []
    for item in items:
        if not isinstance(item, SybilItem):
            ordered.append(item)
        elif item.path in blocks:
            page = blocks.pop(item.path)
            page.sort(key=lambda block: block.example.start)
            ordered += page
    return ordered
