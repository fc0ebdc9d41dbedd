"""The failure of an output affects neither the training nor other outputs: real Trainers, loggers and files."""

from __future__ import annotations

import csv
import random
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_symmetry import SymmetryMonitor, SymmetryReport
from lightning_symmetry.outputs import folder, heatmap, pictures, tab
from lightning_symmetry.outputs.console import print_table
from lightning_symmetry.outputs.findings import findings_json
from lightning_symmetry.outputs.output import Check, Output
from tests.outputs.test_tab import history
from tests.outputs.test_tensorboard import read
from tests.test_tracker import tracked
from tests.training import Classifier, assert_same, batches, failing_at_first, fill, make_trainer, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


class Faulty(CSVLogger):
    """Raises at some of its calls."""

    def __init__(self, folder: Path, failing: range) -> None:
        super().__init__(folder, name="", version="")
        self.calls = 0
        self._failing = failing

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if any(name.startswith("symmetry") for name in metrics):
            self.calls += 1
            if self.calls - 1 in self._failing:
                raise OSError("disk full")
        super().log_metrics(dict(metrics), step)


def train(loggers: Any, *callbacks: Callback) -> list[str]:
    """Run ten checks of a sick network. Return the warnings about outputs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer([*callbacks, SymmetryMonitor(every_n_steps=1)], logger=loggers)
        trainer.fit(Classifier(fill(mlp(), 0.5)), batches())
    assert trainer.global_step == 10
    return [str(warning.message) for warning in caught if "switches off" in str(warning.message)]


def steps_in(path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("symmetry/redundant_units")]


def test_a_logger_that_fails_does_not_silence_the_others(tmp_path: Path) -> None:
    faulty = Faulty(tmp_path / "faulty", range(100))
    sound = CSVLogger(tmp_path / "sound", name="", version="")
    board = TensorBoardLogger(tmp_path / "board", name="", version="")
    assert train([faulty, sound, board]) == [
        "SymmetryMonitor switches off its scalars in Faulty, which failed with OSError: disk full. Training goes on. "
        "All findings remain in its attribute `findings`."
    ]
    assert faulty.calls == 3
    assert steps_in(tmp_path / "sound" / "metrics.csv") == list(range(10))
    events = read(tmp_path / "board")
    assert [event.step for event in events.Scalars("symmetry/redundant_units")] == list(range(10))
    assert events.Images("symmetry/heatmap/net.0")


def test_a_passing_failure_is_tried_again(tmp_path: Path) -> None:
    faulty = Faulty(tmp_path, range(2, 4))
    assert train(faulty) == []
    assert steps_in(tmp_path / "metrics.csv") == list(range(10))  # including the missed ones


class Unreachable(CSVLogger):
    """A logger whose experiment is unavailable for a while after the training has begun."""

    failures = 0

    @property
    def experiment(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host")
        return super().experiment


def test_a_logger_that_cannot_be_reached_at_first(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(trainer.logger, Unreachable)
            trainer.logger.failures = 2

    assert train(Unreachable(tmp_path, name="", version=""), Interrupt()) == []
    assert steps_in(tmp_path / "metrics.csv") == list(range(1, 10))  # it is tried at the start, and at the first checks


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_pictures_that_failed_are_drawn_at_the_next_check(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = failing_at_first(heatmap.draw_layer, failures, MemoryError("no room"))
    monkeypatch.setattr(heatmap, "draw_layer", failing)
    said = train(TensorBoardLogger(tmp_path, name="", version=""))
    tags = read(tmp_path).Tags()["images"]
    assert bool(said) == (failures == 3)
    assert ("symmetry/heatmap/net.2" in tags) == (failures < 3)
    assert "symmetry/overview" in tags


def test_the_tab_tells_all_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = failing_at_first(tab.SymmetryTab._add_summary, 1, OSError("disk full"))
    monkeypatch.setattr(tab.SymmetryTab, "_add_summary", failing)
    assert train(TensorBoardLogger(tmp_path, name="", version="")) == []
    folded = history(read(tmp_path))
    assert folded.steps == list(range(10))
    assert set(folded.layers) == {"net.0", "net.2", "net.4"}


class Journal(Output):
    """Keeps its checks; some calls of ``write``, counted from 0, fail."""

    name = "journal"

    def __init__(self, failing: set[int]) -> None:
        self.calls: list[int] = []  # the step of every call
        self.checks: list[Check] = []  # without those that failed
        self.last: SymmetryReport | None = None
        self._failing = failing

    def write(self, check: Check) -> None:
        self.calls.append(check.report.step)
        if len(self.calls) - 1 in self._failing:
            raise OSError("disk full")
        self.checks.append(check)

    def close(self, report: SymmetryReport) -> None:
        self.last = report


def journal_of(failing: set[int], steps: int = 5) -> tuple[Journal, list[str]]:
    """Check at every step. Return the journal and the warnings about it."""
    journal = Journal(failing)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracked(fill(mlp(), 0.5), steps=steps, output=journal, every_n_steps=1)
    return journal, [str(warning.message) for warning in caught if "switches off" in str(warning.message)]


def test_missed_checks_come_in_order_without_looks_and_with_all_that_changed() -> None:
    journal, said = journal_of({1, 2})
    assert journal.calls == [0, 1, 1, 1, 2, 3, 4]
    assert [check.report.step for check in journal.checks] == [0, 1, 2, 3, 4]
    # At step 3 the pictures of the findings of step 1 are due, but the weights of steps 1 and 2 are gone.
    assert [bool(check.looks) for check in journal.checks] == [True, False, False, True, True]
    assert [set(check.changed) for check in journal.checks[1:]] == [{"0", "2", "4"}] * 3 + [set()]
    assert journal.last is not None
    assert said == []


def test_what_was_missed_last_is_tried_once_more_at_the_end() -> None:
    journal, said = journal_of({3, 4})
    assert [check.report.step for check in journal.checks] == [0, 1, 2, 3, 4]
    assert journal.last is not None
    assert said == []


def test_an_output_is_closed_even_if_it_fails_to_the_end() -> None:
    journal, said = journal_of({4, 5})
    assert [check.report.step for check in journal.checks] == [0, 1, 2, 3]
    assert journal.last is not None
    assert len(said) == 1


def test_an_output_that_is_switched_off_is_left_alone() -> None:
    journal, said = journal_of({1, 2, 3}, steps=8)
    assert journal.calls == [0, 1, 1, 1]
    assert journal.last is None
    assert said == [
        "SymmetryTracker switches off its journal, which failed with OSError: disk full. Training goes on. "
        "All findings remain in its attribute `findings`."
    ]


@dataclass
class Record(Output):
    """An output of a user: equal to others, and without a hash."""

    failures: int = 0
    steps: list[int] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        raise RuntimeError("no name yet")

    def write(self, check: Check) -> None:
        if self.failures:
            raise OSError("disk full")
        self.steps.append(check.report.step)


def test_outputs_are_told_apart_by_identity() -> None:
    failing, first, second = Record(1), Record(), Record()
    assert first == second
    with pytest.warns(UserWarning, match="switches off its Record, which failed with OSError: disk full"):
        tracked(mlp(), output=[failing, first, second], every_n_steps=1)
    assert first.steps == second.steps == list(range(8))
    assert failing.steps == []


def draw() -> None:
    """Draw a number from every generator."""
    random.random()
    np.random.rand()
    torch.rand(1)


class Drawing(Journal):
    """Draws random numbers at every call."""

    def __init__(self) -> None:
        super().__init__(set())

    def write(self, check: Check) -> None:
        draw()
        super().write(check)

    def close(self, report: SymmetryReport) -> None:
        draw()
        super().close(report)


def drawing_at_its_first_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """Draw random numbers, like a function that imports a library."""
    is_new = iter([True])

    def drawing(*args: Any, **kwargs: Any) -> Any:
        if next(is_new, False):
            draw()
        return function(*args, **kwargs)

    return drawing


@pytest.mark.parametrize("kind", ["an output of one's own", "a folder"])
def test_random_numbers_that_outputs_draw_are_put_back(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "findings_json", drawing_at_its_first_call(findings_json))
    monkeypatch.setattr(pictures, "heatmap_image", drawing_at_its_first_call(pictures.heatmap_image))
    states = []
    for output in (None, tmp_path if kind == "a folder" else Drawing()):
        random.seed(0)
        np.random.seed(0)
        tracked(fill(mlp(), 0.5), output=output, every_n_steps=1)  # which seeds PyTorch
        states.append([random.getstate(), str(np.random.get_state()), torch.get_rng_state()])
    assert_same(*states)


def test_random_numbers_are_put_back_when_outputs_are_made(tmp_path: Path) -> None:
    class Opening(CSVLogger):
        @property
        def log_dir(self) -> str:
            draw()
            return super().log_dir

    states = []
    for callbacks in ([], [SymmetryMonitor()]):
        random.seed(0)
        logger = Opening(tmp_path, name="", version=str(len(callbacks)))
        make_trainer(callbacks, logger=logger).fit(Classifier(mlp()), batches())
        states.append(random.getstate())
    assert states[0] == states[1]
    tracked(mlp(), output=logger)
    assert random.getstate() == states[1]


def test_a_table_is_printed_without_a_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    before = random.getstate()
    print_table(["name"], [["value"]])
    assert random.getstate() == before
