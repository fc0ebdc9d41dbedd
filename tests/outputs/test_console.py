"""What is on the screen of a terminal at the end of a training."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import rich
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_symmetry import SymmetryMonitor
from tests.screen import Screen, screen
from tests.training import Classifier, batches, fill, make_trainer, mlp

pytestmark = pytest.mark.filterwarnings("ignore")  # they would be in the way of the lines to look at

TABLE = [
    "┏━━━━━━━┳━━━━━━━┳━━━━━━━━━┳━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┓",
    "┃ layer ┃ units ┃ working ┃ dead ┃ groups               ┃",
    "┡━━━━━━━╇━━━━━━━╇━━━━━━━━━╇━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━┩",
    "│ net.0 │    16 │       1 │    0 │ locked: all 16 units │",
    "│ net.2 │     8 │       1 │    0 │ locked: all 8 units  │",
    "└───────┴───────┴─────────┴──────┴──────────────────────┘",
]
SUMMARY = "Symmetry at step 7: 6 of 28 units of 3 layers are working (22 redundant)."


def seen_after(bar: Any, net: Any, monkeypatch: pytest.MonkeyPatch, *, first_line: str) -> Screen:
    """The screen after a training; messages of Lightning go there, too, as in any script."""
    with screen(monkeypatch) as shown:
        handler = logging.StreamHandler(sys.stderr)
        logger = logging.getLogger("lightning.pytorch")
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "level", logging.INFO)
        trainer = make_trainer([SymmetryMonitor(), bar], enable_progress_bar=True)
        trainer.fit(Classifier(net), batches())
        print("the line after")
    assert first_line in shown.lines, "\n".join(shown.lines)
    return shown


@pytest.mark.parametrize("make", [RichProgressBar, TQDMProgressBar, lambda: RichProgressBar(leave=True)])
def test_the_table_stands_on_lines_of_its_own(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich, "_console", None)  # another test may have made it for another terminal
    shown = seen_after(make(), fill(mlp(), 0.5), monkeypatch, first_line=TABLE[0])
    at = shown.lines.index(TABLE[0])
    assert shown.lines[at : at + 7] == [*TABLE, SUMMARY]
    assert "the line after" in shown.lines


@pytest.mark.parametrize("make", [RichProgressBar, lambda: RichProgressBar(leave=True)])
def test_so_does_the_line_on_a_healthy_model(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich, "_console", None)
    seen_after(make(), mlp(), monkeypatch, first_line="Symmetry at step 7: all 28 units of 3 layers are working.")
