"""Pictures drawn in the background: nothing is lost or changed, and workers can be forked."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.io import gfile
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import LayerDiagnosis, SymmetryMonitor, SymmetryReport, SymmetryTracker
from lightning_symmetry.outputs import heatmap, tensorboard
from lightning_symmetry.outputs.event_file import EventFile
from lightning_symmetry.outputs.tensorboard import Background, write_findings
from tests.outputs.test_tensorboard import read
from tests.training import Classifier, assert_same, batches, failing_at_first, fill, make_trainer, mlp

SCRIPT = """
import sys, time, torch
from torch.utils.tensorboard import SummaryWriter
from lightning_symmetry import SymmetryTracker
from lightning_symmetry.outputs import tensorboard

draw = tensorboard.draw_overview
tensorboard.draw_overview = lambda report: time.sleep(0.5) or draw(report)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
tracker = SymmetryTracker(model, optimizer, output=SummaryWriter(sys.argv[1]))
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
"""


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make the picture of the model take a while."""
    draw = heatmap.draw_overview

    def draw_slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return draw(*args)

    monkeypatch.setattr(tensorboard, "draw_overview", draw_slowly)


def train(folder: Path, monitor: SymmetryMonitor | None, workers: int = 0) -> tuple[Classifier, list[str]]:
    """Return a trained module, and the warnings about outputs."""
    module = Classifier(fill(mlp(), 0.5))
    data = batches()
    if workers:
        context = multiprocessing.get_context("fork")
        data = DataLoader(data.dataset, batch_size=32, num_workers=workers, multiprocessing_context=context)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = TensorBoardLogger(folder, name="", version="")
        make_trainer([monitor] if monitor else [], logger=logger, max_steps=20).fit(module, data)
    return module, [str(warning.message) for warning in caught if "switches off" in str(warning.message)]


