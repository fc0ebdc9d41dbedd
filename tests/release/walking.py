"""Does what a page of the documentation tells, block by block, as a stranger would type it.

Run as a script, it walks ``docs/walk.md`` and prints how long each step took: ``python -m tests.release.walking``.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.release.index import ROOT, package_index
from tests.serving import Server, free_port, is_up, wait_for

PAGE = ROOT / "docs" / "walk.md"
_BLOCK = re.compile(r'(?ms)^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$')
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: what stands behind its fence: ``python``, ``diff``, ``bash`` or ``text``.
        title: the file that it is about, or an empty string.
        text: what is in it.
    """

    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Step:
    """A section of a page: its heading and its blocks."""

    heading: str
    blocks: tuple[Block, ...]


def steps_of(page: str) -> list[Step]:
    """The sections of a page that have blocks."""
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    steps = [Step(section.split("\n", 1)[0], tuple(_blocks_of(section))) for section in sections]
    return [step for step in steps if step.blocks]


def _blocks_of(section: str) -> Iterable[Block]:
    for found in _BLOCK.finditer(section):
        yield Block(found["language"], found["title"] or "", found["text"])


class Walker:
    """Somebody in front of an empty folder and a shell.

    Args:
        folder: the folder.
        python: the interpreter that ``python3`` is.
        environment: variables of the shell beside those that every process has.
    """

    def __init__(self, folder: Path, python: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        commands = folder / ".bin"
        commands.mkdir()
        # A script, since an interpreter finds its library from where a link to it lies.
        (commands / "python3").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n', encoding="utf-8")
        (commands / "python3").chmod(0o755)
        inherited = {name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        path = f"{commands}:/usr/local/bin:/usr/bin:/bin"
        self.environment = {**inherited, "PATH": path, "COLUMNS": "200", "PYTHONUNBUFFERED": "1", **environment}
        self.seen = ""  # what the last commands printed

    def do(self, block: Block) -> None:
        """Write a file, change one, run commands, or look whether they printed what the page shows."""
        if block.language == "python":
            (self.folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "diff":
            self._change(block)
        elif block.language == "bash" and block.text.startswith("tensorboard "):
            self._open_tab(block.text)
        elif block.language == "bash":
            self.seen = self._run(block.text)
        else:
            assert block.language == "text", f"Nobody knows what to do with a block of {block.language!r}."
            self._compare(block.text)

    def _change(self, block: Block) -> None:
        lines = block.text.splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
        file = self.folder / block.title
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{block.title} has {text.count(old)} times:\n{old}"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def _shell(self, commands: str) -> list[str]:
        activate = ". .venv/bin/activate\n" if (self.folder / ".venv").exists() else ""
        return ["/bin/bash", "-e", "-o", "pipefail", "-c", activate + commands]

    def _run(self, commands: str) -> str:
        result = subprocess.run(
            self._shell(commands),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, f"{commands}\nexit status {result.returncode}\n{result.stdout}"
        return result.stdout

    def _open_tab(self, command: str) -> None:
        """Start TensorBoard, wait for the tab to have a run, and stop it."""
        port = free_port()
        process = subprocess.Popen(
            self._shell(f"exec {shlex.join(shlex.split(command))} --port {port}"),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        server = Server(f"http://localhost:{port}", process)
        try:
            wait_for(lambda: is_up(server) and server.runs(), _PATIENCE_S)
        finally:
            server.stop()

    def _compare(self, expected: str) -> None:
        got = _without_folders(self.seen)
        if not doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
            raise AssertionError(f"The page shows\n\n{expected}\nbut the commands printed\n\n{got}")


def _without_folders(text: str) -> str:
    """A text with ``train.py:31`` for ``/some/where/train.py:31``."""
    return re.sub(r"(?<=\s)/\S*/(?=\w+\.py:\d)", "", text)


def walk(python: Path, folder: Path, constraints: Path) -> dict[str, float]:
    """Walk the page with one interpreter.

    Args:
        python: the interpreter.
        folder: an empty folder.
        constraints: pip's file of the versions that it may install.

    Returns:
        The seconds that each section took, by heading.

    Raises:
        AssertionError: if a command fails, or prints something else than the page shows.
    """
    (folder / "index").mkdir()
    (folder / "home").mkdir()
    seconds = {}
    with package_index(folder / "index") as url:
        indexes = f"{os.environ.get('PIP_EXTRA_INDEX_URL', '')} {url}".strip()
        pins = {"PIP_EXTRA_INDEX_URL": indexes, "PIP_CONSTRAINT": str(constraints)}
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off"}
        walker = Walker(folder / "home", python, {**pins, **quiet})
        for step in steps_of(PAGE.read_text(encoding="utf-8")):
            start = time.perf_counter()
            for block in step.blocks:
                walker.do(block)
            seconds[step.heading] = time.perf_counter() - start
    return seconds


def main() -> None:
    """Print the table of the page."""
    python = Path(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        for heading, seconds in walk(python.resolve(), Path(folder), ROOT / "constraints.txt").items():
            print(f"| {heading} | {seconds:.0f} s |")


if __name__ == "__main__":
    main()
