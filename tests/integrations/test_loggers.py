"""The outputs of a target; none if neither pictures nor scalars are wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.loggers.csv_logs import CSVLogger as FabricCSVLogger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from pytorch_lightning import loggers as old
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.outputs.loggers import outputs_of
from lightning_symmetry.tensorboard_plugin.events import SUMMARY_TAG
from tests.outputs.test_tensorboard import read
from tests.test_tracker import tracked
from tests.training import Classifier, fill, fit, mlp

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what MLflow imports
]

TENSORBOARD = ["TensorBoardScalars", "SymmetryTab", "TensorBoardPictures"]


class Subclass(SummaryWriter):
    """Make a target as users do."""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (str, ["FolderOutput"]),
        (Path, ["FolderOutput"]),
        (SummaryWriter, TENSORBOARD),
        (Subclass, TENSORBOARD),
        (TensorBoardLogger, TENSORBOARD),
        (old.TensorBoardLogger, TENSORBOARD),
        (FabricTensorBoardLogger, TENSORBOARD),
        (CSVLogger, ["LoggerScalars", "FolderOutput"]),
        (old.CSVLogger, ["LoggerScalars", "FolderOutput"]),
        (FabricCSVLogger, ["LoggerScalars", "FolderOutput"]),
        (lambda folder: DummyLogger(), ["LoggerScalars"]),
        (lambda folder: WandbLogger(save_dir=folder, offline=True), ["WandbOutput"]),
        (lambda folder: old.WandbLogger(save_dir=folder, offline=True), ["WandbOutput"]),
        (lambda folder: MLFlowLogger("e", tracking_uri=f"sqlite:///{folder}/runs.db"), ["MLflowOutput"]),
        (lambda folder: old.MLFlowLogger("e", tracking_uri=f"sqlite:///{folder}/runs.db"), ["MLflowOutput"]),
    ],
)
def test_every_target_is_known(make: Any, expected: list[str], tmp_path: Path) -> None:
    target = make(str(tmp_path))
    assert [type(output).__name__ for output in outputs_of(target, "findings", "summary")] == expected
    assert outputs_of(target, "none", "none") == []


@pytest.mark.parametrize("target", [None, 5, object(), os, ["folder"], print])
@pytest.mark.parametrize("wanted", ["findings", "none"])
def test_anything_else_is_refused(target: object, wanted: Any) -> None:
    with pytest.raises(TypeError, match=r"Expected argument `output` to be a folder, .* but got") as told:
        outputs_of(target, wanted, "none")
    assert repr(target) in str(told.value)


@pytest.mark.parametrize("make", [TensorBoardLogger, CSVLogger])
def test_a_logger_that_is_to_get_nothing_is_not_even_opened(make: Any, tmp_path: Path) -> None:
    assert outputs_of(make(tmp_path), "none", "none") == []
    assert list(tmp_path.iterdir()) == []
    monitor = SymmetryMonitor(heatmaps="none", scalars="none")
    fit(Classifier(fill(mlp(), 0.5)), monitor, logger=make(tmp_path))
    assert monitor.findings
    assert not [path for path in tmp_path.rglob("*") if b"symmetry" in path.name.encode() + contents(path)]


def contents(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_a_writer_of_tensorboardx(tmp_path: Path) -> None:
    other = pytest.importorskip("tensorboardX")
    with other.SummaryWriter(str(tmp_path)) as writer:
        tracked(fill(mlp(), 0.5), output=writer, every_n_steps=1)
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("symmetry/redundant_units")] == list(range(8))
    assert [event.step for event in events.Tensors(SUMMARY_TAG)] == list(range(8))
    tags = events.Tags()
    assert {"symmetry/overview", "symmetry/heatmap/0"} <= set(tags["images"])
    assert "symmetry/findings/text_summary" in tags["tensors"]
