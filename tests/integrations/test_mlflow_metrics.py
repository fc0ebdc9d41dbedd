"""Metrics that MLflow accepts only in a special form; test_mlflow.py reads everything back."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from lightning.pytorch.loggers import MLFlowLogger
from mlflow import MlflowClient
from torch import Tensor, nn

from lightning_symmetry import SymmetryMonitor
from tests.outputs.test_scalars import Wide
from tests.test_tracker import tracked
from tests.training import Classifier, fill, fit, mlp

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what MLflow imports
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("error:.*switches off"),
]


def logger_of(folder: Path, prefix: str = "") -> MLFlowLogger:
    return MLFlowLogger(
        "any", tracking_uri=f"sqlite:///{folder}/runs.db", artifact_location=str(folder / "artifacts"), prefix=prefix
    )


def metrics_of(client: MlflowClient, run_id: str) -> dict[str, float]:
    return {key: value for key, value in client.get_run(run_id).data.metrics.items() if "symmetry/" in key}


NAMES = ["a/b", "/a", "a//b", "a@b", "<c>", "ä", "x" * 300]


class Named(nn.Module):
    """Symmetric layers with names that MLflow refuses."""

    def __init__(self) -> None:
        super().__init__()
        for name in [*NAMES, "last"]:  # the units of the last one are told apart by the head
            self.add_module(name, fill(nn.Linear(12, 12), 0.5))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


@pytest.mark.parametrize("is_raw", [False, True])
@pytest.mark.filterwarnings("ignore:Symmetry.*parts of the model do not train")
def test_layers_of_any_name_have_curves_and_pictures(is_raw: bool, tmp_path: Path) -> None:
    logger = logger_of(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    if is_raw:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
        experiment = mlflow.create_experiment("raw", artifact_location=str(tmp_path / "raw"))
        with mlflow.start_run(experiment_id=experiment) as run:
            tracked(Named(), output=run, every_n_steps=1)
        run_id = run.info.run_id
    else:
        tracked(Named(), output=logger, every_n_steps=1)
        assert logger.run_id is not None
        run_id = logger.run_id
    metrics = metrics_of(client, run_id)
    # Four totals; a width and a number of directions of each symmetric layer, and of the last one, whose rows are
    # nearly parallel when they have parted.
    assert len(metrics) == 4 + 2 * (len(NAMES) + 1)
    widths = {key: value for key, value in metrics.items() if key.startswith("symmetry/effective_width/")}
    assert len(widths) == len(NAMES) + 1
    assert len(client.list_artifacts(run_id, "symmetry/heatmaps")) == len(NAMES)


def test_more_curves_than_fit_into_one_request(tmp_path: Path) -> None:
    logger = logger_of(tmp_path, prefix="mine")
    monitor = SymmetryMonitor(scalars="layers", heatmaps="none")
    fit(Classifier(Wide(1200, 0)), monitor, logger=logger, max_steps=1)
    assert logger.run_id is not None
    metrics = metrics_of(logger.experiment, logger.run_id)
    assert len(metrics) == 4 + 2 * 1201
    assert "mine-symmetry/effective_width/net.layers.1199" in metrics


def test_every_check_is_a_point_of_the_curve(tmp_path: Path) -> None:
    logger = logger_of(tmp_path)
    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(every_n_steps=1), logger=logger, max_steps=6)
    assert logger.run_id is not None
    history = logger.experiment.get_metric_history(logger.run_id, "symmetry/effective_width/net.0")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1.0) for step in range(1, 6)]
