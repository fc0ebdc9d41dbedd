"""The folder with everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn

from lightning_symmetry import SymmetryMonitor, SymmetryTracker
from lightning_symmetry.outputs.folder import FolderOutput
from lightning_symmetry.outputs.pictures import file_name
from tests.test_tracker import sgd, tracked, train
from tests.training import Classifier, fill, fit, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


def files(folder: Path) -> set[str]:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {"events" if "tfevents" in name else name for name in names}


ALL = {"events", "findings.json", "overview.png", "heatmaps/0.png", "heatmaps/2.png", "report.html"}


def test_a_sick_training_leaves_everything(tmp_path: Path) -> None:
    tracker = tracked(fill(mlp(), 0.5), output=tmp_path / "deep" / "exp1")
    folder = tmp_path / "deep" / "exp1"
    assert files(folder) == ALL
    found = json.loads((folder / "findings.json").read_text())
    assert (found["schema"], found["status"], found["step"]) == (1, "symmetric", 7)
    assert found["report"] == json.loads(json.dumps(tracker.report.to_dict()))
    first = found["findings"][0]
    assert first.keys() == {
        *("layer", "units", "verdict", "cause", "value", "origin", "reason", "first_step", "last_step"),
        *("broken_step", "modules", "message"),
    }
    assert (first["layer"], first["units"], first["verdict"]) == ("0", list(range(16)), "locked")
    assert "Every weight is 0.5: constant initialisation" in first["message"]
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100
    assert '"0"' in (folder / "report.html").read_text()


def test_a_healthy_training_leaves_a_report_too(tmp_path: Path) -> None:
    tracked(mlp(), output=tmp_path)
    assert files(tmp_path) == {"events", "findings.json", "overview.png", "report.html"}
    found = json.loads((tmp_path / "findings.json").read_text())
    assert (found["status"], found["findings"]) == ("healthy", [])


def test_findings_are_there_before_the_training_ends(tmp_path: Path) -> None:
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, output=str(tmp_path)):
        train(net, optimizer, 3)
        assert json.loads((tmp_path / "findings.json").read_text())["status"] == "symmetric"
        assert (tmp_path / "heatmaps" / "0.png").exists()


def test_an_error_loses_nothing(tmp_path: Path) -> None:
    def interrupted(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        train(model, optimizer, steps)
        _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        tracked(fill(mlp(), 0.5), None, interrupted, output=tmp_path)
    assert "report.html" in files(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fit(Breaking(fill(mlp(), 0.5)), SymmetryMonitor(), default_root_dir=tmp_path / "trainer")
    assert "report.html" in files(tmp_path / "trainer" / "symmetry")


class Breaking(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            _ = 1 / 0
        return super().training_step(batch, batch_idx)


def test_a_trainer_without_loggers_leaves_something_only_if_something_is_found(tmp_path: Path) -> None:
    fit(Classifier(mlp()), SymmetryMonitor(), default_root_dir=tmp_path)
    assert files(tmp_path) == set()
    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(), default_root_dir=tmp_path, fast_dev_run=4)
    assert files(tmp_path) == set()
    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(scalars="none", heatmaps="none"), default_root_dir=tmp_path)
    assert files(tmp_path) == set()
    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(), default_root_dir=tmp_path)
    assert {"symmetry/findings.json", "symmetry/overview.png", "symmetry/report.html"} <= files(tmp_path)


def test_a_logger_of_numbers_gets_a_folder_beside_them(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(), logger=logger)
    assert {"metrics.csv", "symmetry/findings.json", "symmetry/report.html"} <= files(tmp_path)
    assert "symmetry/redundant_units" in (tmp_path / "metrics.csv").read_text()


def test_names_of_layers_may_hold_anything(tmp_path: Path) -> None:
    net = nn.Sequential()
    names = ["a/b", "a_b", "..", "<b>", "x" * 300, "ä"]
    for name in names:
        net.add_module(name.replace(".", "·"), fill(nn.Linear(12, 12), 0.5))
    net.add_module("head", nn.Linear(12, 4))
    tracked(net, output=tmp_path)
    found = json.loads((tmp_path / "findings.json").read_text())
    assert len(list((tmp_path / "heatmaps").glob("*.png"))) == len({f["layer"] for f in found["findings"]}) >= 5
    assert len({file_name(name) for name in names}) == len(names)


def test_what_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"Expected a folder to write to but '.*file' is a file"):
        FolderOutput(tmp_path / "file" / "below", "findings", "summary")
    if os.geteuid():  # the superuser may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="Expected a folder that can be written but got"):
            FolderOutput(tmp_path / "closed", "findings", "summary")


def test_a_folder_that_vanishes_disturbs_no_training(tmp_path: Path) -> None:
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    with (
        warnings.catch_warnings(record=True) as caught,
        SymmetryTracker(net, optimizer, output=tmp_path / "out", every_n_steps=1, heatmaps="all") as tracker,
    ):
        warnings.simplefilter("always")
        (tmp_path / "out").write_text("a file in its place")
        train(net, optimizer, 8)
    said = [str(warning.message) for warning in caught if "switches off" in str(warning.message)]
    assert len(said) == 1
    assert "SymmetryTracker switches off its output to" in said[0]
    assert tracker.findings


def test_loggers_are_known_without_their_libraries() -> None:
    code = "import lightning_symmetry.tracker, lightning_symmetry.outputs.loggers, sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert not loaded & {"tensorboard", "PIL", "torchmetrics", "wandb", "mlflow", "matplotlib", "lightning", "pandas"}
    assert "torch.utils.tensorboard" not in result.stdout.split()


def test_pixels_are_there_for_layers_in_any_precision(tmp_path: Path) -> None:
    net = fill(mlp(), 0.5).to(torch.bfloat16)
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, output=tmp_path):
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.rand(8, 12, dtype=torch.bfloat16)).square().mean().backward()
            optimizer.step()
    assert (tmp_path / "heatmaps" / "0.png").exists()
