"""The output of all examples: a table of our figures beside those of the paper, and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        quantity: the compared quantity, with its unit.
        ours: the result of this run.
        papers: the paper's result and its place in the paper, or the prediction of its theory.
    """

    quantity: str
    ours: str
    papers: str


def arguments(description: str) -> argparse.Namespace:
    """Parse the options of all examples: ``short``, for a run of a few seconds, and ``output``, a folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="train so little that it takes a few seconds")
    parser.add_argument("--output", type=Path, default=Path("examples_output"), help="folder of the picture")
    return parser.parse_args()


def show(title: str, rows: Sequence[Row], figure: Figure, output: Path, name: str) -> None:
    """Print the table, and write the picture to ``name.png`` in a folder."""
    table = Table("", "ours", "the paper's", title=title)
    for row in rows:
        table.add_row(row.quantity, row.ours, row.papers)
    console = Console()
    console.print(table)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{name}.png"
    figure.savefig(path, dpi=150)
    console.print(f"Picture: {path}", soft_wrap=True)
