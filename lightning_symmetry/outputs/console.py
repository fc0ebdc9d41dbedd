"""The closing summary on the console."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_symmetry.outputs.output import Check, Output
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.tables import is_number_column, plain_table

_MAX_ROWS = 10


class ConsoleSummary(Output):
    """Says what became of the model once the training has ended: a line of a healthy one, else a table.

    Args:
        tell: says the line.
    """

    name = "summary"

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def write(self, check: Check) -> None:
        """Nothing: the console is told of findings by warnings."""

    def close(self, report: SymmetryReport) -> None:
        if any(layer.groups for layer in report.layers.values()):
            print_summary(report)
        else:
            self._tell(_last_line(report))


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
        table.add_row(*map(Text, row))  # a layer name may hold brackets, which Rich would take for markup
    if not any(map(_behind_bar, (sys.stdout, sys.stderr))):
        Console().print(table)
        return
    # Rich draws a bar, for Lightning on its global console, and overwrites what goes to the terminal past the bar. What
    # is printed to `sys.stdout`, which Rich has replaced, appears above the bar, whichever console draws it.
    console = Console(width=get_console().width)
    with console.capture() as drawn:
        console.print(table)
    print(drawn.get(), end="")


@contextmanager
def above_bars(logger: str) -> Iterator[None]:
    """Let messages of a logger appear above a bar of Rich, while there is one, instead of within it.

    Rich replaces ``sys.stdout`` and ``sys.stderr`` while it draws a bar, but the handlers of logs keep the stream that
    they were made with, and write into the line of the bar.

    Args:
        logger: name of the logger, whose handlers and those of its parents are concerned.
    """
    replaced = {id(below): stream for stream in (sys.stdout, sys.stderr) if (below := _behind_bar(stream)) is not None}
    moved = []
    for handler in _handlers_of(logger) if replaced else ():
        stream = handler.stream
        if id(stream) in replaced:
            handler.setStream(replaced[id(stream)])
            moved.append((handler, stream))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def _behind_bar(stream: object) -> object:
    """Return the stream that Rich has replaced by this one while it draws a bar; None if it has not."""
    return getattr(stream, "rich_proxied_file", None)


def _handlers_of(name: str) -> Iterator[logging.StreamHandler[Any]]:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from (handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler))
        logger = logger.parent if logger.propagate else None


def print_summary(report: SymmetryReport) -> None:
    """Print what became of the model: a table of the layers with groups, and a line on all of it."""
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
