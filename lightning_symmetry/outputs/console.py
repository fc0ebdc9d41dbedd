"""The closing summary on the console."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning_symmetry.outputs.output import Check, Output
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.tables import is_number_column, plain_table

_MAX_ROWS = 10


class ConsoleSummary(Output):
    """Summarises the model at the end of the training: in a table, or through ``notify`` if there are no groups."""

    name = "summary"

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify

    def write(self, check: Check) -> None:
        """Do nothing: warnings announce new findings."""

    def close(self, report: SymmetryReport) -> None:
        if any(layer.groups for layer in report.layers.values()):
            print_summary(report)
        else:
            self._notify(_last_line(report))


@preserved_random_numbers()  # importing Rich draws from `random`
def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with Rich if it is installed, else as plain text."""
    try:
        from rich import get_console
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(plain_table(head, rows))
        return
    table = Table()
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="right" if is_number_column(rows, i) else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as `Text`: Rich reads brackets in a string as markup
    if not any(map(_behind_bar, (sys.stdout, sys.stderr))):
        Console().print(table)
        return
    # While Rich draws a progress bar, it overwrites the output of other consoles. Printed text appears above the bar,
    # because Rich has replaced `sys.stdout`.
    console = Console(width=get_console().width)
    with console.capture() as drawn:
        console.print(table)
    print(drawn.get(), end="")


@contextmanager
def above_bars(logger: str) -> Iterator[None]:
    """Show the messages of a logger, given by its name, above a progress bar of Rich.

    While Rich draws a bar, it replaces ``sys.stdout`` and ``sys.stderr``. The handlers of the logger and of its parents
    keep the original streams, so they would write into the line of the bar.
    """
    replaced = {id(below): stream for stream in (sys.stdout, sys.stderr) if (below := _behind_bar(stream)) is not None}
    with ExitStack() as stack:
        for handler in _handlers_of(logger) if replaced else ():
            if id(handler.stream) in replaced:
                original = handler.setStream(replaced[id(handler.stream)])
                stack.callback(handler.setStream, original)
        yield


def _behind_bar(stream: object) -> object:
    """Return the original stream if Rich has replaced it by this one; else None."""
    return getattr(stream, "rich_proxied_file", None)


def _handlers_of(name: str) -> Iterator[logging.StreamHandler[Any]]:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from (handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler))
        logger = logger.parent if logger.propagate else None


def print_summary(report: SymmetryReport) -> None:
    """Print a table of the layers with groups, the report's notes, and a line on the whole model."""
    head, rows = report.table()
    rows = [row for row, layer in zip(rows, report.distinct_layers, strict=True) if layer.groups]
    if rows:
        print_table(head, rows[:_MAX_ROWS])
    if len(rows) > _MAX_ROWS:
        print(f"and {len(rows) - _MAX_ROWS} more layers with groups; `print(report)` lists all of them.")
    for line in (*report.notes(), _last_line(report)):
        print(line)


def _last_line(report: SymmetryReport) -> str:
    return f"Symmetry at step {report.step}: {report.totals()}"
