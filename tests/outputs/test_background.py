"""Pictures that are drawn while the training goes on: nothing is lost or changed, and workers can be forked."""

from __future__ import annotations

import multiprocessing
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
from torch import nn
from torch.utils.data import DataLoader

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.outputs import heatmap, tensorboard
from lightning_symmetry.outputs.background import Background
from tests.outputs.test_tensorboard import read
from tests.training import Classifier, assert_same, batches, fill, make_trainer, mlp

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


def train(folder: Path, monitor: SymmetryMonitor | None, workers: int) -> Classifier:
    module = Classifier(fill(mlp(), 0.5))
    data = batches()
    if workers:
        context = multiprocessing.get_context("fork")
        data = DataLoader(data.dataset, batch_size=32, num_workers=workers, multiprocessing_context=context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = TensorBoardLogger(folder, name="", version="")
        make_trainer([monitor] if monitor else [], logger=logger, max_steps=20).fit(module, data)
    return module


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
        module = train(tmp_path / str(monitor is None), monitor, workers)
        ends.append((module.state_dict(), torch.get_rng_state()))
    assert_same(*ends)
    assert "symmetry/overview" in read(tmp_path / "False").Tags()["images"]


def test_the_training_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, threads = heatmap.draw_overview, set[threading.Thread]()

    def noting(*args: Any) -> Any:
        threads.add(threading.current_thread())
        return draw(*args)

    monkeypatch.setattr(tensorboard, "draw_overview", noting)
    train(tmp_path, SymmetryMonitor(every_n_steps=1), workers=0)
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_a_picture_that_failed_is_drawn_at_a_later_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = heatmap.draw_overview, 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise MemoryError("no room")
        return draw(*args)

    monkeypatch.setattr(tensorboard, "draw_overview", failing)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, SymmetryMonitor(every_n_steps=1), workers=0)
    assert [w for w in caught if "switches off" in str(w.message)] == []
    assert "symmetry/overview" in read(tmp_path).Tags()["images"]


def test_what_a_task_raises_is_raised_once() -> None:
    background = Background()
    background.run(nn.Identity().load_state_dict, {"weight": 1})
    with pytest.raises(RuntimeError, match="weight"):
        background.wait()
    background.wait()
    background.run(list[int]().append, 1)  # and goes on
    background.wait()
