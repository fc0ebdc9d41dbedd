"""Destinations of findings: with loggers that store only numbers, and for several monitors in one training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.tensorboard_plugin.events import SUMMARY_TAG
from tests.outputs.test_tensorboard import read
from tests.training import Classifier, batches, fill, make_trainer, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


class Numbers(Logger):
    """Stores only numbers and has no folder, like Comet's logger."""

    def __init__(self, log_dir: Any = None) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self._log_dir = log_dir

    @property
    def name(self) -> str:
        return "numbers"

    @property
    def version(self) -> int:
        return 0

    @property
    def log_dir(self) -> Any:
        return self._log_dir

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def fit(monitors: list[SymmetryMonitor], folder: Path, logger: Any, **options: Any) -> Any:
    trainer = make_trainer(monitors, logger=logger, default_root_dir=folder, **options)
    trainer.fit(Classifier(fill(mlp(), 0.5)), batches())
    return trainer


def found_in(folder: Path) -> set[str]:
    return {finding["layer"] for finding in json.loads((folder / "findings.json").read_text())["findings"]}


@pytest.mark.parametrize("log_dir", [None, "s3://bucket/run", 7])
def test_what_a_logger_cannot_keep_goes_where_a_run_without_loggers_writes(log_dir: Any, tmp_path: Path) -> None:
    logger = Numbers(log_dir)
    fit([SymmetryMonitor()], tmp_path, [logger, Numbers()])
    assert found_in(tmp_path / "symmetry") == {"net.0", "net.2"}
    assert (tmp_path / "symmetry" / "report.html").exists()
    assert [step for step, metrics in logger.rows if "symmetry/redundant_units" in metrics] == [0, 1, 3, 7]
    assert [path.name for path in tmp_path.iterdir()] == ["symmetry"]


def test_beside_a_logger_that_keeps_findings_it_needs_no_folder(tmp_path: Path) -> None:
    fit([SymmetryMonitor()], tmp_path, [Numbers(), CSVLogger(tmp_path, "", "")])
    assert found_in(tmp_path / "symmetry") == {"net.0", "net.2"}
    assert not (tmp_path / "symmetry_1").exists()
    fit([SymmetryMonitor()], tmp_path / "board", [Numbers(), TensorBoardLogger(tmp_path / "board", "", "")])
    assert not (tmp_path / "board" / "symmetry").exists()


def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    fit([SymmetryMonitor(every_n_steps=1)], tmp_path, [Numbers()], fast_dev_run=8)
    assert list(tmp_path.iterdir()) == []


def two() -> list[SymmetryMonitor]:
    return [SymmetryMonitor(every_n_steps=1, include=[f"net.{place}"]) for place in (0, 2)]


@pytest.mark.parametrize("make", [lambda folder: False, lambda folder: CSVLogger(folder, "", "")])
def test_two_monitors_have_a_folder_each(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = fit(two(), tmp_path, make(tmp_path))
    assert found_in(tmp_path / "symmetry") == {"net.0"}
    assert found_in(tmp_path / "symmetry-2") == {"net.2"}
    assert "another training" not in caplog.text
    assert float(trainer.callback_metrics["symmetry/redundant_units"]) == 15
    assert float(trainer.callback_metrics["symmetry-2/redundant_units"]) == 7
    shown = {key: value for key, value in trainer.progress_bar_metrics.items() if key.startswith("working")}
    assert shown == {"working_units": "1/16", "working_units-2": "1/8"}
    if trainer.loggers:
        head = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
        assert {"symmetry/redundant_units", "symmetry-2/redundant_units"} <= set(head)


def test_two_monitors_have_a_run_each_in_tensorboard(tmp_path: Path) -> None:
    fit(two(), tmp_path, TensorBoardLogger(tmp_path, "", ""))
    for folder, redundant in ((tmp_path, 15), (tmp_path / "symmetry-2", 7)):
        events = read(folder)
        assert {event.value for event in events.Scalars("symmetry/redundant_units")} == {redundant}
        assert len(events.Tensors(SUMMARY_TAG)) == 10


def test_two_fits_with_one_monitor_each_have_a_place(tmp_path: Path) -> None:
    monitor = SymmetryMonitor()
    for name in ("symmetry", "symmetry_1"):
        fit([monitor], tmp_path, False)
        assert found_in(tmp_path / name) == {"net.0", "net.2"}
