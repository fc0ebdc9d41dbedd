"""MLflow on SQLite, read back with its own client."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from lightning.pytorch.loggers import MLFlowLogger
from mlflow import MlflowClient
from PIL import Image

from lightning_symmetry import SymmetryMonitor, SymmetryTracker
from tests.test_tracker import sgd, train
from tests.training import Classifier, batches, fill, make_trainer, mlp

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what MLflow imports
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def read_back(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Check everything in a run with sick layers."""
    history = client.get_metric_history(run_id, "symmetry/redundant_units")
    assert [(metric.step, metric.value) for metric in history][-1] == (4, 22.0)
    names = {file.path for file in client.list_artifacts(run_id, "symmetry")}
    assert names == {"symmetry/findings.json", "symmetry/heatmaps", "symmetry/overview.png"}
    pictures = {Path(file.path).name for file in client.list_artifacts(run_id, "symmetry/heatmaps")}
    assert len(pictures) == 2
    local = Path(client.download_artifacts(run_id, "symmetry", str(folder)))
    found = json.loads((local / "findings.json").read_text())
    assert found["status"] == "symmetric"
    assert {finding["verdict"] for finding in found["findings"]} >= {"locked"}
    with Image.open(local / "overview.png") as image:
        assert min(image.size) > 100


def test_the_logger_of_lightning(tmp_path: Path) -> None:
    logger = MLFlowLogger(
        "symmetry", tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=str(tmp_path / "a")
    )
    monitors = [SymmetryMonitor(every_n_steps=4), SymmetryMonitor(every_n_steps=4, include=["net.2"])]
    make_trainer(monitors, logger=logger, max_steps=8).fit(Classifier(fill(mlp(), 0.5)), batches())
    assert logger.run_id is not None
    history = logger.experiment.get_metric_history(logger.run_id, "symmetry-2/redundant_units")
    assert {metric.value for metric in history} == {7.0}
    found = (tmp_path / "a" / logger.run_id / "artifacts" / "symmetry-2" / "findings.json").read_text()
    assert {finding["layer"] for finding in json.loads(found)["findings"]} == {"net.2"}
    (tmp_path / "local").mkdir()
    read_back(logger.experiment, logger.run_id, tmp_path / "local")


def test_a_raw_run(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    experiment = mlflow.create_experiment("symmetry", artifact_location=str(tmp_path / "a"))
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    with (
        mlflow.start_run(experiment_id=experiment) as run,
        SymmetryTracker(net, optimizer, output=run, every_n_steps=4),
    ):
        train(net, optimizer)
    (tmp_path / "local").mkdir()
    read_back(MlflowClient(), run.info.run_id, tmp_path / "local")