def test_a_process_that_ends_at_once_still_writes_its_picture(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert read(tmp_path).Tags()["images"] == ["symmetry/overview"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_is_the_same_to_the_last_bit_while_pictures_are_drawn(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, 0.3)  # the second epoch forks its workers meanwhile
    ends = []
    for monitor in (None, SymmetryMonitor(every_n_steps=1)):
        torch.manual_seed(3)
        module, _ = train(tmp_path / str(monitor is None), monitor, workers)
        ends.append((module.state_dict(), torch.get_rng_state()))
    assert_same(*ends)
    assert "symmetry/overview" in read(tmp_path / "False").Tags()["images"]


def test_the_training_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, threads = heatmap.draw_overview, set[threading.Thread]()

    def noting(*args: Any) -> Any:
        threads.add(threading.current_thread())
        return draw(*args)

    monkeypatch.setattr(tensorboard, "draw_overview", noting)
    train(tmp_path, SymmetryMonitor(every_n_steps=1))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_a_picture_that_failed_is_drawn_at_a_later_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = failing_at_first(heatmap.draw_overview, 2, MemoryError("no room"))
    monkeypatch.setattr(tensorboard, "draw_overview", failing)
    _, said = train(tmp_path, SymmetryMonitor(every_n_steps=1))
    assert said == []
    assert "symmetry/overview" in read(tmp_path).Tags()["images"]


def test_a_picture_that_cannot_be_drawn_is_given_up_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def failing(report: Any) -> None:
        tried.append(threading.current_thread() is threading.main_thread())
        raise MemoryError("no room")

    monkeypatch.setattr(tensorboard, "draw_overview", failing)
    _, said = train(tmp_path, SymmetryMonitor(every_n_steps=1))
    assert len(said) == 1
    assert "switches off its findings and pictures in TensorBoard, which failed with MemoryError" in said[0]
    assert not tried[0]  # in the background first
    assert sum(tried) == 3


def test_nothing_in_the_background_calls_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **kwargs or {})

    run = Background.run

    def run_noting(self: Background, task: Any, *args: Any) -> None:
        def noting() -> None:
            with Noting():  # type: ignore[no-untyped-call]
                task(*args)
            called.append("done")

        run(self, noting)

    monkeypatch.setattr(Background, "run", run_noting)
    train(tmp_path, SymmetryMonitor(every_n_steps=1))
    assert set(called) == {"done"}


def test_what_has_failed_at_the_last_check_is_drawn_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    failing = failing_at_first(heatmap.draw_overview, 1, MemoryError("no room"))

    def noting(report: Any) -> Any:
        tried.append(report)
        return failing(report)

    monkeypatch.setattr(tensorboard, "draw_overview", noting)
    train_one_step(tmp_path)
    assert len(tried) == 2
    assert read(tmp_path).Tags()["images"] == ["symmetry/overview"]


def train_one_step(folder: Path) -> None:
    """A training of one step."""
    net = mlp()
    writer, optimizer = SummaryWriter(str(folder)), torch.optim.SGD(net.parameters(), 0.1)
    with SymmetryTracker(net, optimizer, output=writer, on_symmetry="ignore"):
        net(torch.ones(2, 12)).sum().backward()
        optimizer.step()
    writer.close()


@pytest.mark.parametrize("library", ["torch.utils.tensorboard", "tensorboardX"])
def test_a_writer_that_the_user_has_closed_stays_closed_and_nothing_is_lost(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, 0.5)
    net, events = fill(mlp(), 0.5), []
    for is_late in (False, True):
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        folder = tmp_path / str(is_late)
        writer = pytest.importorskip(library).SummaryWriter(str(folder))
        tracker = SymmetryTracker(net, optimizer, output=writer, on_symmetry="ignore", every_n_steps=1)
        for _ in range(100):  # the last of which is written by `close`
            net(torch.ones(2, 12)).sum().backward()
            optimizer.step()
        for end in (writer, tracker) if is_late else (tracker, writer):
            end.close()
        assert len(list(folder.iterdir())) == 1
        events.append(read(folder))
    usual, late = events
    assert late.Tags()["images"] == usual.Tags()["images"] != []
    assert late.Tags()["tensors"] == usual.Tags()["tensors"] != []
    assert [event.step for event in late.Scalars("symmetry/redundant_units")][-1] == 99


def test_a_writer_that_is_used_again_gets_the_rest_in_its_new_file(tmp_path: Path) -> None:
    net = mlp()
    writer, optimizer = SummaryWriter(str(tmp_path), filename_suffix=".old"), torch.optim.SGD(net.parameters(), 0.0)
    with SymmetryTracker(net, optimizer, output=writer, on_symmetry="ignore", every_n_steps=1):
        for step in range(4):
            if step == 2:
                writer.close()
                writer.filename_suffix = ".new"
                writer.add_scalar("loss", 1.0, step)
            net(torch.ones(2, 12)).sum().backward()
            optimizer.step()
    writer.close()
    old, new = (
        read(next(tmp_path.glob(f"*{suffix}"))).Scalars("symmetry/redundant_units") for suffix in (".old", ".new")
    )
    assert [event.step for event in old] == [0, 1]
    assert [event.step for event in new] == [2, 3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("library", ["torch.utils.tensorboard", "tensorboardX"])
def test_what_is_left_for_a_folder_that_is_gone_is_dropped_at_the_end(library: str, tmp_path: Path) -> None:
    net = fill(mlp(), 0.5)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    writer = pytest.importorskip(library).SummaryWriter(str(tmp_path / "run"))
    tracker = SymmetryTracker(net, optimizer, output=writer, on_symmetry="ignore", every_n_steps=1)
    for _ in range(100):
        net(torch.ones(2, 12)).sum().backward()
        optimizer.step()
    writer.close()
    shutil.rmtree(tmp_path / "run")
    tracker.close()
    assert not (tmp_path / "run").exists()


class Uploads:
    """A remote file system whose files are uploaded as a whole."""

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}

    def makedirs(self, path: bytes) -> None:
        pass

    def write(self, path: bytes, content: bytes, binary_mode: bool = False) -> None:
        self.files[path] = content


def test_findings_are_uploaded_at_once_and_a_closed_remote_file_is_said_to_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uploads = Uploads()
    monkeypatch.setitem(gfile._REGISTERED_FILESYSTEMS, "uploads", uploads)
    writer = SummaryWriter("uploads://run")
    file = EventFile(writer)
    report = SymmetryReport(layers={"fc": LayerDiagnosis("fc", 8, 4)})
    write_findings(file, report, [])
    [content] = uploads.files.values()
    assert b"symmetry/findings" in content
    assert b"symmetry/overview" in content
    writer.close()
    write_findings(file, report, [])  # in the background: nothing to do
    assert file.is_gone
    with pytest.raises(OSError, match="the SummaryWriter of uploads://run is closed"):
        file.add([Summary.Value(tag="symmetry/number", simple_value=1.0)], 1)
    assert list(uploads.files.values()) == [content]


def test_metadata_that_a_writer_has_for_a_while_are_not_kept(tmp_path: Path) -> None:
    with pytest.importorskip("tensorboardX").SummaryWriter(str(tmp_path)) as writer:
        with writer.use_metadata(global_step=10, walltime=1.0):
            file = EventFile(writer)
        began = time.time()
        file.add([Summary.Value(tag="symmetry/number", simple_value=1.0)], 3)
    [event] = read(tmp_path).Scalars("symmetry/number")
    assert event.step == 3
    assert event.wall_time >= began


def test_a_writer_may_be_closed_at_any_moment(tmp_path: Path) -> None:
    values = [Summary.Value(tag="symmetry/number", simple_value=1.0)]
    for trial in range(40):
        folder = tmp_path / str(trial)
        writer = SummaryWriter(str(folder))
        file, background, has_begun = EventFile(writer), Background(), threading.Event()

        def write_many(file: EventFile = file, has_begun: threading.Event = has_begun) -> None:
            for step in range(60):
                file.add(values, step)
                has_begun.set()

        background.run(write_many)
        has_begun.wait()
        time.sleep(trial / 40 * 0.004)
        writer.close()
        background.wait()
        assert len(list(folder.iterdir())) == 1
        assert len(read(folder).Scalars("symmetry/number")) == 60


@pytest.mark.parametrize("num_failures", [1, 2])
def test_what_tasks_raise_is_raised_once(num_failures: int) -> None:
    background = Background()
    for _ in range(num_failures):
        background.run(nn.Identity().load_state_dict, {"weight": 1})
    with pytest.raises(RuntimeError, match="weight"):
        background.wait()
    background.wait()
    background.run(list[int]().append, 1)  # and goes on
    background.wait()


def test_a_forked_process_starts_a_thread_of_its_own() -> None:
    background = Background()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def run_in_the_fork() -> None:
        background.run(answers.put, "done")
        background.wait()

    process = context.Process(target=run_in_the_fork, daemon=True)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert answers.get() == "done"
    background.wait()
