"""Write what the monitor says of each library into the tables of ``docs/wild.md``: ``python -m tests.wild``.

With names of libraries only their rows are made anew.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tests.architectures.operators  # noqa: F401
from tests.wild.watching import Library, outcome

PAGE = Path(__file__).parents[2] / "docs" / "wild.md"
START, END = "<!-- {} -->\n", "<!-- /{} -->"


def libraries() -> list[Library]:
    """Return the installed libraries, by name."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    found = [importlib.import_module(f"{__package__}.{file.stem}").LIBRARY for file in files]
    return sorted((library for library in found if library.version), key=lambda library: library.name)


def rows(library: Library) -> Iterator[str]:
    """Train every model of a library and yield its row."""
    for model in library.models:
        got = outcome(library, model)
        _, bug = library.bugs.get(model, ("", ""))
        said = f"{', '.join(sorted(got.codes))}: {bug}" if bug else "none"
        cells = f"{library.name} {library.version}", model, str(got.step), got.status, f"{got.coverage:.0%}", said
        yield f"| {' | '.join(cells)} |\n"


def planted(library: Library) -> str:
    """Plant the fault of a library and return its row."""
    plant = library.plant
    got = outcome(library, plant.model, plant.fault)
    said = next(text for text in got.warned if plant.code in text and plant.layer in text)
    return f"| {library.name} | {plant.model}: {plant.text} | {said.replace('|', chr(92) + '|')} |\n"


def replace_rows(text: str, name: str, library: str, made: str) -> str:
    """Replace the rows of a library within a table of the page; rows are sorted by library."""
    start, end = START.format(name), END.format(name)
    head, rest = text.split(start)
    table, tail = rest.split(end)
    lines = table.splitlines(keepends=True)
    kept = [line for line in lines[2:] if re.match(rf"\| {re.escape(library)}( \S+)? \|", line) is None]
    ordered = sorted([*kept, *made.splitlines(keepends=True)], key=lambda line: line.split()[1])
    return "".join([head, start, *lines[:2], *ordered, end, tail])


def main(*names: str) -> None:
    """Write the rows of all libraries, or of some."""
    for library in libraries():
        if not names or library.name in names:
            made = "".join(rows(library)), planted(library)
            print(*made, sep="", flush=True)
            text = PAGE.read_text(encoding="utf-8")
            for name, new in zip(("healthy", "planted"), made, strict=True):
                text = replace_rows(text, name, library.name, new)
            PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
