"""The tracker under Lightning Fabric."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_symmetry import SymmetryTracker, SymmetryWarning
from tests.test_tracker import endless, loss_of
from tests.training import assert_same, fill, mlp


def train(fabric: Fabric, net: nn.Module, steps: int = 8, **options: Any) -> SymmetryTracker | None:
    """An ordinary Fabric loop; watched if there are options for a tracker."""
    torch.manual_seed(0)
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=1e-2))
    tracker = SymmetryTracker(model, optimizer, **options) if options else None
    for _, batch in zip(range(steps), endless(), strict=False):
        optimizer.zero_grad()
        fabric.backward(loss_of(model, batch))
        optimizer.step()
    if tracker:
        tracker.close()
    return tracker


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_training_is_the_same_to_the_last_bit(precision: Any) -> None:
    states = []
    watched: dict[str, Any] = {"every_n_steps": 1, "on_symmetry": "ignore"}
    for options in ({}, watched):
        torch.manual_seed(0)
        net = nn.Sequential(fill(nn.Linear(12, 16), 0.1), nn.Dropout(0.2), nn.Tanh(), fill(nn.Linear(16, 4), 0.1))
        train(Fabric(accelerator="cpu", devices=1, precision=precision), net, **options)
        states.append((dict(net.state_dict()), torch.get_rng_state()))
    assert_same(*states)


def test_names_and_findings_are_those_of_the_model_itself() -> None:
    with pytest.warns(SymmetryWarning, match=r"^0: all 16 units are identical"):
        tracker = train(Fabric(accelerator="cpu", devices=1), fill(mlp(), 0.1), heatmaps="none")
    assert tracker is not None
    assert tracker.report is not None
    assert list(tracker.report.layers) == ["0", "2", "4"]
    assert {finding.layer for finding in tracker.findings} == {"0", "2"}


def test_the_loggers_of_fabric_are_outputs(tmp_path: Path) -> None:
    fabric = Fabric(
        accelerator="cpu", devices=1, loggers=[TensorBoardLogger(tmp_path, "tb"), CSVLogger(tmp_path, "csv")]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        train(fabric, fill(mlp(), 0.1), output=fabric.loggers)
    events = EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    assert "symmetry/redundant_units" in events.Tags()["scalars"]
    assert "symmetry/overview" in events.Tags()["images"]
    assert (tmp_path / "csv" / "version_0" / "symmetry" / "findings.json").exists()
    assert "symmetry/redundant_units" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
