"""Both namespaces of Lightning, their command lines, and the automatically added monitor."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as current
import pytest
import pytorch_lightning as old
import pytorch_lightning.cli
import torch
from torch import Tensor

from lightning_symmetry import SymmetryMonitor, SymmetryWarning
from lightning_symmetry.integrations.autoloaded import AutoloadedMonitor
from tests.training import batches, fill, mlp

NAMESPACES = pytest.mark.parametrize("namespace", [current, old], ids=["lightning.pytorch", "pytorch_lightning"])


def model_of(namespace: Any, value: float | None = 0.1) -> Any:
    """Return a model of one of the namespaces, which do not accept each other's models."""

    class Model(namespace.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp() if value is None else fill(mlp(), value)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def train_dataloader(self) -> Any:
            return batches()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Model()


def fit(namespace: Any, callbacks: Any, folder: Path, value: float | None = 0.1, **options: Any) -> Any:
    trainer = namespace.Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        max_steps=8,
        logger=options.pop("logger", False),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        trainer.fit(model_of(namespace, value))
    return trainer


@NAMESPACES
@pytest.mark.parametrize("is_bare", [False, True])
def test_bare_and_in_a_list(namespace: Any, is_bare: bool, tmp_path: Path) -> None:
    monitor = SymmetryMonitor()
    fit(namespace, monitor if is_bare else [monitor], tmp_path)
    assert {finding.layer for finding in monitor.findings} == {"net.0", "net.2"}
    assert (tmp_path / "symmetry" / "findings.json").exists()


def test_both_namespaces_in_one_process(tmp_path: Path) -> None:
    for namespace in (current, old, current):
        monitor = SymmetryMonitor()
        trainer = fit(namespace, [monitor], tmp_path, logger=namespace.loggers.CSVLogger(tmp_path))
        assert monitor.findings
        assert float(trainer.callback_metrics["symmetry/redundant_units"]) == 22.0


@NAMESPACES
def test_the_callbacks_metrics_can_stop_a_training(namespace: Any, tmp_path: Path) -> None:
    stopper = namespace.callbacks.EarlyStopping("symmetry/redundant_units", divergence_threshold=5.0, patience=100)
    # In any order.
    for callbacks in ([stopper, SymmetryMonitor()], [SymmetryMonitor(), stopper]):
        trainer = fit(namespace, callbacks, tmp_path, max_epochs=4, limit_train_batches=1)
        assert trainer.global_step == 1
        metrics = trainer.callback_metrics  # at step 0, where the head is still constant too
        assert float(metrics["symmetry/redundant_units"]) == 25.0
        assert float(metrics["symmetry/effective_width_fraction"]) == pytest.approx(3 / 28)
    healthy = fit(namespace, [stopper, SymmetryMonitor()], tmp_path, None, max_epochs=4, limit_train_batches=1)
    assert healthy.global_step == 4
    assert float(healthy.callback_metrics["symmetry/redundant_units"]) == 0.0


def run_cli(namespace: Any, tmp_path: Path, arguments: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", ["train.py"])

    class Model(namespace.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = fill(mlp(), 0.1)

        training_step = type(model_of(namespace)).training_step
        train_dataloader = type(model_of(namespace)).train_dataloader
        configure_optimizers = type(model_of(namespace)).configure_optimizers

    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  accelerator: cpu\n  max_steps: 8\n  logger: false\n  enable_checkpointing: false\n"
        "  enable_progress_bar: false\n  enable_model_summary: false\n"
        f"  default_root_dir: {tmp_path}\n  callbacks:\n    - class_path: lightning_symmetry.SymmetryMonitor\n"
        f"      init_args: {{{arguments}}}\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        return importlib.import_module(f"{namespace.__name__}.cli").LightningCLI(
            Model, args=["fit", "--config", str(config)], save_config_callback=None, seed_everything_default=0
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, about what Lightning does
@NAMESPACES
def test_command_line(namespace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "patience: 4, include: ['net.*'], scalars: layers, require_conclusion: true"
    cli = run_cli(namespace, tmp_path, arguments, monkeypatch)
    (monitor,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, SymmetryMonitor))
    assert (monitor.patience, monitor.include, monitor.scalars) == (4, ["net.*"], "layers")
    assert monitor.findings


@NAMESPACES
@pytest.mark.parametrize("arguments", ["patience: many", "on_symmetry: explode", "scalars: some", "colour: red"])
def test_command_line_refuses_bad_values(
    namespace: Any,
    arguments: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run_cli(namespace, tmp_path, arguments, monkeypatch)
    name, value = arguments.split(": ")
    assert (name if name == "colour" else value) in capsys.readouterr().err


class Manual(current.LightningModule):
    """Steps raw optimizers, which the Trainer does not see, and a wrapped one."""

    def __init__(self, is_raw: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.is_raw = is_raw
        self.net = fill(mlp(), 0.1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers(use_pl_optimizer=not self.is_raw)
        assert isinstance(optimizers, list)
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]).backward()
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD(self.net.linear(0).parameters(), lr=0.05)
        second = torch.optim.SGD([*self.net.linear(2).parameters(), *self.net.linear(4).parameters()], lr=0.05)
        return first, second


@pytest.mark.parametrize("is_raw", [True, False])
def test_raw_optimizers_are_seen_too(is_raw: bool, tmp_path: Path) -> None:
    monitor = SymmetryMonitor(every_n_steps=1)
    trainer = current.Trainer(
        callbacks=[monitor],
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Manual(is_raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        trainer.fit(model, batches())
    assert {finding.layer for finding in monitor.findings} == {"net.0", "net.2"}
    assert monitor.state_dict()["num_steps"] == {0: 8, 1: 8}  # each step counts once
    assert monitor.report is not None
    assert monitor.report.step == 15
    assert all(not optimizer._optimizer_step_pre_hooks for optimizer in trainer.optimizers)


AUTOLOADED = """
import sys, warnings
warnings.simplefilter("ignore")
import {namespace} as pl
from tests.integrations.test_lightning import model_of
from lightning_symmetry import SymmetryMonitor

def trainer(callbacks):
    return pl.Trainer(callbacks=callbacks, accelerator="cpu", max_steps=8, default_root_dir={folder!r},
                      enable_progress_bar=False, enable_model_summary=False)

def monitors(trainer):
    return [callback for callback in trainer.callbacks if isinstance(callback, SymmetryMonitor)]

first = trainer([])
first.fit(model_of(pl))
print([len(monitor.findings) for monitor in monitors(first)])
second = trainer(first.callbacks)  # as users do
second.fit(model_of(pl))
print([len(monitor.findings) for monitor in monitors(second)])
given = SymmetryMonitor()
third = trainer([given])
third.fit(model_of(pl))
print([(type(monitor).__name__, len(monitor.findings)) for monitor in monitors(third)])
import torch
states = torch.load(third.checkpoint_callback.best_model_path)["callbacks"]
print([key for key in states if "Symmetry" in key or "Autoloaded" in key])
"""


@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_a_monitor_that_comes_by_itself_is_never_in_the_way(namespace: str, tmp_path: Path) -> None:
    code = AUTOLOADED.format(namespace=namespace, folder=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LIGHTNING_SYMMETRY_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert lines[0] == "[2]"
    assert sorted(lines[1]) == sorted("[2, 0]")  # whichever comes first
    assert sorted(lines[2]) == sorted("[('SymmetryMonitor', 2), ('AutoloadedMonitor', 0)]")
    assert lines[3].count("SymmetryMonitor") == 1
    assert "Autoloaded" not in lines[3]


class Adds(current.Callback):
    """Adds a monitor to the Trainer after the training has begun."""

    def __init__(self, batch_idx: int) -> None:
        self.given = SymmetryMonitor(every_n_steps=1)
        self.batch_idx = batch_idx

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.batch_idx < 0:
            trainer.callbacks.append(self.given)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.batch_idx == batch_idx:
            trainer.callbacks.append(self.given)
            self.given.on_train_start(trainer, pl_module)


@pytest.mark.parametrize(("batch_idx", "last_step"), [(-1, None), (1, 1)])
def test_a_monitor_that_was_added_automatically_gives_way_to_a_later_one(
    batch_idx: int, last_step: int | None, tmp_path: Path
) -> None:
    added, later = AutoloadedMonitor(every_n_steps=1), Adds(batch_idx)
    trainer = fit(current, [added, later], tmp_path)
    assert {finding.layer for finding in later.given.findings} == {"net.0", "net.2"}
    assert (None if added.report is None else added.report.step) == last_step
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in trainer.optimizers)


class Removes(current.Callback):
    """Removes the monitor of the user in the middle of the training."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.callbacks[:] = [each for each in trainer.callbacks if type(each) is not SymmetryMonitor]


class Holds(current.Callback):
    """Forwards hooks to a monitor that the Trainer does not know."""

    def __init__(self) -> None:
        self.held = AutoloadedMonitor()

    def __getattribute__(self, name: str) -> Any:
        return getattr(self.held, name) if name.startswith("on_") else super().__getattribute__(name)


def test_a_monitor_that_was_added_automatically_never_starts_halfway(tmp_path: Path) -> None:
    added, holds = AutoloadedMonitor(every_n_steps=1), Holds()
    fit(current, [added, SymmetryMonitor(), Removes()], tmp_path)
    fit(current, [holds], tmp_path)
    assert added.report is None
    assert holds.held.report is None


def test_an_automatic_monitor_that_cannot_be_made_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTNING_SYMMETRY_AUTOLOAD", "1")
    monkeypatch.setitem(sys.modules, "lightning_symmetry.integrations.autoloaded", None)  # as if its import failed
    with pytest.warns(UserWarning, match="LIGHTNING_SYMMETRY_AUTOLOAD=1 adds no monitor: ModuleNotFoundError"):
        fit(current, [], tmp_path)


def test_nothing_comes_by_itself_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_symmetry.integrations.autoload import callbacks

    for value in ("", "0", "no"):
        monkeypatch.setenv("LIGHTNING_SYMMETRY_AUTOLOAD", value)
        assert callbacks() == []
    monkeypatch.delenv("LIGHTNING_SYMMETRY_AUTOLOAD")
    assert callbacks() == []
    trainer: Any = current.Trainer(logger=False)
    assert not any(isinstance(callback, SymmetryMonitor) for callback in trainer.callbacks)


@pytest.mark.parametrize("first", ["lightning.pytorch", "pytorch_lightning"])
def test_what_lightning_says_stays_in_its_log(first: str) -> None:
    """Importing one namespace redirects the messages of the other to its own log; the monitor imports both."""
    code = f"""
import {first}, lightning.pytorch
from lightning_symmetry import SymmetryMonitor
from lightning.fabric.utilities.rank_zero import rank_zero_module
print(rank_zero_module.log.name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith("lightning.pytorch"), result.stderr
