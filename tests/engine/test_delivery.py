"""Outputs fail for themselves: real Trainers, real loggers, real files."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.outputs import heatmap, tab, tensorboard
from tests.outputs.test_tab import history
from tests.outputs.test_tensorboard import read
from tests.training import Classifier, batches, fill, make_trainer, mlp

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
    """Ten checks of a sick network; what is said of outputs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer([SymmetryMonitor(every_n_steps=1), *callbacks], logger=loggers)
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
        "SymmetryMonitor switches off its scalars in Faulty, which failed with OSError: disk full. Training goes on."
    ]
    assert faulty.calls == 3
    assert steps_in(tmp_path / "sound" / "metrics.csv") == list(range(10))
    events = read(tmp_path / "board")
    assert [event.step for event in events.Scalars("symmetry/redundant_units")] == list(range(10))
    assert events.Images("symmetry/heatmap/net.0")


def test_a_passing_failure_is_tried_again(tmp_path: Path) -> None:
    faulty = Faulty(tmp_path, range(2, 4))
    assert train(faulty) == []
    assert steps_in(tmp_path / "metrics.csv") == list(range(10))  # with those that it has missed


class Unreachable(CSVLogger):
    """Its experiment cannot be had for a while once the training has begun."""

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
    assert steps_in(tmp_path / "metrics.csv") == list(range(2, 10))


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_pictures_that_failed_are_drawn_at_the_next_check(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    draw = heatmap.draw_layer

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= failures:
            raise MemoryError("no room")
        return draw(*args)

    monkeypatch.setattr(tensorboard, "draw_layer", failing)
    said = train(TensorBoardLogger(tmp_path, name="", version=""))
    tags = read(tmp_path).Tags()["images"]
    assert bool(said) == (failures == 3)
    assert ("symmetry/heatmap/net.2" in tags) == (failures < 3)
    assert "symmetry/overview" in tags


def test_the_tab_tells_all_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_event, calls = tab.add_event, 0

    def failing(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("disk full")
        add_event(*args)

    monkeypatch.setattr(tab, "add_event", failing)
    assert train(TensorBoardLogger(tmp_path, name="", version="")) == []
    folded = history(read(tmp_path))
    assert folded.steps == list(range(10))
    assert set(folded.layers) == {"net.0", "net.2", "net.4"}
