"""The folder with all results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn

from lightning_symmetry import LayerDiagnosis, SymmetryMonitor, SymmetryReport, SymmetryTracker
from lightning_symmetry.outputs.folder import FolderOutput
from lightning_symmetry.outputs.loggers import outputs_of
from lightning_symmetry.outputs.output import Check
from lightning_symmetry.outputs.pictures import file_name
from tests.outputs.test_tensorboard import read
from tests.test_tracker import sgd, tracked, train
from tests.training import Classifier, batches, fill, fit, make_trainer, mlp

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
        *("broken_step", "modules", "mirrored", "message", "code", "stop", "follows"),
    }
    assert (first["layer"], first["units"], first["verdict"]) == ("0", list(range(16)), "locked")
    assert first["message"].startswith(
        "0, all 16 units: they are identical in weights and gradients (locked since step 0)"
    )
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
    # The folder is complete in itself.
    assert [event.step for event in read(tmp_path / "symmetry").Scalars("symmetry/redundant_units")] == [0, 1, 3, 7]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(folder: Path) -> set[float]:
    """Return the findings in a folder."""
    return {finding["value"] for finding in json.loads((folder / "findings.json").read_text())["findings"]}


def test_trainings_without_a_logger_have_folders_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(), default_root_dir=tmp_path)
    first = contents(tmp_path)
    fit(Classifier(mlp()), SymmetryMonitor(), default_root_dir=tmp_path)
    assert contents(tmp_path) == first  # nothing was found
    fit(Classifier(fill(mlp(), 0.25)), SymmetryMonitor(), default_root_dir=tmp_path)
    folder = tmp_path / "symmetry"
    assert f"{folder} holds another training; this one is written to {folder}_1." in caplog.messages
    assert contents(tmp_path).items() >= first.items()
    assert (values(folder), values(tmp_path / "symmetry_1")) == ({0.5}, {0.25})
    assert len([*(tmp_path / "symmetry_1").glob("events*")]) == 1


def test_a_folder_that_holds_another_training_stays_as_it_is(tmp_path: Path) -> None:
    tracked(fill(mlp(), 0.5), output=tmp_path / "run")
    first = contents(tmp_path)
    tracked(mlp(), output=tmp_path / "run")
    assert contents(tmp_path).items() >= first.items()
    assert files(tmp_path / "run_1") == ALL - {"heatmaps/0.png", "heatmaps/2.png"}


def test_a_training_that_is_resumed_goes_on_in_its_folder(tmp_path: Path) -> None:
    for value in (0.5, 0.25):
        state = tracked(fill(mlp(), value), output=tmp_path / "run").state_dict()
    net = fill(mlp(), 0.25)
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, output=tmp_path / "run") as tracker:
        tracker.load_state_dict(state)
        train(net, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run_1"]
    assert (values(tmp_path / "run"), values(tmp_path / "run_1")) == ({0.5}, {0.25})
    assert [event.step for event in read(tmp_path / "run_1").Scalars("symmetry/redundant_units")] == [0, 1, 3, 7, 8, 15]


def test_of_trainings_that_start_at_once_each_gets_a_folder(tmp_path: Path) -> None:
    num_trainings = 8
    start = threading.Barrier(num_trainings)

    def write(value: int) -> None:
        layer = LayerDiagnosis(f"layer{value}", 8, 4)
        output = FolderOutput(tmp_path / "run", "findings", "summary")
        start.wait()
        output.write(Check(SymmetryReport(layers={layer.name: layer}), [], [], set()))
        output.close(SymmetryReport(layers={layer.name: layer}))

    with ThreadPoolExecutor(num_trainings) as pool:
        list(pool.map(write, range(num_trainings)))
    reports = [json.loads(file.read_text())["report"] for file in tmp_path.rglob("findings.json")]
    assert {name for report in reports for name in report["layers"]} == {f"layer{i}" for i in range(num_trainings)}


def test_two_monitors_of_one_trainer_lose_nothing(tmp_path: Path) -> None:
    monitors = [SymmetryMonitor(include=[f"net.{i}"]) for i in (0, 2)]
    logger = CSVLogger(tmp_path, name="", version="")
    make_trainer(monitors, logger=logger).fit(Classifier(fill(mlp(), 0.5)), batches())
    found = [json.loads(file.read_text())["findings"] for file in sorted(tmp_path.rglob("findings.json"))]
    assert [[finding["layer"] for finding in findings] for findings in found] == [["net.0"], ["net.2"]]


def test_the_folder_is_settled_when_the_output_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job").mkdir()
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, output=["run", "~/run"]):
        train(net, optimizer, 2)
        monkeypatch.chdir(tmp_path / "job")
        train(net, optimizer, 6)
    assert files(tmp_path / "run") == files(tmp_path / "home" / "run") == ALL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "job", "run"]
    assert files(tmp_path / "job") == set()


@pytest.mark.parametrize("address", ["s3://bucket/run", "memory://run", Path("gs://bucket/run")])
def test_an_address_that_is_no_folder_is_refused(address: str | Path) -> None:
    with pytest.raises(ValueError, match=f"^Expected a local folder to write to but got '{address}'\\.$"):
        outputs_of(address, "findings", "summary")


@pytest.mark.skipif(os.name == "nt", reason="Windows guesses where the home directories of others are")
def test_the_home_directory_of_nobody_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^Expected a folder below a known home directory but got '~no_such_user/a'\.$"
    ):
        outputs_of("~no_such_user/a", "findings", "summary")


def test_a_logger_may_tell_its_folder_as_a_path(tmp_path: Path) -> None:
    class PathLogger(CSVLogger):
        @property
        def log_dir(self) -> Any:
            return Path(super().log_dir)

    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(), logger=PathLogger(tmp_path, name="", version=""))
    assert "symmetry/findings.json" in files(tmp_path)


def test_the_report_is_about_this_training_only(tmp_path: Path) -> None:
    tracked(mlp(), output=tmp_path / "runs" / "secret")
    tracked(mlp(), output=tmp_path / "runs")
    assert "secret" not in (tmp_path / "runs" / "report.html").read_text()


def test_a_conclusion_is_there_before_the_training_ends(tmp_path: Path) -> None:
    net = mlp()
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, output=tmp_path, every_n_steps=1) as tracker:
        train(net, optimizer, 1)
        assert json.loads((tmp_path / "findings.json").read_text())["status"] == "inconclusive"
        train(net, optimizer, 7)
        assert tracker.report is not None
        assert tracker.report.status == "healthy"
        assert json.loads((tmp_path / "findings.json").read_text())["status"] == "healthy"


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3e38])
@pytest.mark.filterwarnings("ignore:Symmetry.*parts of the model do not train")
def test_weights_that_are_no_numbers_leave_json_that_is(value: float, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*switches off.*")
        tracked(fill(mlp(), value), output=tmp_path, every_n_steps=1)
    assert {"findings.json", "overview.png", "report.html"} <= files(tmp_path)
    found = json.loads((tmp_path / "findings.json").read_text(), parse_constant=refuse)
    assert found["step"] == 7


# TensorBoard's writer thread dies at this failure.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path: Path) -> None:
    """Limit the size of files, which the events reach first; Python ignores the signal of the limit."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        warnings.catch_warnings(record=True) as caught,
        SymmetryTracker(net, optimizer, output=tmp_path, every_n_steps=1, heatmaps="all") as tracker,
    ):
        warnings.simplefilter("always")
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
        try:
            train(net, optimizer, 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        train(net, optimizer, 2)
    assert [str(warning.message) for warning in caught if "switches off" in str(warning.message)] == []
    events = sorted(tmp_path.glob("events*"))
    assert len(events) > 1  # or the limit was not reached
    assert tracker.findings
    steps = {event.step for event in read(tmp_path).Scalars("symmetry/redundant_units")}
    assert steps == set(range(102))
    assert files(tmp_path) == ALL | {"heatmaps/4.png"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_what_cannot_be_written_leaves_no_scraps(tmp_path: Path) -> None:
    output = FolderOutput(tmp_path / "out", "findings", "summary")
    (tmp_path / "out" / ".findings.json.new").parent.mkdir()
    (tmp_path / "out" / ".findings.json.new").symlink_to("/dev/full")
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, output=output, every_n_steps=1):
        train(net, optimizer, 4)
    # The incomplete event is removed, and everything is written at the next check.
    assert files(tmp_path / "out") == ALL


@pytest.mark.filterwarnings("ignore:Symmetry.*parts of the model do not train")
def test_names_of_layers_may_hold_anything(tmp_path: Path) -> None:
    net = nn.Sequential()
    names = ["a/b", "a_b", "..", "<b>", "x" * 300, "ä", "aux", "a:b", "end ", file_name("a/b")]
    for name in names:
        net.add_module(name.replace(".", "·"), fill(nn.Linear(12, 12), 0.5))
    net.add_module("head", nn.Linear(12, 4))
    tracked(net, output=tmp_path)
    found = json.loads((tmp_path / "findings.json").read_text())
    assert len(list((tmp_path / "heatmaps").glob("*.png"))) == len({f["layer"] for f in found["findings"]}) >= 8
    assert len({file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "layer", ["aux", "aux.0", "CON", "nul.", ".prn.0", "Com1", "lpt9.weight", "a:b", "a.", "a ", "a?"]
)
def test_names_of_files_are_allowed_on_windows(layer: str) -> None:
    name = file_name(layer)
    assert re.fullmatch(r"[\w.-]+", name, re.ASCII)
    device = name.split(".")[0].lower()
    assert device not in {"aux", "con", "nul", "prn", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


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
