"""The screen of a terminal at the end of a training."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import rich
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from lightning_symmetry import SymmetryMonitor
from tests.screen import Screen, screen
from tests.training import Classifier, batches, fill, make_trainer, mlp

pytestmark = pytest.mark.filterwarnings("ignore")  # they would appear among the expected lines

TABLE = [
    "┏━━━━━━━┳━━━━━━━┳━━━━━━━━━┳━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┓",
    "┃ layer ┃ units ┃ working ┃ dead ┃ groups               ┃",
    "┡━━━━━━━╇━━━━━━━╇━━━━━━━━━╇━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━┩",
    "│ net.0 │    16 │       1 │    0 │ locked: all 16 units │",
    "│ net.2 │     8 │       1 │    0 │ locked: all 8 units  │",
    "└───────┴───────┴─────────┴──────┴──────────────────────┘",
]
SUMMARY = "Symmetry at step 7: 6 of 28 units of 3 layers are working (22 redundant)."


def seen_after(bar: Any, net: Any, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """The screen after a training; messages of Lightning go there, too, as in any script."""
    monkeypatch.setattr(rich, "_console", None)  # another test may have made it for another terminal
    with screen(monkeypatch) as shown:
        handler = logging.StreamHandler(sys.stderr)
        logger = logging.getLogger("lightning.pytorch")
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "level", logging.INFO)
        trainer = make_trainer([SymmetryMonitor(), bar], enable_progress_bar=True)
        trainer.fit(Classifier(net), batches())
        print("the line after")
    return shown


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (RichProgressBar, "working_units: 6/28"),
        (lambda: RichProgressBar(leave=True), "working_units: 6/28"),
        (TQDMProgressBar, "working_units=6/28"),
    ],
)
def test_the_table_stands_on_lines_of_its_own(make: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = seen_after(make(), fill(mlp(), 0.5), monkeypatch)
    assert TABLE[0] in shown.lines, shown
    at = shown.lines.index(TABLE[0])
    assert shown.lines[at : at + 7] == [*TABLE, SUMMARY]
    assert "the line after" in shown.lines[at + 7 :]
    assert any(said in line for line in shown.lines if "Epoch" in line), shown


@pytest.mark.parametrize("make", [RichProgressBar, TQDMProgressBar])
def test_so_does_the_line_on_a_healthy_model(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = seen_after(make(), mlp(), monkeypatch)
    assert "Symmetry at step 7: all 28 units of 3 layers are working." in shown.lines, shown
    assert not any("working_units" in line for line in shown.lines if "Epoch" in line)


def test_the_bar_says_so_until_it_is_mended(tmp_path: Path) -> None:
    said = []

    class Bar(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            said.append(trainer.progress_bar_metrics.get("working_units"))

    logger = CSVLogger(tmp_path)
    net = fill(mlp(), 0.5)
    trainer = make_trainer(
        [SymmetryMonitor(every_n_steps=1, on_symmetry="break", heatmaps="none"), Bar()], logger=logger
    )
    trainer.fit(Classifier(net), batches())
    assert (said[0], said[1], said[-1]) == (None, "6/28", None)
    assert not any("6/28" in path.read_text() for path in tmp_path.rglob("*.csv"))
