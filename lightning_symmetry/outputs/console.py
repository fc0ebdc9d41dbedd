"""The closing summary on the console."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from typing_extensions import override

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

    @override
    def write(self, check: Check) -> None:
        """Nothing: the console is told of findings by warnings."""

    @override
    def close(self, report: SymmetryReport) -> None:
        if any(layer.groups for layer in report.layers.values()):
            print_summary(report)
        else:
            self._tell(_last_line(report))


@preserved_random_numbers()  # importing Rich draws from `random`
def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with Rich if it is installed, else as plain text."""
    try:
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
    Console().print(table)


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
